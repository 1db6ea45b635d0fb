"""The entry point, run as a user runs it: on tiny images, with tiny CLIPs, good input and bad."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from dho_plugin.core.inference import search_alpha_beta
from dho_plugin.engine.checkpoint import load_checkpoint
from dho_plugin.engine.evaluator import TestLogits as StoredLogits
from dho_plugin.engine.trainer import TrainerX
from dho_plugin.errors import DataError
from dho_plugin.evaluation import HeadEvaluation
from dho_plugin.models.zeroshot import class_features
from dho_plugin.train import build_parser, main, setup_cfg

SETS = {"val", "imagenetv2", "imagenet_sketch", "imagenet_r", "imagenet_a"}


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def weights(folder: Path, name: str, epoch: int) -> dict:
    return torch.load(folder / name / f"model.pth.tar-{epoch}", weights_only=True)["state_dict"]


def same_weights(a: Path, b: Path, epoch: int = 3) -> bool:
    pairs = [(weights(a, name, epoch), weights(b, name, epoch)) for name in ("prompt_learner", "kd_head")]
    return all(torch.equal(x[key], y[key]) for x, y in pairs for key in x)


def test_a_run_leaves_everything_that_is_promised(command, tmp_path, capsys):
    assert main(command("CoOp_DHO", "run")) == 0
    run = results(tmp_path / "run")
    assert set(run["metrics"]) == SETS
    assert {"accuracy", "ce_head_accuracy", "kd_head_accuracy", "macro_f1", "n"} <= run["metrics"]["val"].keys()
    assert (run["trainer"], run["dataset"], run["shots"], run["seed"]) == ("CoOp_DHO", "imagenet", 2, 1)
    assert run["unlabeled"] is True
    assert run["teacher"] == "ViT-L/14@336px (zero-shot)"
    assert (run["alpha"], run["beta"]) == (0.5, 1.0)
    assert run["config"]["TRAINER"]["DHO"]["LAMBDA"] == 0.5
    assert run["seconds"] > 0
    assert 0 < run["data_wait"]["seconds"] < run["seconds"]
    assert 0 < run["data_wait"]["share"] < 1
    assert run["peak_memory_mb"] > 0
    assert "torch" in run["versions"]
    assert run["metrics"]["imagenet_a"]["n"] == 4  # 2 of 4 classes, 2 images each
    assert sorted(path.name for path in (tmp_path / "run" / "kd_head").iterdir()) == ["model.pth.tar-3"]
    checkpoint = torch.load(tmp_path / "run/prompt_learner/model.pth.tar-3", weights_only=True)
    assert {"state_dict", "epoch", "optimizer", "scheduler", "val_result"} <= checkpoint.keys()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert len(re.findall(r"^data wait \d+\.\d% of the epoch$", log, re.MULTILINE)) == 3
    after = log[log.index("Finish training") :]
    last = re.findall(r"\* accuracy: ([\.\deE+-]+)%", after)[-1]
    assert float(last) == pytest.approx(run["metrics"]["val"]["accuracy"], abs=0.05)
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    # A second call skips what is finished, and says so.
    capsys.readouterr()
    assert main(command("CoOp_DHO", "run")) == 0
    assert "is complete" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_numbers_with_any_number_of_workers(command, tmp_path):
    for out, workers in (("a", "0"), ("b", "0"), ("c", "2")):
        assert main(command("CoOp_DHO", out, "DATALOADER.NUM_WORKERS", workers)) == 0
    assert results(tmp_path / "a")["metrics"] == results(tmp_path / "b")["metrics"]
    assert results(tmp_path / "a")["metrics"] == results(tmp_path / "c")["metrics"]
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert same_weights(tmp_path / "a", tmp_path / "c")


def test_a_run_killed_in_mid_epoch_ends_as_if_nothing_had_happened(command, tmp_path):
    epochs = ("OPTIM.MAX_EPOCH", "40", "TRAIN.PRINT_FREQ", "1")
    process = subprocess.Popen(
        [sys.executable, "-m", "dho_plugin.train", *command("CoOp_DHO", "killed", *epochs)],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("epoch [5/40] batch [1/2]"):
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not (tmp_path / "killed" / "results.json").exists()
    assert main(command("CoOp_DHO", "killed", *epochs)) == 0
    assert "will resume training" in (tmp_path / "killed" / "log.txt").read_text()
    assert main(command("CoOp_DHO", "whole", *epochs)) == 0
    assert results(tmp_path / "killed")["metrics"] == results(tmp_path / "whole")["metrics"]
    assert same_weights(tmp_path / "killed", tmp_path / "whole", 40)


def test_runs_without_unlabeled_images_take_as_many_steps(command, tmp_path):
    steps = {}
    for out, options in {
        "both": ("TRAINER.DHO.UNLABELED", "True"),
        "labeled": ("TRAINER.DHO.UNLABELED", "False"),
    }.items():
        assert main(command("CoOp_DHO", out, "TRAIN.COUNT_ITER", "train_u", *options)) == 0
        steps[out] = re.findall(r"batch \[(\d+)/(\d+)\]", (tmp_path / out / "log.txt").read_text())
    assert steps["both"] == steps["labeled"]
    assert steps["both"][0][1] == "6"  # (8 labeled + 16 unlabeled) / 4
    assert results(tmp_path / "labeled")["unlabeled"] is False


def test_without_dho_there_is_one_head_and_no_teacher(command, tmp_path):
    assert main(command("CoOp", "run", "TRAINER.DHO.TEACHER.CKPT", "/nowhere.pt")) == 0
    run = results(tmp_path / "run")
    assert run["teacher"] is None
    assert run["unlabeled"] is False
    assert "kd_head_accuracy" not in run["metrics"]["val"]
    assert not (tmp_path / "run" / "kd_head").exists()


def test_evaluation_alone_gives_the_runs_own_numbers(command, tmp_path):
    assert main(command("CoOp_DHO", "run")) == 0
    expected = results(tmp_path / "run")["metrics"]
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "3")
    for name in ("imagenet", "imagenetv2", "imagenet_sketch", "imagenet_r", "imagenet_a"):
        assert main(command("CoOp_DHO", f"eval_{name}", dataset=name, flags=flags)) == 0
        for key, metrics in results(tmp_path / f"eval_{name}")["metrics"].items():
            assert metrics == expected[key]


def test_evaluation_does_without_the_training_images(command, tmp_path):
    assert main(command("CoOp_DHO", "run")) == 0
    (tmp_path / "imagenet/images/train").rename(tmp_path / "elsewhere")
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "3")
    assert main(command("CoOp_DHO", "eval", flags=flags)) == 0
    assert results(tmp_path / "eval")["metrics"] == results(tmp_path / "run")["metrics"]
    assert main(command("CoOp_DHO", "again")) == 2


def test_zero_shot_rows(command, tmp_path):
    assert main(command("ZeroshotCLIP", "student", flags=("--eval-only",))) == 0
    run = results(tmp_path / "student")
    assert run["method"] == "CLIP zero-shot ViT-B/16"
    assert run["shots"] is None
    assert set(run["metrics"]) == SETS
    assert main(command("ZeroshotCLIP", "trained")) == 2


def test_the_validation_split_chooses_the_epoch_and_the_mixing(command, tmp_path):
    choose = ("DATASET.NUM_VAL_SHOTS", "1", "TEST.FINAL_MODEL", "best_val", "TRAINER.DHO.SEARCH", "True")
    assert main(command("CoOp_DHO", "run", *choose)) == 0
    run = results(tmp_path / "run")
    assert (tmp_path / "run/prompt_learner/model-best.pth.tar").exists()
    stored = StoredLogits.load(tmp_path / "run/logits/validation.safetensors")
    assert len(stored.labels) == 4  # not the test images, of which there are 8
    found = search_alpha_beta(stored.logits_ce.float(), stored.logits_kd.float(), stored.labels)
    assert (run["alpha"], run["beta"]) == (found.alpha, found.beta)
    assert run["metrics"]["val"]["alpha"] == run["alpha"]


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_best_epoch_is_kept_deployed_and_remembered(command, tmp_path, monkeypatch, interrupted):
    real, epoch, accuracies = HeadEvaluation.test, TrainerX.run_epoch, [40.0, 60.0, 50.0]
    kept = ("DATASET.NUM_VAL_SHOTS", "1", "TEST.FINAL_MODEL", "best_val", "TRAIN.CHECKPOINT_FREQ", "1")
    line = command("CoOp", "run", *kept)
    monkeypatch.setattr(
        HeadEvaluation, "test", lambda self, split=None: accuracies[self.epoch] if split == "val" else real(self, split)
    )
    if interrupted:
        with monkeypatch.context() as patch:
            patch.setattr(TrainerX, "run_epoch", lambda self: epoch(self) if self.epoch < 2 else 1 / 0)
            with pytest.raises(ZeroDivisionError):
                main(line)
    assert main(line) == 0
    assert load_checkpoint(tmp_path / "run/prompt_learner/model-best.pth.tar")["epoch"] == 2
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "2")
    assert main(command("CoOp", "second", *kept, flags=flags)) == 0
    best, second = (StoredLogits.load(tmp_path / run / "logits/val.safetensors") for run in ("run", "second"))
    assert torch.equal(best.logits_ce, second.logits_ce)


def test_nothing_is_chosen_on_test_data(command, tmp_path, capsys):
    assert main(command("CoOp_DHO", "run", "TEST.FINAL_MODEL", "best_val")) == 2
    assert "no validation split and nothing is chosen on test data" in capsys.readouterr().err
    assert main(command("CoOp_DHO", "run2", "TRAINER.DHO.SEARCH", "True")) == 2


def test_a_shifted_set_of_other_classes_is_left_out_and_named(command, tmp_path, monkeypatch):
    import dho_plugin.evaluation as module

    def refuse(own, asked):
        if len(asked) == 2:  # ImageNet-A and -R
            raise DataError("it has other classes")
        return columns(own, asked)

    columns = module.columns
    monkeypatch.setattr(module, "columns", refuse)
    assert main(command("CoOp", "run")) == 0
    assert set(results(tmp_path / "run")["metrics"]) == SETS - {"imagenet_a", "imagenet_r"}
    assert "imagenet_a is left out: it has other classes" in (tmp_path / "run" / "log.txt").read_text()


def test_a_shifted_set_that_is_not_there_is_left_out_and_named(command, tmp_path):
    (tmp_path / "imagenet-sketch").rename(tmp_path / "elsewhere")
    assert main(command("CoOp", "run")) == 0
    assert set(results(tmp_path / "run")["metrics"]) == SETS - {"imagenet_sketch"}
    assert "ImageNetSketch is left out" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("trainer", "options", "said"),
    [
        ("CoOp_DH0", (), "Did you mean 'CoOp_DHO'.*Known: CoOp, CoOp_DHO"),
        ("CoOp", ("DATASET.NAME", "ImageNte"), "unknown dataset 'ImageNte'.*ImageNet"),
        ("CoOp", ("TEST.SHIFTED", "('ImageNetX',)"), "unknown dataset 'ImageNetX'"),
        ("CoOp", ("TRAINER.COOP.NCTX", "4"), "TRAINER.COOP.N_CTX"),
        ("CoOp", ("DATASET.NUM_SHOTS", "7"), "6 training images.*DATASET.NUM_SHOTS 7"),
        ("CoOp", ("DATASET.ROOT", "/nowhere"), "/nowhere/imagenet/images/val.*no such folder"),
        ("CoOp", ("TRAINER.COOP.CLASS_TOKEN_POSITION", "start"), "CLASS_TOKEN_POSITION is 'start'.*end, middle, front"),
        ("CoOp", ("TRAINER.COOP.PREC", "fp8"), "PREC is 'fp8'.*fp32"),
        ("CoOp", ("MODEL.BACKBONE.CKPT", "/nowhere.pt"), r"/nowhere\.pt"),
        ("CoOp_DHO", ("TRAINER.DHO.TEACHER.TYPE", "wise"), "TEACHER.TYPE is 'wise'.*zero_shot, few_shot, run, placebo"),
        ("CoOp_DHO", ("TRAINER.DHO.TEACHER.CKPT", "/nowhere.pt"), r"TRAINER\.DHO\.TEACHER"),
        ("CoOp", ("RESUME", "/nowhere"), "RESUME.*/nowhere"),
    ],
)
def test_bad_input_is_one_clear_message(command, tmp_path, capsys, trainer, options, said):
    assert main(command(trainer, "run", *options)) == 2
    message = capsys.readouterr().err
    assert re.search(said, message, re.DOTALL), message
    assert "Traceback" not in message
    # The slip has not claimed the folder: the corrected command runs in it.
    assert main(command("CoOp", "run", "OPTIM.MAX_EPOCH", "1")) == 0


def test_a_folder_of_another_configuration_is_not_touched(command, tmp_path, capsys):
    assert main(command("CoOp", "run")) == 0
    before = (tmp_path / "run" / "results.json").read_bytes()
    assert main(command("CoOp", "run", "OPTIM.LR", "0.5")) == 2
    assert "OPTIM.LR: 0.002 there, 0.5 here" in capsys.readouterr().err
    assert (tmp_path / "run" / "results.json").read_bytes() == before
    # How a run is executed is not part of what it is.
    assert main(command("CoOp", "run", "TRAIN.PRINT_FREQ", "1")) == 0


def test_two_runs_in_one_folder_do_not_meet(command, tmp_path, capsys):
    from dho_plugin.engine.logger import locked

    with locked(tmp_path / "run"):
        assert main(command("CoOp", "run")) == 3
    assert "in use by another run" in capsys.readouterr().err


def test_a_run_that_another_process_finished_meanwhile_is_skipped(command, tmp_path, capsys, monkeypatch):
    import shutil

    import dho_plugin.engine.logger as module

    assert main(command("CoOp", "run")) == 0
    (tmp_path / "run").rename(tmp_path / "done")
    real = module.locked

    def late(folder):
        shutil.copytree(tmp_path / "done", folder)
        return real(folder)

    monkeypatch.setattr(module, "locked", late)
    before = (tmp_path / "done" / "results.json").stat().st_mtime_ns
    assert main(command("CoOp", "run")) == 0
    assert "is complete" in capsys.readouterr().out
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns == before


def test_checkpoints_of_other_models_are_refused(command, tmp_path, capsys):
    assert main(command("CoOp_DHO", "run")) == 0
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"), "--load-epoch", "3")
    assert main(command("CoOp_DHO", "eval", "TRAINER.COOP.CTX_INIT", "", flags=flags)) == 2
    assert re.search(r"ctx has shape \(4, 64\).*\(16, 64\)", capsys.readouterr().err)
    assert main(command("CoOp_DHO", "eval", flags=(*flags[:-1], "9"))) == 2
    assert "Epochs stored" in capsys.readouterr().err
    # Resuming with another class list.
    names = tmp_path / "imagenet" / "classnames.txt"
    names.write_text(names.read_text().replace("thing number 1", "whatnot"))
    assert main(command("CoOp_DHO", "other", "RESUME", str(tmp_path / "run"))) == 2
    assert re.search("thing number 1.*whatnot", capsys.readouterr().err)


def test_the_best_model_of_a_run_that_is_gone_on_with_elsewhere_lies_there(command, tmp_path, capsys):
    best = ("TEST.FINAL_MODEL", "best_val", "DATASET.NUM_VAL_SHOTS", "1")
    assert main(command("CoOp", "run", *best)) == 0
    more = (*best, "RESUME", str(tmp_path / "run"), "OPTIM.MAX_EPOCH")
    assert main(command("CoOp", "on", *more, "5")) == 0  # its own best is one of epochs 4 and 5
    assert load_checkpoint(tmp_path / "on/prompt_learner/model-best.pth.tar")["epoch"] in (4, 5)
    assert main(command("CoOp", "same", *more, "3")) == 0  # nothing is left to train
    assert results(tmp_path / "same")["metrics"].keys() == results(tmp_path / "run")["metrics"].keys()


def test_processes_without_a_gpu_each_are_refused(command, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")  # said before they would speak to each other
    assert main([*command("CoOp", "run"), "USE_CUDA", "True"]) == 2
    assert "2 processes (the scripts' PROCESSES) for 1 GPUs" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_named(command, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    line = command("CoOp", "run")
    assert main([*line, "USE_CUDA", "True"]) == 2
    assert "CUDA_VISIBLE_DEVICES is '3', and there is no such GPU" in capsys.readouterr().err
    assert main([*line, "USE_CUDA", "False", "OPTIM.MAX_EPOCH", "0"]) == 0


def test_a_teacher_has_names_of_its_own_in_the_students_order_or_is_refused(command, started, tmp_path, capsys):
    options = ("TRAINER.DHO.TEACHER.CLASSNAMES", str(tmp_path / "teacher.txt"))
    line = command("CoOp_DHO", "run", *options)  # makes the tree
    names = (tmp_path / "imagenet" / "classnames.txt").read_text().splitlines()
    (tmp_path / "teacher.txt").write_text("\n".join(names[:-1]))
    assert main(line) == 2
    assert "need the same class list" in capsys.readouterr().err
    (tmp_path / "teacher.txt").write_text("\n".join(f"{n.split()[0]} better name {i}" for i, n in enumerate(names)))
    teacher = started(command("CoOp_DHO", "run2", *options)).teacher.model
    classes = {n.split()[0]: f"better name {i}" for i, n in enumerate(names)}
    own = started(command("CoOp_DHO", "run3"))
    better = class_features(own.load_teacher(), [classes[info.key] for info in own.classes], own.templates())
    torch.testing.assert_close(teacher.head.weight, better)
    assert not torch.allclose(own.teacher.model.head.weight, better, atol=1e-3)


def test_a_truncated_image_is_named_and_can_be_skipped(command, tmp_path, capsys):
    line = command("CoOp", "run")
    for victim in ("imagenet/images/train", "imagenetv2"):
        image = sorted((tmp_path / victim).rglob("*.[jJ]*"))[0]
        image.write_bytes(image.read_bytes()[:200])
    epochs = ("OPTIM.MAX_EPOCH", "6", "DATASET.NUM_SHOTS", "6")
    assert main([*line, *epochs]) == 2
    message = capsys.readouterr().err
    assert "DATASET.UNREADABLE skip" in message
    assert ".JPEG" in message
    assert main([*line, *epochs, "DATASET.UNREADABLE", "skip"]) == 0
    assert results(tmp_path / "run")["metrics"]["imagenetv2"]["n_unreadable"] == 1
    assert "imagenetv2_unreadable: 1" in (tmp_path / "run" / "log.txt").read_text()


def test_an_empty_class_folder_is_named(command, tmp_path, capsys):
    line = command("CoOp", "run")
    folder = sorted(path for path in (tmp_path / "imagenet/images/train").iterdir() if path.is_dir())[1]
    for image in folder.iterdir():
        image.unlink()
    assert main(line) == 2
    assert folder.name in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_with_the_keys_to_change(command, tmp_path, capsys):
    assert main(command("CoOp_DHO", "run", "OPTIM.LR", "1e38", "OPTIM.WARMUP_EPOCH", "0")) == 4
    assert "OPTIM.LR" in capsys.readouterr().err


def test_a_full_disk_loses_nothing(command, tmp_path, capsys, monkeypatch):
    import dho_plugin.engine.checkpoint as module

    real, calls = module.atomic_write, []

    def full(path, write):
        calls.append(path)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        real(path, write)

    monkeypatch.setattr(module, "atomic_write", full)
    assert main(command("CoOp_DHO", "run")) == 2
    assert "No space left on device" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(command("CoOp_DHO", "run")) == 0
    assert main(command("CoOp_DHO", "undisturbed")) == 0
    assert same_weights(tmp_path / "run", tmp_path / "undisturbed")


def test_precedence_of_files_flags_and_pairs(tmp_path):
    (tmp_path / "data.yaml").write_text("DATASET:\n  NAME: ImageNet\nOPTIM:\n  LR: 0.1\nSEED: 5\n")
    (tmp_path / "method.yaml").write_text("OPTIM:\n  LR: 0.2\n  MAX_EPOCH: 7\nTRAINER:\n  NAME: CoOp\n")
    files = ["--dataset-config-file", str(tmp_path / "data.yaml"), "--config-file", str(tmp_path / "method.yaml")]

    def cfg(*words):
        return setup_cfg(build_parser().parse_args([*files, *words]))

    assert (cfg().OPTIM.LR, cfg().SEED, cfg().TRAINER.NAME) == (0.2, 5, "CoOp")
    assert cfg("--seed", "0").SEED == 0
    assert cfg("--trainer", "CoOp_DHO").TRAINER.NAME == "CoOp_DHO"
    assert cfg("--trainer", "CoOp_DHO", "TRAINER.NAME", "ZeroshotCLIP").TRAINER.NAME == "ZeroshotCLIP"
    assert cfg("OPTIM.LR", "0.3").OPTIM.LR == 0.3
    assert cfg().is_frozen()
    (tmp_path / "data.yaml").write_text("SEED: -1\n")
    assert cfg().SEED >= 0


def test_the_place_of_ones_own_data_does_not_depend_on_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lines = [["--root", root, "DATASET.NAME", "ImageFolder"] for root in (".", "~", str(tmp_path), "down/..")]
    assert {setup_cfg(build_parser().parse_args(line)).DATASET.ROOT for line in lines} == {str(tmp_path)}


def test_grayscale_and_palette_images_train(command, tmp_path):
    line = command("CoOp", "run")
    for mode, image in zip(
        ("L", "P", "CMYK"), sorted((tmp_path / "imagenet/images/train").rglob("*.JPEG")), strict=False
    ):
        Image.open(image).convert(mode).save(image, format="PNG" if mode == "P" else "JPEG")
    assert main(line) == 0


def test_a_disk_that_fills_up_anywhere_is_one_message(command, tmp_path, capsys, monkeypatch):
    import dho_plugin.engine.evaluator as module

    def full(path, write):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(module, "atomic_write", full)
    assert main(command("CoOp", "run")) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "val.safetensors" in error
    monkeypatch.undo()
    assert main(command("CoOp", "run")) == 0
    assert "will resume training" in (tmp_path / "run" / "log.txt").read_text()


def test_an_evaluation_into_the_run_s_own_folder_is_refused(command, tmp_path, capsys):
    assert main(command("CoOp", "run")) == 0
    before = (tmp_path / "run/results.json").read_text()
    assert main(command("CoOp", "run", flags=("--eval-only", "--model-dir", str(tmp_path / "run")))) == 2
    assert "is the trained run itself" in capsys.readouterr().err
    assert (tmp_path / "run/results.json").read_text() == before


def test_an_evaluation_says_in_whole_where_its_model_lies(command, tmp_path, monkeypatch):
    assert main(command("CoOp", "run")) == 0
    monkeypatch.chdir(tmp_path)
    flags = ("--eval-only", "--model-dir", "run")
    assert main(command("CoOp", "again", "TEST.COMPUTE_CMAT", "True", flags=flags)) == 0
    assert json.loads((tmp_path / "again/results.json").read_text())["model_dir"] == str(tmp_path / "run")
    sizes = {path.name: len(torch.load(path)) for path in (tmp_path / "again").glob("cmat*.pt")}
    shifted = dict.fromkeys(("imagenetv2", "imagenet_sketch"), 4) | dict.fromkeys(("imagenet_r", "imagenet_a"), 2)
    assert sizes == {"cmat.pt": 4, **{f"cmat-{name}.pt": size for name, size in shifted.items()}}


def test_what_a_killed_run_left_half_written_is_removed(command, tmp_path):
    left = tmp_path / "run/prompt_learner/.model.pth.tar-3.7abc.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert main(command("CoOp", "run")) == 0
    assert not left.exists()


def test_evaluation_of_nothing_learned_is_refused(command, capsys):
    assert main(command("CoOp", "run", flags=("--eval-only",))) == 2
    assert "--model-dir" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_ends_a_command_quietly():
    script = "import sys\nfrom dho_plugin.errors import run_command\n"
    script += "sys.exit(run_command(lambda: [print('line', flush=True) for _ in range(100_000)]))"
    pipe = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("line\n141\n", "")
