"""Real data's settings through the command line: class subsets, percentages, stored shots, every layout's files."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from dho_plugin.train import build_parser, build_trainer, main, setup_cfg


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


@pytest.mark.parametrize(
    ("trainer", "options"),
    [
        ("CoOp_DHO", ()),
        ("LinearProbe", ()),
        ("VPT", ("TRAINER.VPT.HEAD", "linear")),
        ("CoOp", ("TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.CSC", "True")),  # a context of its own for each class
    ],
)
def test_a_head_knows_its_own_classes_only(command, trainer, options, tmp_path, capsys):
    alone = (*options, "TEST.SHIFTED", "()", "DATASET.SUBSAMPLE_CLASSES")
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


def test_a_run_does_not_go_on_with_other_images(command, tmp_path, capsys):
    """A photo that was added in the meantime would change the draw, and the run would learn from two of them."""
    line = command("CoOp_DHO", "run", "DATASET.SHOTS_FROM", "draw", "TEST.SHIFTED", "()")
    trainer = build_trainer(setup_cfg(build_parser().parse_args(line)))
    trainer.before_train()
    trainer.save_model(1, tmp_path / "run", trainer.checkpoint_meta())
    folder = next((tmp_path / "imagenet/images/train").glob("n*"))
    (folder / "aaa.JPEG").write_bytes(next(folder.glob("n*")).read_bytes())
    assert main(line) == 2
    said = capsys.readouterr().err
    assert "the data have changed since this run began" in said
    assert "training images: 24 then, 25 now" in said
    (folder / "aaa.JPEG").unlink()
    assert main(line) == 0
    assert "will resume" in (tmp_path / "run/log.txt").read_text()


def test_validation_images_in_the_place_of_test_images_are_said_to_be(shared_command, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for folder in ("train/a", "train/b", "val/a", "val/b"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for number in range(3):
            image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            image.save(tmp_path / "photos" / folder / f"{number}.png")
    where = ("DATASET.ROOT", str(tmp_path), "DATASET.PREFIX", "photos")
    line = shared_command("CoOp_DHO", tmp_path / "run", *where, "TRAINER.DHO.SEARCH", "True", dataset="folder")
    assert main(line) == 2
    assert "DHO.SEARCH False. Its val split is scored in the place of the test split" in capsys.readouterr().err


def test_an_evaluation_takes_over_the_mix_that_the_run_chose(command, tmp_path):
    choose = ("DATASET.NUM_VAL_SHOTS", "2", "TRAINER.DHO.SEARCH", "True", "TEST.SHIFTED", "()")
    assert main(command("CoOp_DHO", "run", *choose, "TRAINER.DHO.ALPHA", "0.45")) == 0
    path = tmp_path / "run/results.json"
    path.write_text(json.dumps({**results(tmp_path / "run"), "alpha": 0.3, "beta": 0.7}))  # chosen, if not by this run
    flags = ("--eval-only", "--model-dir", str(tmp_path / "run"))
    for alpha, expected in (("0.45", (0.3, 0.7)), ("0.9", (0.9, 1.0))):
        words = ("TEST.SHIFTED", "()", "TRAINER.DHO.ALPHA", alpha)
        assert main(command("CoOp_DHO", f"eval{alpha}", *words, flags=flags)) == 0
        run = results(tmp_path / f"eval{alpha}")
        assert (
            (run["alpha"], run["beta"]) == expected == (run["metrics"]["val"]["alpha"], run["metrics"]["val"]["beta"])
        )


def test_a_file_name_that_is_no_text_is_logged_all_the_same(command, tmp_path, capsys):
    folder = next((tmp_path / "imagenet/images/train").glob("n*"))
    (folder / os.fsdecode(b"zz\xff.JPEG")).write_bytes(b"no image")
    options = ("DATASET.NUM_SHOTS", "-1", "DATASET.UNREADABLE", "skip", "TEST.SHIFTED", "()", "OPTIM.MAX_EPOCH", "4")
    assert main(command("CoOp", "run", *options)) == 0
    assert "Logging error" not in capsys.readouterr().err
    assert "zz\\udcff.JPEG: cannot be read" in (tmp_path / "run/log.txt").read_text()
