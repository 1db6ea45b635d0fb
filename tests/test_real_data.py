"""Real data's settings through the command line: class subsets, percentages, stored shots, every layout's files."""

import json
import re

import pytest

from dho_plugin.train import main


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_base_classes_are_learned_and_their_shifted_sets_scored(command, tmp_path):
    options = ("DATASET.SUBSAMPLE_CLASSES", "base")
    assert main(command("CoOp_DHO", "run", *options)) == 0
    metrics = results(tmp_path / "run")["metrics"]
    # of four classes the first two; A has the first two, R the last two
    assert {name: m["n"] for name, m in metrics.items()} == {
        "val": 4, "imagenetv2": 4, "imagenet_sketch": 4, "imagenet_a": 4
    }  # fmt: skip
    log = (tmp_path / "run/log.txt").read_text()
    assert "ImageNetR is left out" in log
    assert re.search(r"# classes +2\n# train_x +4\n# train_u +8\n# test +4\n", log)


@pytest.mark.parametrize("trainer", ["CoOp", "VPT", "PromptSRC"])
def test_prompts_meet_classes_that_they_were_not_trained_on(command, trainer, tmp_path):
    """Base to new, as CoOp evaluates it: the prompts are those of the run, the names those of the other half."""
    alone = ("TRAINER.VPT.HEAD", "text", "TEST.SHIFTED", "()", "DATASET.SUBSAMPLE_CLASSES")
    assert main(command(trainer, "base", *alone, "base")) == 0
    flags = ("--eval-only", "--model-dir", str(tmp_path / "base"))
    assert main(command(trainer, "new", *alone, "new", flags=flags)) == 0
    assert results(tmp_path / "new")["metrics"]["val"]["n"] == 4
    assert "Loading weights" in (tmp_path / "new/log.txt").read_text()
    assert main(command(trainer, "all", *alone, "all", flags=flags)) == 0
    assert results(tmp_path / "all")["metrics"]["val"]["n"] == 8


@pytest.mark.parametrize("trainer", ["CoOp_DHO", "LinearProbe"])
def test_a_head_knows_its_own_classes_only(command, trainer, tmp_path, capsys):
    alone = ("TEST.SHIFTED", "()", "DATASET.SUBSAMPLE_CLASSES")
    assert main(command(trainer, "base", *alone, "base")) == 0
    flags = ("--eval-only", "--model-dir", str(tmp_path / "base"))
    assert main(command(trainer, "new", *alone, "new", flags=flags)) == 2
    assert "the head was trained on 2 classes and lacks 2 of the 2 classes" in capsys.readouterr().err


def test_a_dho_runs_prompts_alone_meet_new_classes(command, tmp_path):
    alone = ("TEST.SHIFTED", "()", "DATASET.SUBSAMPLE_CLASSES")
    assert main(command("CoOp_DHO", "base", *alone, "base")) == 0
    flags = ("--eval-only", "--model-dir", str(tmp_path / "base"))
    assert main(command("CoOp", "new", *alone, "new", flags=flags)) == 0
    assert "kd_head_accuracy" not in results(tmp_path / "new")["metrics"]["val"]


def test_a_percentage_of_the_images_is_labeled(command, tmp_path):
    options = ("DATASET.NUM_SHOTS", "-1", "DATASET.LABELED_PERCENT", "34", "TEST.SHIFTED", "()")
    assert main(command("LinearProbe_DHO", "run", *options)) == 0
    run = results(tmp_path / "run")
    assert (run["shots"], run["labeled_percent"]) == (-1, 34)
    assert re.search(r"# train_x +8\n# train_u +16\n", (tmp_path / "run/log.txt").read_text())  # 2 of 6 a class


def test_the_same_shots_are_used_once_they_are_stored(command, tmp_path):
    assert main(command("CoOp", "one", "TEST.SHIFTED", "()")) == 0
    (stored,) = (tmp_path / "imagenet/split_fewshot").glob("*")
    assert stored.name == "shot_2-seed_1.json"
    content = stored.read_text()
    for folder in (tmp_path / "imagenet/images/train").glob("n*"):
        (folder / "aaa.JPEG").write_bytes(next(folder.glob("n*")).read_bytes())  # would change every draw
    assert main(command("CoOp", "two", "TEST.SHIFTED", "()")) == 0
    assert stored.read_text() == content
    log = (tmp_path / "two/log.txt").read_text()
    assert f"Shots: 2 a class, seed 1, {stored}\n" in log
    assert re.search(r"# train_x +8\n# train_u +20\n", log)
