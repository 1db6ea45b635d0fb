"""A host's trainer with DHO: training, checkpoints, resuming, class subsets, both heads at inference, refusals."""

import shutil

import pytest
import torch

from dho_plugin.core.inference import interpolate
from dho_plugin.errors import CheckpointError, ConfigError, DataError
from dho_plugin.hosts import dhoify
from dho_plugin.hosts.twin import HostDHO

EVALUATE = ("--eval-only", "--load-epoch", "2")


def weights(trainer):
    return [p.detach().clone() for p in (*trainer.kd_head.parameters(), *trainer.model.prompt_learner.parameters())]


@pytest.mark.parametrize("name", ["Frozen_DHO", "Prompted_DHO", "Averaged_DHO"])
def test_trained_saved_and_evaluated(host_run, tmp_path, name):
    trained = host_run(name, "run")
    assert len(trained.losses) == 4
    assert all(loss["loss_kd"] > 0 for loss in trained.losses)
    assert (tmp_path / "run/kd_head/model.pth.tar-2").is_file()
    again = host_run(name, "eval", flags=("--model-dir", str(tmp_path / "run"), *EVALUATE))
    assert all(torch.equal(a, b) for a, b in zip(weights(trained), weights(again), strict=True))
    assert torch.allclose(torch.cat(trained.outputs), torch.cat(again.outputs), atol=1e-6)


@pytest.mark.parametrize("name", ["Frozen_DHO", "Prompted_DHO"])
def test_the_head_learns_with_the_hosts_schedule(host_run, name):
    run = host_run(name, "run", "OPTIM.MAX_EPOCH", "1", "TRAINER.DHO.OPTIM.NAME", "adam", "TRAINER.DHO.OPTIM.LR", "0.1")
    optim = run._optims["kd_head"]
    assert isinstance(optim, torch.optim.Adam)
    assert optim.param_groups[0]["initial_lr"] == 0.1
    assert optim.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)  # the cosine has come to its end
    assert optim.state[run.kd_head.head.weight]["step"] == 2  # as many as the epoch has batches


def test_resumed_as_if_never_interrupted(host_run, tmp_path):
    options = ("OPTIM.MAX_EPOCH", "3", "TRAINER.DHO.UNLABELED", "False", "INPUT.TRANSFORMS", "('normalize',)")
    options += ("DATALOADER.TRAIN_X.BATCH_SIZE", "8")  # one batch of all images: their order does not count
    whole = host_run("Prompted_DHO", "whole", *options)
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    for name in ("kd_head", "prompt_learner"):
        (tmp_path / "part" / name / "checkpoint").write_text("model.pth.tar-2\n")
    resumed = host_run("Prompted_DHO", "part", *options)
    assert (resumed.start_epoch, len(resumed.losses)) == (2, 1)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(weights(whole), weights(resumed), strict=True))


@pytest.mark.parametrize("lost", ["kd_head", "prompt_learner"])
def test_a_resume_without_one_of_the_parts_is_refused(host_run, tmp_path, lost):
    host_run("Frozen_DHO", "run", "TEST.NO_TEST", "True")
    shutil.rmtree(tmp_path / "run" / lost)
    with pytest.raises(CheckpointError, match=f"but not {lost}: it is no complete run of Frozen_DHO"):
        host_run("Frozen_DHO", "run")


def test_a_resume_with_parts_of_different_epochs_is_refused(host_run, tmp_path):
    host_run("Frozen_DHO", "run", "TEST.NO_TEST", "True")
    (tmp_path / "run/kd_head/checkpoint").write_text("model.pth.tar-1\n")
    (tmp_path / "run/prompt_learner/checkpoint").write_text("model.pth.tar-2\n")
    with pytest.raises(CheckpointError, match=r"different epochs: .*tar-1.*write the older name"):
        host_run("Frozen_DHO", "run")


def test_a_resume_with_other_classes_is_refused(host_run, tmp_path, monkeypatch):
    host_run("Frozen_DHO", "run", "TEST.NO_TEST", "True")
    monkeypatch.setattr("dho_plugin.hosts.twin.class_keys", lambda items, names: ["a", "b", "c", "d"])
    with pytest.raises(
        CheckpointError,
        match=r"knows 4 classes, the data set 4; first differences: \('n01000000', 'thing number 0'\) there",
    ):
        host_run("Frozen_DHO", "run")


