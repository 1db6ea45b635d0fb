"""Our own trainers inside a host: its command line and data sets, the same numbers as our own command gives."""

import json

import pytest
import torch

from dho_plugin.engine.registry import DATASET_REGISTRY
from dho_plugin.errors import ConfigError, DataError
from dho_plugin.hosts.own import InHost, own_cfg
from dho_plugin.train import build_parser, build_trainer, check_names, setup_cfg

OPTIONS = (
    "TRAINER.LINEARPROBE.PREC",
    "fp32",
    "TEST.SHIFTED",
    "('ImageNetR', 'ImageNetV2')",
    "OPTIM.WEIGHT_DECAY",
    "0.0",
)


@pytest.fixture(autouse=True)
def own_data_sets():
    """Give our registry its own data sets back: a host's take their names."""
    before = dict(DATASET_REGISTRY._entries)

    def restore():
        DATASET_REGISTRY._entries.clear()
        DATASET_REGISTRY._entries.update(before)

    yield restore
    restore()


def images(items):
    return [(item.impath, item.label, item.index) for item in items]


def test_trained_and_scored_on_the_hosts_data(host_run, tmp_path, capsys):
    run = host_run("LinearProbe_DHO", "run", *OPTIONS)
    assert isinstance(run, InHost)
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["method"] == "LinearProbe + DHO"
    assert results["unlabeled"] is True
    assert list(results["metrics"]) == [run.dataset.test_name, "imagenet_r", "imagenetv2"]
    assert (len(run.dataset.train_x), len(run.dataset.train_u), len(run.dataset.test)) == (8, 16, 8)
    assert "* accuracy: " in capsys.readouterr().out


def test_it_sees_what_our_own_command_sees(host_run, shared_command, own_data_sets):
    hosted = host_run("LinearProbe_DHO", "run", *OPTIONS, "OPTIM.MAX_EPOCH", "0", "TEST.NO_TEST", "True")
    own_data_sets()
    cfg = setup_cfg(build_parser().parse_args(shared_command("LinearProbe_DHO", "own")))
    check_names(cfg)
    own = build_trainer(cfg)
    assert hosted.dataset.classes == own.dataset.classes
    both = [t.dataset.train_x + t.dataset.train_u for t in (hosted, own)]  # the shots are drawn by other draws
    assert sorted(images(both[0])) == sorted(images(both[1]))
    assert images(hosted.dataset.test) == images(own.dataset.test)
    assert hosted.dataset.test_name == own.dataset.test_name


@pytest.mark.parametrize(("dataset", "columns"), [("ImageNetR", [2, 3]), ("ImageNetV2", [0, 1, 2, 3])])
def test_evaluated_as_the_host_does(host_run, tmp_path, dataset, columns):
    trained = host_run("LinearProbe_DHO", "run", *OPTIONS)
    metrics = json.loads((tmp_path / "run/results.json").read_text())["metrics"]
    flags = ("--eval-only", "--load-epoch", "2", "--model-dir", str(tmp_path / "run"))
    tested = host_run("LinearProbe_DHO", "eval", *OPTIONS, "DATASET.NAME", dataset, flags=flags)
    name = tested.dataset.test_name
    assert tested.metrics[name] == metrics[name]
    assert [trained.classes[column] for column in columns] == list(tested.dataset.classes)
    assert torch.equal(tested.kd_head.weight, trained.kd_head.weight)


def test_a_test_set_trains_nothing(host_run):
    with pytest.raises(DataError, match=r"no training images\. Its images are test images"):
        host_run("LinearProbe_DHO", "run", *OPTIONS, "DATASET.NAME", "ImageNetR")


def test_the_twin_learns_nothing_from_test_images(host_run):
    with pytest.raises(DataError, match="4 of its training images are test or validation images"):
        host_run("Frozen_DHO", "run", "DATASET.NAME", "ImageNetR")


def test_an_unknown_shifted_set_is_named_before_anything_is_trained(host_run, tmp_path):
    with pytest.raises(ConfigError, match="ImageNetv2"):
        host_run("CoOp", "run", "TEST.SHIFTED", "('ImageNetv2',)")
    assert not list((tmp_path / "run").glob("*/model.pth.tar*"))


def test_another_configuration_in_the_folder_is_refused(host_run):
    host_run("LinearProbe_DHO", "run", *OPTIONS, "TEST.NO_TEST", "True")
    with pytest.raises(ConfigError, match="belongs to another configuration"):
        host_run("LinearProbe_DHO", "run", *OPTIONS, "OPTIM.LR", "0.5")


def test_settings_of_our_own_data_sets_are_refused(small_host, host_line, tmp_path):
    line = host_line("LinearProbe_DHO", tmp_path, "DATASET.NUM_VAL_SHOTS", "2")
    with pytest.raises(ConfigError, match=r"DATASET\.NUM_VAL_SHOTS is 2: a host's data sets do not know it"):
        own_cfg(small_host.train.setup_cfg(small_host.train.build_parser().parse_args(line)))


def test_a_hosts_values_are_taken_over(small_host, host_line, tmp_path):
    line = host_line("LinearProbe_DHO", tmp_path, "OPTIM.LR", "0.125", "TRAINER.DHO.BETA", "0.25")
    cfg = own_cfg(small_host.train.setup_cfg(small_host.train.build_parser().parse_args(line)))
    assert (cfg.OPTIM.LR, cfg.TRAINER.DHO.BETA, cfg.DATASET.NUM_SHOTS, cfg.TRAINER.NAME) == (
        0.125,
        0.25,
        2,
        "LinearProbe_DHO",
    )
    assert "ROUTE" not in cfg.TRAINER.DHO
    assert "SMALL" not in cfg.TRAINER
