"""What each head reaches alone, beside the mix, from the runs' own figures."""

import csv
import json
from dataclasses import replace

import pytest

from dho_plugin.head_rows import compare_heads, with_heads
from dho_plugin.paired import compare
from dho_plugin.results import find_results
from dho_plugin.rows import build_rows
from dho_plugin.tables import main


def write(folder, method, accuracies, seed=1, trainer="Distill_DHO", **changes):
    """Store a run; accuracies are those of the mix, of h_CE and of h_KD, or of one head."""
    names = ("accuracy", "ce_head_accuracy", "kd_head_accuracy")
    content = {
        "trainer": trainer, "method": method, "dataset": "dtd", "shots": 4, "seed": seed, "unlabeled": True,
        "teacher": "RN50 (zero-shot)", "config_name": "some",
        "metrics": {"test": dict(zip(names, accuracies, strict=False))}, **changes,
    }  # fmt: skip
    run = folder / trainer / method.replace(" ", "_") / f"seed{seed}"
    run.mkdir(parents=True)
    (run / "results.json").write_text(json.dumps(content))


@pytest.fixture
def rows(tmp_path):
    for seed, scores in enumerate([(50.0, 40.0, 49.0), (53.0, 41.0, 48.0)]):
        write(tmp_path, "resnet18 DHO", scores, seed)
        write(tmp_path, "resnet18 CE", scores[1:2], seed, "Distill_CE", unlabeled=False, teacher=None)
        write(tmp_path, "CoOp + DHO", scores, seed, "CoOp_DHO", unlabeled=False)
    return build_rows(find_results([tmp_path]))


def test_heads_stand_below_the_row_of_both(rows):
    found = [(row.labels["Method"], row.scores["Test"].mean, row.seeds) for row in with_heads(rows)]
    assert found == [
        ("CoOp + DHO", 51.5, 2),
        ("CoOp + DHO, h_CE alone", 40.5, 2),
        ("CoOp + DHO, h_KD alone", 48.5, 2),
        ("resnet18 CE", 40.5, 2),
        ("resnet18 DHO", 51.5, 2),
        ("resnet18 DHO, h_CE alone", 40.5, 2),
        ("resnet18 DHO, h_KD alone", 48.5, 2),
    ]


def test_both_heads_are_compared_with_each_seed_by_seed(rows):
    found = {(row.labels["Method"], row.labels["Difference"]): row.measures["Test"] for row in compare_heads(rows)}
    assert list(found) == [
        ("CoOp", "DHO labeled - its h_CE"),
        ("CoOp", "DHO labeled - its h_KD"),
        ("resnet18", "DHO - its h_CE"),
        ("resnet18", "DHO - its h_KD"),
    ]
    difference = found["resnet18", "DHO - its h_KD"]
    assert (difference.low, difference.high, difference.n) == (1.0, 5.0, 2)


def test_heads_have_the_columns_of_their_row(tmp_path):
    write(tmp_path, "resnet18 DHO", (50.0, 40.0, 49.0), metrics={
        name: {"accuracy": 50.0, "ce_head_accuracy": 40.0, "kd_head_accuracy": 49.0} for name in ("val", "imagenetv2")
    })  # fmt: skip
    (row,) = build_rows(find_results([tmp_path]))
    row = replace(row, scores={title: score for title, score in row.scores.items() if title != "Val"})
    assert all("Val" not in one.scores and one.scores["V2"] is not None for one in with_heads([row]))


def test_a_single_head_is_compared_under_its_own_name(tmp_path):
    for seed in (1, 2):
        for unlabeled, score in ((True, 60.0), (False, 50.0 + seed)):
            folder = tmp_path / str(unlabeled)
            write(folder, "resnet18 CE + KD (logit)", (score,), seed, "Distill_CEKD", unlabeled=unlabeled)
    found = compare(find_results([tmp_path]))
    assert "CE + KD (logit) unlabeled - CE + KD (logit) labeled" in [row.labels["Difference"] for row in found]
    assert not any("DHO" in row.labels["Difference"] for row in found)


def test_a_run_without_the_heads_figures_keeps_its_one_row(tmp_path):
    write(tmp_path, "resnet18 DHO", (50.0, 40.0, 49.0), 1)
    write(tmp_path, "resnet18 DHO", (50.0,), 2)
    rows = build_rows(find_results([tmp_path]))
    assert len(with_heads(rows)) == 1
    assert compare_heads(rows) == []


def test_the_command_shows_them_when_asked(rows, tmp_path, capsys):
    for words, count in (((), 3), (("--heads",), 7)):
        assert main([str(tmp_path), "--format", "csv", *words]) == 0
        assert len(list(csv.DictReader(capsys.readouterr().out.splitlines()))) == count
    assert main([str(tmp_path), "--heads", "--paired"]) == 0
    assert "DHO - its h_KD" in capsys.readouterr().out