def test_prompts_and_head_are_averaged_with_the_same_weights(host_run, tmp_path):
    options = ("OPTIM.MAX_EPOCH", "3", "TEST.NO_TEST", "True")
    averaged = host_run("Averaged_DHO", "averaged", *options)
    plain = host_run("Prompted_DHO", "plain", *options)
    heads, prompts = [], []
    for epoch in (1, 2, 3):
        for name, kept in (("kd_head", heads), ("prompt_learner", prompts)):
            state = torch.load(tmp_path / f"plain/{name}/model.pth.tar-{epoch}")["state_dict"]
            kept.append(state["head.weight" if name == "kd_head" else "ctx"])
    assert not torch.allclose(averaged.kd_head.head.weight, plain.kd_head.head.weight, atol=1e-4)
    for found, kept in ((averaged.kd_head.head.weight, heads), (averaged.model.prompt_learner.ctx, prompts)):
        assert torch.allclose(found, (1 * kept[0] + 2 * kept[1] + 3 * kept[2]) / 6, atol=1e-6)


# Inference and class subsets ----------------------------------------------------------------------------------------


def mixed_by_hand(trainer, images, columns, alpha, beta):
    features = trainer.model.image_encoder(images, *trainer.model.extra())
    kd = trainer.kd_head.head(features)[:, columns]
    return interpolate(trainer.model.logits(features), kd, alpha, beta)


@pytest.mark.parametrize(
    ("dataset", "columns"), [("ImageNet", [0, 1, 2, 3]), ("ImageNetR", [2, 3]), ("ImageNetV2", [0, 1, 2, 3])]
)
def test_both_heads_answer_for_the_classes_of_a_test_set(host_run, tmp_path, dataset, columns):
    host_run("Prompted_DHO", "run", "TEST.NO_TEST", "True")
    mixing = ("TRAINER.DHO.ALPHA", "0.3", "TRAINER.DHO.BETA", "0.5")
    flags = ("--model-dir", str(tmp_path / "run"), *EVALUATE)
    tested = host_run("Prompted_DHO", "eval", "DATASET.NAME", dataset, *mixing, flags=flags)
    images = torch.cat([batch["img"] for batch in tested.test_loader])
    with torch.no_grad():
        expected = mixed_by_hand(tested, images, columns, 0.3, 0.5)
    assert expected.shape[1] == len(columns)
    assert torch.allclose(torch.cat(tested.outputs).exp(), expected, atol=1e-6)


def test_the_image_encoder_runs_once_at_inference(host_run, tmp_path):
    trainer = host_run("Prompted_DHO", "run", "OPTIM.MAX_EPOCH", "1")
    calls = []
    trainer.model.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    trainer.test()
    assert len(calls) == len(trainer.test_loader)


def test_alpha_1_is_the_hosts_own_head(host_run, tmp_path):
    trainer = host_run("Frozen_DHO", "run", "OPTIM.MAX_EPOCH", "1", "TRAINER.DHO.ALPHA", "1.0")
    with torch.no_grad():
        images = torch.cat([batch["img"] for batch in trainer.test_loader])
        assert torch.allclose(torch.cat(trainer.outputs), trainer.model(images).log_softmax(1), atol=1e-5)


def test_classes_that_the_head_was_not_trained_on(host_run, tmp_path, monkeypatch):
    host_run("Frozen_DHO", "run", "TEST.NO_TEST", "True")
    flags = ("--model-dir", str(tmp_path / "run"), *EVALUATE)
    with monkeypatch.context() as patch:
        patch.setattr("dho_plugin.hosts.twin.class_keys", lambda items, names: ["n01000000", "new", "n2", "n3"])
        with pytest.raises(DataError, match=r"lacks 3 of the 4 classes.*Set TRAINER\.DHO\.ALPHA 1\.0"):
            host_run("Frozen_DHO", "eval", flags=flags)
        host_run("Frozen_DHO", "eval", "TRAINER.DHO.ALPHA", "1.0", flags=flags)


