"""Figures as files: what each command writes, and what it says where there is nothing to draw."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dho_plugin.analysis.case_figures import case_rows
from dho_plugin.analysis.cases import Case
from dho_plugin.analysis.features import read_features, read_linear_evaluation, store_features
from dho_plugin.analysis.style import to_svg
from dho_plugin.analyze import main
from dho_plugin.case_images import run_data, thumbnail
from dho_plugin.engine.evaluator import TestLogits
from dho_plugin.errors import DataError
from dho_plugin.exhibits import _gains, features
from dho_plugin.findings import find
from dho_plugin.results import find_results
from dho_plugin.run_features import compute_features
from dho_plugin.train import main as train


@pytest.fixture
def run(write_run, tmp_path):
    """A run with two heads, validation images, curves and recorded gradients."""
    return write_run(tmp_path / "run", {"test": 40}, 4, validation=20)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("heads", ("accuracy", "confidence", "reliability", "agreement", "error-reduction")),
        ("surface", ("surface",)),
        ("gradients", ("gradients-cosines", "gradients-inner", "gradients-discrepancy", "gradients-eigenvalue")),
    ],
)
def test_each_figure_is_a_pdf_and_a_png(run, tmp_path, capsys, kind, names):
    out = tmp_path / "figures"
    assert main([kind, str(run), "--out", str(out)]) == 0
    found = {path.name for path in out.iterdir()}
    assert found == {f"vpt-3-dho-unlabeled-{name}.{ending}" for name in names for ending in ("pdf", "png")}
    lines = capsys.readouterr().out.splitlines()[-len(found) :]  # a table may stand before them
    assert set(lines) == {str(out / name) for name in found}
    for path in out.iterdir():
        if path.suffix == ".pdf":
            assert path.read_bytes().startswith(b"%PDF")
        else:
            assert Image.open(path).width > 600


def test_figures_are_the_same_each_time(run, tmp_path):
    for out in ("a", "b"):
        assert main(["surface", str(run), "--out", str(tmp_path / out)]) == 0
    for name in ("vpt-3-dho-unlabeled-surface.pdf", "vpt-3-dho-unlabeled-surface.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_curves_over_shots_and_gains_over_data_sets(write_run, tmp_path, capsys):
    for dataset in ("one", "two"):
        for shots in (1, 4):
            for heads in (1, 2):
                folder = tmp_path / f"runs/{dataset}/{shots}/{heads}"
                write_run(folder, {"test": 30}, 4, heads=heads, shots=shots, dataset=dataset)
                if (dataset, shots) != ("one", 1):  # the curves of two rows are enough
                    shutil.rmtree(folder / "tensorboard")
    assert main(["curves", str(tmp_path / "runs"), "--out", str(tmp_path / "figures")]) == 0
    written = capsys.readouterr().out
    for name in ("shots-one.pdf", "shots-two.png", "gains.pdf", "losses.png", "cost-seconds.pdf"):
        assert name in written


def test_gains_are_over_methods_at_the_most_labels(tmp_path):
    def write(dataset, trainer, method, accuracy, shots=16, teacher="RN50 (zero-shot)", sets=("test",), **more):
        folder = tmp_path / f"{dataset}{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        facts = {
            "trainer": trainer,
            "method": method,
            "dataset": dataset,
            "shots": shots,
            "teacher": teacher,
            "seed": 1,
        }
        metrics = {name: {"accuracy": accuracy} for name in sets}
        (folder / "results.json").write_text(json.dumps({**facts, "config_name": "c", "metrics": metrics, **more}))

    for dataset, sets in (("dtd", ("test",)), ("imagenet", ("val",))):
        write(dataset, "Distill_DHO", "resnet18 DHO", 60.0, sets=sets)
        write(dataset, "Distill_CEKD", "resnet18 CE + KD (logit)", 57.0, sets=sets)
        write(dataset, "Distill_KD", "resnet18 KD (logit)", 50.0, None, sets=sets)
        write(dataset, "Distill_CEKD", "resnet18 CE + KD (logit)", 90.0, 1, sets=sets)  # fewer labels
        write(dataset, "ZeroshotCLIP", "CLIP zero-shot RN50", 70.0, None, None, sets=sets)
        write(dataset, "TipAdapterF", "Tip-Adapter-F RN50", 71.0, 16, None, sets=sets)
        write(dataset, "Distill_DHO", "resnet18 DHO-F", 72.0, 16, "RN50 (few-shot)", sets=sets)
    assert _gains(find(find_results([tmp_path]))) == {"dtd": 3.0, "imagenet": 3.0}
    write("dtd", "Distill_DHO", "mobilenetv2 DHO", 40.0)
    write("dtd", "Distill_CE", "mobilenetv2 CE", 35.0, teacher=None)
    write("dtd", "LinearProbe_DHO", "LinearProbe + DHO", 99.0, labeled_percent=1.0)
    found = _gains(find(find_results([tmp_path])))
    assert found == {"dtd, resnet18": 3.0, "dtd, mobilenetv2": 5.0, "imagenet": 3.0}


def test_features_of_too_few_images_leave_the_other_figures(run, capsys):
    store_features(run, *[(torch.randn(4, 3), torch.tensor([0, 1, 0, 1])) for _ in range(2)])
    (found,) = find(find_results([run]))
    assert list(features(found)) == []
    assert any("t-SNE" in reason for reason in found.left_out)


def test_cases_are_text(run, tmp_path):
    assert main(["cases", str(run), "--out", str(tmp_path), "--count", "2"]) == 0
    text = (tmp_path / "vpt-3-dho-unlabeled-cases.txt").read_text()
    assert text.count("Right: ") == 5
    assert "class 1 <of> 4" in text


@pytest.mark.parametrize(
    ("kind", "reason"), [("surface", "no second head"), ("gradients", "PROBE_GRADIENTS"), ("cases", "no second head")]
)
def test_nothing_to_draw_says_why(write_run, tmp_path, capsys, kind, reason):
    write_run(tmp_path / "run", {"test": 20}, 3, heads=1)
    assert main([kind, str(tmp_path), "--out", str(tmp_path / "figures")]) == 2
    error = capsys.readouterr().err
    assert f"{kind}: nothing to draw" in error
    assert reason in error
    assert not (tmp_path / "figures").exists()


def test_features_of_a_trained_run(shared_command, tmp_path, capsys):
    line = shared_command("LinearProbe_DHO", tmp_path / "run", "OPTIM.MAX_EPOCH", "1", "OPTIM.WARMUP_STEPS", "0")
    assert train(line) == 0
    assert main(["features", str(tmp_path / "run"), "--out", str(tmp_path / "figures"), "--classes", "4"]) == 0
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".pdf", ".png"}
    (train_z, train_y), (test_z, test_y) = read_features(tmp_path / "run")
    assert (len(train_y), len(test_y)) == (24, 8)  # 4 classes with 6 and 2 images: all labeled ones, not the shots only
    score = read_linear_evaluation(tmp_path / "run")
    assert score.n == 8
    assert f"{score.top1:.1f}" in capsys.readouterr().out
    again = compute_features(tmp_path / "run")
    torch.testing.assert_close(again[1][0].half().float(), test_z)
    assert torch.equal(again[0][1], train_y)
    assert train_z.shape == (24, test_z.shape[1])


def test_surface_of_a_trained_run_marks_what_the_run_chose(shared_command, tmp_path):
    options = (
        "OPTIM.MAX_EPOCH",
        "1",
        "OPTIM.WARMUP_STEPS",
        "0",
        "DATASET.NUM_VAL_SHOTS",
        "2",
        "TRAINER.DHO.SEARCH",
        "True",
    )
    assert train(shared_command("LinearProbe_DHO", tmp_path / "run", *options)) == 0
    (found,) = find(find_results([tmp_path / "run"]))
    assert found.surface.best == (found.runs[0]["alpha"], found.runs[0]["beta"])
    assert found.surface.n == 8
    assert main(["surface", str(tmp_path / "run"), "--out", str(tmp_path)]) == 0


def test_a_compact_student_s_row_is_called_by_its_method_alone(write_run, tmp_path):
    """All but one learn from unlabeled images: saying so would only lengthen every legend."""
    run = write_run(tmp_path / "run", {"test": 20}, 4)
    results = json.loads((run / "results.json").read_text())
    changed = {"trainer": "Distill_DHO", "method": "resnet18 DHO", "unlabeled": True}
    (run / "results.json").write_text(json.dumps(results | changed))
    assert [found.name for found in find(find_results([run]))] == ["resnet18 DHO"]


def test_rows_beside_each_other(write_run, tmp_path, capsys):
    for name in ("one", "two"):
        run = write_run(tmp_path / "runs" / name, {"test": 20}, 4, config_name=name)
        labels = torch.arange(4).repeat(10)
        store_features(run, (torch.randn(40, 6), labels), (torch.randn(40, 6), labels.clone()))
    assert main(["gradients", str(tmp_path / "runs"), "--out", str(tmp_path / "figures")]) == 0
    assert main(["features", str(tmp_path / "runs"), "--out", str(tmp_path / "figures")]) == 0
    written = capsys.readouterr().out
    assert "cosine, parameters" in written
    assert "below 0 (%)" in written
    for name in ("all-gradients-cosine-parameters.pdf", "all-gradients-eigenvalue.png", "all-tsne.pdf", "one-tsne.png"):
        assert name in written, name


def test_gradients_on_several_data_sets_have_means(write_run, tmp_path, capsys):
    for dataset, value in (("dtd", 0.2), ("eurosat", -0.4)):
        for name in ("one", "two"):
            run = write_run(tmp_path / "runs" / dataset / name, {"test": 20}, 4, dataset=dataset, method=name)
            records = [{"step": 5 * k, "cosine_parameters": value + (name == "two")} for k in range(8)]
            (run / "gradients.jsonl").write_text("\n".join(map(json.dumps, records)))
    words = ["gradients", str(tmp_path / "runs"), "--out", str(tmp_path / "figures")]
    assert main(words) == 0
    written = capsys.readouterr().out
    lines = {line.split(", mean")[0]: line for line in written.splitlines() if "mean of 2 sets" in line}
    assert set(lines) == {"one, unlabeled", "two, unlabeled"}
    assert lines["one, unlabeled"].split()[-6:] == ["-0.100"] * 4 + ["100", "1"]
    assert lines["two, unlabeled"].split()[-6:] == ["+0.900"] * 4 + ["0", "1"]
    assert "all-mean-gradients-cosine-parameters.pdf" in written
    assert main(["gradients", str(tmp_path / "runs/dtd"), "--out", str(tmp_path / "figures")]) == 0
    assert "mean of" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "runs/dtd/two")  # on one set only: no mean of it
    assert main(words) == 0
    written = capsys.readouterr().out
    assert "one, unlabeled, mean of 2 sets" in written
    assert "two, unlabeled, mean" not in written


def test_pictured_cases_are_the_images_of_the_run_s_own_data(shared_command, tmp_path, capsys):
    line = shared_command("LinearProbe_DHO", tmp_path / "run", "OPTIM.MAX_EPOCH", "1", "OPTIM.WARMUP_STEPS", "0")
    assert train(line) == 0
    root = line[line.index("--root") + 1]
    (found,) = find(find_results([tmp_path / "run"]))
    items = run_data(found, root).test
    labels = TestLogits.load(tmp_path / "run" / "logits" / "val.safetensors").labels
    assert [item.label for item in items] == labels.tolist()
    picture = np.asarray(thumbnail(items[3].impath))  # 40 x 32 pixels: the middle 32 of each line
    middle = Image.open(items[3].impath).convert("RGB").crop((4, 0, 36, 32)).resize((72, 72), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(picture, np.asarray(middle))
    with pytest.raises(DataError, match="are not those of"):
        run_data(find(find_results([tmp_path / "run"]))[0], str(shared_root(shared_command, classes=5)))


def shared_root(shared_command, classes):
    line = shared_command("LinearProbe_DHO", "nothing", classes=classes)
    return line[line.index("--root") + 1]


def test_case_figure_shows_image_and_answers(tmp_path):
    case = Case(7, "a cat", {"CE head": [("a dog", 60.0), ("a cat", 30.0)], "mix": [("a cat", 55.0), ("a dog", 40.0)]})
    svg = to_svg(case_rows([(Image.new("RGB", (96, 96), "red"), case)] * 2), "x", "cases")
    for text in (">a cat<", ">a dog 60<", ">a cat 55<", ">CE head (%)<", ">mix (%)<", "data:image/png;base64,"):
        assert text in svg
