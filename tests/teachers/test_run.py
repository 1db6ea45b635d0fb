"""Finished runs as teachers: their own predictions, on their own classes, or one message why not."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch

from dho_plugin.cache import main as fill_cache
from dho_plugin.core.inference import interpolate
from dho_plugin.core.losses import teacher_probs
from dho_plugin.engine.evaluator import TestLogits as StoredLogits
from dho_plugin.errors import CheckpointError, ConfigError, DataError
from dho_plugin.train import main

TEACHERS = ("CoOp", "CoOp_DHO", "LinearProbe_DHO", "VPT_DHO", "PromptSRC_DHO", "TipAdapterF", "Distill_DHO")


@pytest.fixture(scope="module")
def finished(shared_command):
    """Return a function that gives the folder of a trainer's finished run; each run is made once."""

    def run(trainer: str, *options: str, classes: int = 4) -> Path:
        few = ("OPTIM.MAX_EPOCH", "1", "OPTIM.WARMUP_STEPS", "0", "OPTIM.LR", "0.1", "TEST.SHIFTED", "()")
        few += ("INPUT.VIEWS", "1") if trainer.startswith("Tip") else ()
        line = shared_command(trainer, f"teach_{trainer}_{len(options)}_{classes}", *few, *options, classes=classes)
        assert main(line) == 0
        return Path(line[line.index("--output-dir") + 1])

    return cache(run)


@pytest.fixture
def taught(shared_command, started, tmp_path):
    """Return a function that starts a run with another run as its teacher."""

    def build(run, *options: str, trainer: str = "LinearProbe_DHO", name: str = "run", classes: int = 4):
        teacher = ("TRAINER.DHO.TEACHER.TYPE", "run", "TRAINER.DHO.TEACHER.RUN", str(run))
        few = ("OPTIM.MAX_EPOCH", "1", "OPTIM.WARMUP_STEPS", "0")
        return started(shared_command(trainer, tmp_path / name, *few, *teacher, *options, classes=classes))

    return build


def test_images(trainer) -> torch.Tensor:
    dataset = trainer.eval_dataset(trainer.dataset.test)
    dataset.pre = trainer.teacher.preprocess
    return torch.stack([dataset[i]["img"] for i in range(len(dataset))])


test_images.__test__ = False


def own_prediction(folder: Path) -> torch.Tensor:
    """Return the run's probabilities on its test images, from what it stored of them."""
    stored, run = (
        StoredLogits.load(folder / "logits/val.safetensors"),
        json.loads((folder / "results.json").read_text()),
    )
    return interpolate(stored.logits_ce, stored.logits_kd, run["alpha"] or 1.0, run["beta"] or 1.0)


@pytest.mark.parametrize("trainer", TEACHERS)
def test_a_teacher_says_what_its_run_said(finished, taught, trainer):
    options = ("TRAINER.DHO.ALPHA", "0.3", "TRAINER.DHO.BETA", "2.0") if trainer.endswith("_DHO") else ()
    student = taught(finished(trainer, *options))
    teacher, images = student.teacher.model, test_images(student)
    logits = teacher(teacher.features(images))
    torch.testing.assert_close(logits.softmax(1), own_prediction(finished(trainer, *options)), rtol=5e-3, atol=2e-3)
    # At eta, what the KL takes is p^(1 / eta).
    powered = logits.double().softmax(1) ** 0.5
    torch.testing.assert_close(teacher_probs(logits.double(), 2.0), powered / powered.sum(1, keepdim=True))
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student.set_model_mode("train")
    student.forward_backward(*(next(stream) for stream in student.streams))
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not any(p.requires_grad for p in teacher.parameters())
    label = "test_resnet from scratch DHO (run)" if trainer == "Distill_DHO" else ", ViT-B/16 (run)"
    assert student.teacher_label.endswith(label)


def test_a_frozen_teacher_s_stored_features_do_as_online_ones(finished, taught):
    options = ("INPUT.VIEWS", "1", "MODEL.FEATURES", "online", "TRAINER.DHO.TEACHER.MODE")
    runs = [taught(finished("CoOp_DHO"), *options, mode, name=mode) for mode in ("online", "fill")]
    batches = [next(run.streams[1]) for run in runs]
    assert ["teacher_features" in batch for batch in batches] == [False, True]
    pair = [run.teacher_logits([batch]) for run, batch in zip(runs, batches, strict=True)]
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-3)
    assert runs[1].teacher.model.net.student.clip_model.visual is None