def test_a_head_of_another_kind_is_refused(host_run, tmp_path):
    host_run("Frozen_DHO", "run", "TEST.NO_TEST", "True")
    flags = ("--model-dir", str(tmp_path / "run"), *EVALUATE)
    with pytest.raises(CheckpointError, match=r"saved head is 'cosine'.*this run's is 'linear'"):
        host_run("Frozen_DHO", "eval", "TRAINER.DHO.KD_HEAD", "linear", flags=flags)


def test_a_head_of_our_own_trainer_is_refused(host_run, tmp_path):
    host_run("Frozen_DHO", "run", "TEST.NO_TEST", "True")
    file = tmp_path / "run/kd_head/model.pth.tar-2"
    torch.save({"state_dict": {"weight": torch.ones(4, 32)}, "epoch": 2}, file)  # as CoOp_DHO's lies there
    with pytest.raises(CheckpointError, match=r"holds weight, and no head of a host's trainer with DHO"):
        host_run("Frozen_DHO", "eval", flags=("--model-dir", str(tmp_path / "run"), *EVALUATE))


def test_an_inference_that_gives_no_logits(host_run, monkeypatch):
    trainer = host_run("Frozen_DHO", "run", "TEST.NO_TEST", "True")
    monkeypatch.setattr(trainer.host, "model_inference", lambda self, images: torch.zeros(len(images), 4))
    with pytest.raises(ConfigError, match=r"gave no image features; looked for logits"):
        trainer.test()


# What cannot have a twin --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OwnTest", r"OwnTest has a test\(\) of its own .*small_trainers\.OwnTest\.test.*no DHO twin"),
        ("NoEncoder", r"looked for the module self\.model\.image_encoder.*found self\.model with \['0', '1'\]"),
        ("TwoOptimizers", r"looked for one optimizer.*found 2 \(prompt_learner, second\)"),
        ("Parallel", r"nn\.DataParallel.*CUDA_VISIBLE_DEVICES=0"),
    ],
)
def test_a_trainer_without_a_twin_says_why(host_trainer, name, message):
    with pytest.raises(ConfigError, match=message):
        host_trainer(f"{name}_DHO")


def test_what_is_no_trainer_of_dassls(small_host):
    with pytest.raises(ConfigError, match="'int': looked for a class on Dassl's SimpleTrainer"):
        dhoify(int)
    twin = dhoify(small_host.trainers.Frozen)
    assert twin.__name__ == "Frozen_DHO"
    assert twin.__mro__[1:3] == (HostDHO, small_host.trainers.Frozen)
    with pytest.raises(ConfigError, match="is a DHO trainer already"):
        dhoify(twin)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("LAMBDA", "1.5", r"TRAINER\.DHO\.LAMBDA is 1\.5"),
        ("ETA", "0.0", r"TRAINER\.DHO\.ETA is 0\.0"),
        ("KD_HEAD", "square", r"TRAINER\.DHO\.KD_HEAD is 'square'"),
        ("SEARCH", "True", r"TRAINER\.DHO\.SEARCH is not supported"),
        ("PROBE_GRADIENTS", "5", r"TRAINER\.DHO\.PROBE_GRADIENTS is 5"),
        ("ROUTE", "C", r"TRAINER\.DHO\.ROUTE is 'C'"),
        ("TEACHER.MODE", "cached", r"TRAINER\.DHO\.TEACHER\.MODE cached"),
        ("TEACHER.MODE", "fill", r"TRAINER\.DHO\.TEACHER\.MODE fill: a host's views are drawn anew"),
    ],
)
def test_wrong_settings(host_trainer, key, value, message):
    with pytest.raises(ConfigError, match=message):
        host_trainer("Frozen_DHO", f"TRAINER.DHO.{key}", value)


def test_settings_that_only_our_own_trainers_read_are_refused(host_trainer):
    options = ("TRAIN.ACCUMULATION", "2", "TEST.SHIFTED", "('ImageNetR',)", "DATASET.TEMPLATES", "('a {}',)")
    with pytest.raises(ConfigError, match=r"^TRAIN\.ACCUMULATION, TEST\.SHIFTED: only our own trainers read that"):
        host_trainer("Frozen_DHO", *options)


@pytest.mark.parametrize("name", ["Frozen_DHO", "CoOp_DHO"])
def test_several_processes_are_refused(host_trainer, monkeypatch, name):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"started 2 processes \(WORLD_SIZE\), and a host's train\.py knows one"):
        host_trainer(name)
