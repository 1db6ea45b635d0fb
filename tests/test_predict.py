"""Predictions of finished runs: classes and probabilities from stored logits, files found, damaged ones survived."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dho_plugin.engine.evaluator import TestLogits as StoredLogits
from dho_plugin.errors import CheckpointError, DataError
from dho_plugin.predict import find_images, main, predict
from dho_plugin.runs import Run, load_run
from dho_plugin.train import main as train


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def read(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def expected(run: Path, alpha: float, beta: float):
    """Return the mix, the CE head's and the KD head's probabilities of the stored logits, in float64."""
    stored = StoredLogits.load(run / "logits" / "val.safetensors")
    ce = softmax(stored.logits_ce.double().numpy())
    if stored.logits_kd is None:
        return ce, ce, None
    kd = softmax(stored.logits_kd.double().numpy() / beta)
    return alpha * ce + (1 - alpha) * kd, ce, kd


@pytest.mark.parametrize("trainer", ["LinearProbe_DHO", "CoOp", "PromptSRC_DHO", "ZeroshotCLIP"])
@pytest.mark.parametrize("mixing", [(), ("--alpha", "0.2", "--beta", "0.5")])
def test_a_folder_in_a_csv_out(finished_run, tmp_path, trainer, mixing):
    run, images = finished_run(trainer)
    assert main([str(run), str(images), "--csv", str(tmp_path / "out.csv"), "--top", "9", *mixing]) == 0
    rows = read(tmp_path / "out.csv")
    assert [row["image"] for row in rows] == sorted(str(path) for path in images.glob("*/*.JPEG"))
    own = json.loads((run / "results.json").read_text())
    alpha, beta = (0.2, 0.5) if mixing else (own["alpha"], own["beta"])
    mix, ce, kd = expected(run, alpha, beta)
    names = StoredLogits.load(run / "logits" / "val.safetensors").classnames
    for row, p, of_ce, of_kd in zip(rows, mix, ce, [None] * len(ce) if kd is None else kd, strict=True):
        order = np.argsort(-p)
        found = [row["class"], *(row[f"class_{rank}"] for rank in (2, 3, 4))]
        given = [float(row["probability"]), *(float(row[f"probability_{rank}"]) for rank in (2, 3, 4))]
        np.testing.assert_allclose(given, p[order], atol=5e-3)  # logits are stored in half precision
        if np.diff(p[order]).max() < -5e-3:
            assert found == [names[c] for c in order]
        assert float(row["ce_probability"]) == pytest.approx(of_ce.max(), abs=5e-3)
        assert (
            row["kd_probability"] == ""
            if of_kd is None
            else float(row["kd_probability"]) == pytest.approx(of_kd.max(), abs=5e-3)
        )
        assert row["error"] == ""


def test_classes_come_with_their_keys_from_the_checkpoints(finished_run, tmp_path):
    run, images = finished_run("LinearProbe_DHO")
    assert main([str(run), str(images), "--csv", str(tmp_path / "out.csv")]) == 0
    classes = {info.key: info.name for info in Run.of(run).classes()}
    assert set(classes) == {path.name for path in images.iterdir() if path.is_dir() and path.name[0] != "."}
    rows = read(tmp_path / "out.csv")
    assert all(classes[row["key"]] == row["class"] for row in rows)


def test_the_data_and_the_teacher_are_not_needed(finished_run, tmp_path):
    run, images = finished_run("CoOp_DHO")
    copy = shutil.copytree(run, tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    config["DATASET"]["ROOT"] = config["TRAINER"]["DHO"]["TEACHER"]["CKPT"] = str(tmp_path / "nowhere")
    (copy / "config.json").write_text(json.dumps(config))
    photo = shutil.copy(next(images.glob("*/*.JPEG")), tmp_path / "photo.jpg")
    a, b = (list(predict(load_run(folder), find_images([str(photo)]))) for folder in (run, copy))
    assert a == b


def test_a_distilled_student_does_not_look_for_what_it_started_from(finished_run, tmp_path):
    run, images = finished_run("Distill_DHO")
    copy, photos = shutil.copytree(run, tmp_path / "run"), find_images([str(images)])
    config = json.loads((copy / "config.json").read_text())
    config["MODEL"]["BACKBONE"]["CKPT"] = str(tmp_path / "nowhere.pth")
    (copy / "config.json").write_text(json.dumps(config))
    a, b = (list(predict(load_run(folder), photos)) for folder in (run, copy))
    assert a == b
    config["MODEL"]["BACKBONE"] |= {"CKPT": "", "PRETRAINED": True}  # the hub's, which no test may ask
    (copy / "config.json").write_text(json.dumps(config))
    assert len(list(predict(load_run(copy), photos))) == len(a)


def test_alpha_and_beta_are_those_that_the_run_chose(finished_run, tmp_path):
    run, _ = finished_run("LinearProbe_DHO")
    copy = shutil.copytree(run, tmp_path / "run")
    results = json.loads((copy / "results.json").read_text())
    (copy / "results.json").write_text(json.dumps(results | {"alpha": 0.3, "beta": 0.7}))
    assert load_run(copy).mixing() == (0.3, 0.7)
    (copy / "results.json").unlink()  # not at its end yet: those of its config
    assert load_run(copy).mixing() == (0.5, 1.0)


def test_batches_and_workers_change_nothing(finished_run):
    run, images = finished_run("VPT_DHO")
    trainer, photos = load_run(run), find_images([str(images)])
    whole = list(predict(trainer, photos))
    for options in ({"batch_size": 3}, {"batch_size": 3, "workers": 2}):
        for one, other in zip(predict(trainer, photos, **options), whole, strict=True):
            assert one.path == other.path
            assert one.best[0].info == other.best[0].info
            assert one.best[0].probability == pytest.approx(other.best[0].probability, abs=1e-5)


def test_damaged_images_are_reported_and_survived(finished_run, tmp_path, capsys):
    run, images = finished_run("LinearProbe_DHO")
    whole = next(images.glob("*/*.JPEG"))
    (tmp_path / "a").mkdir()
    (tmp_path / "a/cut.jpg").write_bytes(whole.read_bytes()[:200])
    (tmp_path / "a/text.png").write_text("no image")
    shutil.copy(whole, tmp_path / "a/whole.jpg")
    assert main([str(run), str(tmp_path / "a"), "--csv", str(tmp_path / "out.csv")]) == 0
    rows = {Path(row["image"]).name: row for row in read(tmp_path / "out.csv")}
    assert rows["whole.jpg"]["error"] == ""
    assert rows["whole.jpg"]["class"]
    said = capsys.readouterr().err
    for name in ("cut.jpg", "text.png"):
        assert rows[name]["error"]
        assert not rows[name]["class"] + rows[name]["probability"] + rows[name]["kd_class"]
        assert f"{name}: cannot be read as an image ({rows[name]['error']})" in said
    assert "2 of 3 images could not be read" in said
    assert "DATASET.UNREADABLE" not in said
    assert main([str(run), str(tmp_path / "a/text.png")]) == 2
    assert "none of the 1 images can be read" in capsys.readouterr().err


def test_the_table_has_both_heads_views_where_there_are_two(finished_run, capsys):
    for trainer, heads in (("LinearProbe_DHO", True), ("CoOp", False)):
        run, images = finished_run(trainer)
        photo = next(images.glob("*/*.JPEG"))
        assert main([str(run), str(photo), "--top", "2"]) == 0
        printed = capsys.readouterr().out.splitlines()
        assert ("KD head" in printed[0]) == heads
        assert str(photo) in printed[2]
        assert len(printed) == 4
        assert printed[2].count("%") == (3 if heads else 1)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Folders of images in folders, beside other files, in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("x.jpg", "a/x.jpg", "a/b/x.jpg", "a/b/y.PNG", "c/[1].webp", "a/.hidden.jpg", "a/.trash/x.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name, "PNG")
    (tmp_path / "a/notes.txt").write_text("no image")
    return tmp_path


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["a"], ["a/x.jpg", "a/b/x.jpg", "a/b/y.PNG"]),
        (["x.jpg", "a/b"], ["x.jpg", "a/b/x.jpg", "a/b/y.PNG"]),
        (["**/x.jpg"], ["a/b/x.jpg", "a/x.jpg", "x.jpg"]),
        (["?/*.jpg", "c/[1].webp"], ["a/x.jpg", "c/[1].webp"]),
        (["a/x.jpg", "a", "a/x.jpg"], ["a/x.jpg", "a/b/x.jpg", "a/b/y.PNG"]),
        (["a/b/x.jpg", "x.jpg", "c", "a/x.jpg"], ["a/b/x.jpg", "x.jpg", "c/[1].webp", "a/x.jpg"]),
        (["a/notes.txt"], ["a/notes.txt"]),
    ],
)
def test_files_folders_and_patterns(tree, words, found):
    assert list(find_images(words).paths()) == found


@pytest.mark.parametrize("word", ["nowhere", "*.gif", "empty"])
def test_a_word_that_names_nothing_is_an_error(tree, word):
    (tree / "empty").mkdir()
    with pytest.raises(DataError, match=word.replace("*", r"\*")):
        find_images(["a", word])


def test_an_interrupted_prediction_leaves_no_csv(finished_run, tmp_path, monkeypatch):
    run, images = finished_run("LinearProbe_DHO")
    (tmp_path / "out.csv").write_text("old")

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dho_plugin.predict.cells", stop)
    assert main([str(run), str(images), "--csv", str(tmp_path / "out.csv")]) == 130
    assert (tmp_path / "out.csv").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_an_evaluation_s_folder_stands_for_the_run_that_it_evaluated(finished_run, shared_command, tmp_path):
    run, images = finished_run("LinearProbe_DHO")
    flags = ("--eval-only", "--model-dir", str(run))
    line = shared_command("LinearProbe_DHO", tmp_path / "eval", dataset="imagenet_a", flags=flags)
    assert train(line) == 0
    a, b = (list(predict(load_run(folder), find_images([str(images)]))) for folder in (run, tmp_path / "eval"))
    assert a == b


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--top", "0"], "--top is 0"),
        (["--batch-size", "-1"], "--batch-size is -1"),
        (["--alpha", "2"], "ALPHA is 2"),
        (["--epoch", "7"], "model.pth.tar-7"),
        (["--set", "MODEL.BACKBON.NAME", "x"], "MODEL.BACKBONE.NAME"),
    ],
)
def test_slips_are_one_message(finished_run, capsys, words, said):
    run, images = finished_run("LinearProbe_DHO")
    assert main([str(run), str(images), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_run(tmp_path)


def test_a_run_without_weights_or_logits_is_named(finished_run, tmp_path):
    run, _ = finished_run("LinearProbe_DHO")
    shutil.copy(run / "config.json", tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="which classes"):
        load_run(tmp_path)


def test_nothing_of_the_model_is_left_in_training_mode(finished_run):
    trainer = load_run(finished_run("VPT_DHO")[0])
    assert not any(module.training for module in trainer.net.modules())
    assert torch.is_grad_enabled()
