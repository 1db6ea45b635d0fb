"""Scoring stored logits again: alpha and beta are changed afterwards, without the model."""

import json
import re
import shutil
import statistics

import pytest
import torch

from dho_plugin import ood
from dho_plugin.engine.evaluator import TestLogits, score
from dho_plugin.train import main as train


@pytest.fixture
def run(tmp_path):
    g = torch.Generator().manual_seed(0)
    for name in ("imagenet_a", "val", "imagenetv2", "imagenet_sketch", "imagenet_r", "validation"):
        ce, kd = torch.randn(2, 60, 5, generator=g)
        labels = torch.randint(0, 5, (60,), generator=g)
        TestLogits(ce, kd, labels, tuple("abcde")).save(tmp_path / "run" / "logits" / f"{name}.safetensors")
    (tmp_path / "run" / "results.json").write_text(json.dumps({"alpha": 0.5, "beta": 1.0}))
    return tmp_path / "run"


def test_a_run_is_scored_at_its_own_mixing_by_default(run):
    found = ood.rescore(run)
    assert list(found) == ["val", "imagenetv2", "imagenet_sketch", "imagenet_r", "imagenet_a"]
    assert found["val"] == score(TestLogits.load(run / "logits" / "val.safetensors"), 0.5, 1.0)


def test_own_data_comes_with_its_test_images_first_and_further_sets_by_name(run):
    for name in ("val", "imagenet_r", "imagenet_a", "imagenetv2", "imagenet_sketch"):
        (run / "logits" / f"{name}.safetensors").rename(run / "logits" / f"x_{name}.safetensors")
    for old, new in (("x_val", "sketches"), ("x_imagenet_a", "test"), ("x_imagenetv2", "night")):
        (run / "logits" / f"{old}.safetensors").rename(run / "logits" / f"{new}.safetensors")
    found = ood.rescore(run)
    assert list(found) == ["test", "night", "sketches", "x_imagenet_r", "x_imagenet_sketch"]
    assert "OOD" not in ood.table(found)


def test_alpha_and_beta_may_be_changed(run, capsys, tmp_path):
    assert ood.main(["--alpha", "0.4", "--beta", "0.5", str(run), "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert "alpha 0.4, beta 0.5" in printed
    content = json.loads((tmp_path / "out.json").read_text())[str(run)]
    assert content["imagenet_r"] == score(TestLogits.load(run / "logits" / "imagenet_r.safetensors"), 0.4, 0.5)
    mean = sum(content[name]["accuracy"] for name in ood.SHIFTED) / 4
    assert float(re.search(r"OOD mean\s+([\d.]+)", printed)[1]) == pytest.approx(mean, abs=0.05)


def test_the_search_looks_at_the_validation_split_alone(run, capsys):
    stored = TestLogits.load(run / "logits" / "validation.safetensors")
    alpha, beta = ood.search(run)
    best = max(
        score(stored, a / 10, b)["accuracy"] for a in range(11) for b in (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
    )
    assert score(stored, alpha, beta)["accuracy"] == pytest.approx(best)
    (run / "logits" / "validation.safetensors").unlink()
    assert ood.main(["--search", str(run)]) == 2
    assert "never chosen on test data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [(["--alpha", "1.5"], "ALPHA is 1.5"), (["--beta", "0"], "BETA is 0"), ([], "")],
)
def test_bad_input_is_one_message(run, capsys, options, said, tmp_path):
    folder = run if options else tmp_path / "nowhere"
    assert ood.main([*options, str(folder)]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_the_runs_own_numbers_come_back(command, tmp_path):
    assert train(command("CoOp_DHO", "run")) == 0
    assert ood.rescore(tmp_path / "run") == json.loads((tmp_path / "run" / "results.json").read_text())["metrics"]


def test_several_runs_end_with_one_table_over_their_seeds(run, tmp_path, capsys):
    labels = {"trainer": "VPT_DHO", "method": "VPT-3 + DHO", "dataset": "mini", "shots": 4, "teacher": "some"}
    labels["metrics"] = {"val": {"accuracy": 1.0}}
    for seed in (1, 2):
        folder = tmp_path / f"seed{seed}"
        shutil.copytree(run, folder)
        (folder / "results.json").write_text(json.dumps({**labels, "seed": seed, "alpha": 0.5 * seed, "beta": 1.0}))
    assert ood.main([*(str(tmp_path / f"seed{seed}") for seed in (1, 2)), "--beta", "0.5"]) == 0
    header, _, row = capsys.readouterr().out.strip().splitlines()[-3:]
    found = [ood.rescore(tmp_path / f"seed{seed}", beta=0.5)["val"]["accuracy"] for seed in (1, 2)]
    assert found[0] != found[1]
    assert header.split()[:3] == ["Method", "Labeled", "Teacher"]
    assert row.startswith("VPT-3 + DHO  4 shots")
    assert f"{statistics.fmean(found):.1f} ± {statistics.stdev(found):.1f}" in row
    assert row.endswith(" 2")
    assert ood.main([str(run)]) == 0
    assert "Seeds" not in capsys.readouterr().out
    later = {**labels, "seed": 1, "alpha": 0.5, "beta": 1.0, "model_dir": str(run)}  # an evaluation of a run
    for name in ("seed1", "seed2"):
        (tmp_path / name / "results.json").write_text(json.dumps(later))
    assert ood.main([*(str(tmp_path / f"seed{seed}") for seed in (1, 2))]) == 0
    assert "Seeds" not in capsys.readouterr().out


def test_images_that_could_not_be_read_have_a_column_where_there_are_any():
    row = {"accuracy": 50.0, "ce_head_accuracy": 50.0, "macro_f1": 50.0, "n": 8}
    assert "unreadable" not in ood.table({"val": {**row, "n_unreadable": 0}})
    lines = ood.table({"val": {**row, "n_unreadable": 2}}).splitlines()
    assert lines[0].endswith("unreadable")
    assert lines[2].split()[-1] == "2"


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    assert ood.main([str(tmp_path)]) == 2
    assert "holds no results.json: it is not a finished run's folder" in capsys.readouterr().err