def test_a_prompted_teacher_never_reads_the_frozen_clip_s_features(finished, taught, shared_command, tmp_path):
    """A cache of its CLIP is there, and would fit but for the prompts."""
    views = ("INPUT.VIEWS", "1")
    taught(finished("LinearProbe"), *views, "TRAINER.DHO.TEACHER.MODE", "fill", name="filled")
    student = taught(finished("VPT_DHO"), *views, name="auto")
    batch = next(student.streams[1])
    assert "teacher_features" not in batch
    frozen = taught(finished("LinearProbe"), *views, name="frozen")
    assert "teacher_features" in next(frozen.streams[1])
    for mode in ("cached", "fill"):
        with pytest.raises(ConfigError, match=r"MODE is .*no frozen CLIP"):
            taught(finished("VPT_DHO"), *views, "TRAINER.DHO.TEACHER.MODE", mode, name=mode)


def test_the_teacher_s_columns_are_found_by_class(finished, taught):
    """A student of half of the classes, and a teacher of all of them."""
    half = taught(finished("LinearProbe"), "DATASET.SUBSAMPLE_CLASSES", "new")
    whole = taught(finished("LinearProbe"), name="whole")
    images = test_images(half)
    wanted = whole.teacher.model(whole.teacher.model.features(images))[:, 2:].log_softmax(1)
    torch.testing.assert_close(half.teacher.model(half.teacher.model.features(images)), wanted)


def test_prompts_teach_classes_that_they_were_not_trained_on_and_heads_do_not(finished, taught):
    base, new = ("DATASET.SUBSAMPLE_CLASSES", "base"), ("DATASET.SUBSAMPLE_CLASSES", "new")
    student = taught(finished("CoOp", *base), *new)
    images = test_images(student)
    assert student.teacher.model(student.teacher.model.features(images)).shape == (len(images), 2)
    with pytest.raises(DataError, match=r"TEACHER\.RUN: the run in .* was trained on 2 classes"):
        taught(finished("LinearProbe", *base), *new)


def test_what_is_no_finished_run_is_one_message(finished, taught, tmp_path):
    with pytest.raises(ConfigError, match=r"TEACHER\.RUN is empty"):
        taught("")
    with pytest.raises(CheckpointError, match=r"is no run's folder"):
        taught(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(finished("LinearProbe"), copy)
    (copy / "ce_head/model.pth.tar-1").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"TEACHER\.RUN: .*damaged"):
        taught(copy)
    (copy / "ce_head/model.pth.tar-1").unlink()
    with pytest.raises(CheckpointError, match=r"TEACHER\.RUN: .*holds no checkpoint"):
        taught(copy)
    (copy / "results.json").unlink()
    with pytest.raises(CheckpointError, match=r"is not finished: start its command again"):
        taught(copy)


def test_a_run_on_another_backbone_than_its_config_names_is_refused(finished, taught, tiny_weights, tmp_path):
    copy, narrow = tmp_path / "copy", torch.load(tiny_weights[0], weights_only=True)
    shutil.copytree(finished("LinearProbe"), copy)
    torch.save(
        narrow | {key: narrow[key][:, :16] for key in ("visual.proj", "text_projection")}, tmp_path / "narrow.pt"
    )
    config = json.loads((copy / "config.json").read_text())
    config["MODEL"]["BACKBONE"]["CKPT"] = str(tmp_path / "narrow.pt")
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"TEACHER\.RUN: .*weight has shape \(4, 32\).* \(4, 16\).*backbone"):
        taught(copy)


def test_runs_of_other_data_are_refused(finished, taught):
    with pytest.raises(DataError, match=r"trained on 2 classes, and the student has 4"):
        taught(finished("LinearProbe", classes=2))


def test_nothing_of_a_prompted_teacher_is_stored(finished, shared_command, tmp_path, capsys):
    teacher = ("TRAINER.DHO.TEACHER.TYPE", "run", "TRAINER.DHO.TEACHER.RUN")
    line = shared_command("LinearProbe_DHO", tmp_path / "run", *teacher, str(finished("VPT_DHO")), "INPUT.VIEWS", "1")
    out = line.index("--output-dir")
    del line[out : out + 2]
    assert fill_cache(line) == 2
    assert "is no frozen CLIP" in capsys.readouterr().err
    assert fill_cache(["--what", "student", *line]) == 0
    line[line.index(str(finished("VPT_DHO")))] = str(finished("LinearProbe"))
    assert fill_cache(line) == 0
