"""Numbers of labels beside each other: which rows are joined, in which columns, and what has no labels."""

import csv
import io
import json

import pytest

from dho_plugin.tables import main

SETS = ("val", "imagenetv2", "imagenet_sketch", "imagenet_r", "imagenet_a")


def write(folder, method, shots, seed, val, heads=None, student="resnet18", **changes):
    """Store a run on ImageNet's sets; on the shifted ones it has ten points less."""
    names = ("accuracy", "ce_head_accuracy", "kd_head_accuracy")
    metrics = {
        name: dict(zip(names, [value - 10 * (name != "val") for value in (val, *(heads or ()))], strict=False))
        for name in SETS
    }
    teacher = None if method == "CE" else "big (zero-shot)"
    content = {
        "trainer": f"Distill_{method}", "method": f"{student} {method}", "dataset": "mini", "shots": shots,
        "seed": seed, "unlabeled": method != "CE", "teacher": teacher, "config_name": "some", "metrics": metrics,
        **changes,
    }  # fmt: skip
    run = folder / method / f"{shots}shots" / f"seed{seed}"
    run.mkdir(parents=True)
    (run / "results.json").write_text(json.dumps(content))


@pytest.fixture
def runs(tmp_path):
    for seed in (1, 2):
        write(tmp_path, "CE", 16, seed, 30.0 + seed)
        write(tmp_path, "CE", 4, seed, 20.0 + seed)
        write(tmp_path, "DHO", 4, seed, 50.0 + 2 * seed, (40.0, 49.0))
        write(tmp_path, "KD (logit)", None, seed, 45.0 + seed)
    return tmp_path


def cells(text):
    """The lines of a Markdown table as lists."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return [line for line in lines if not line[0].startswith(("-", ":"))]


def test_one_row_a_method_and_the_smaller_number_of_labels_first(runs, capsys):
    assert main([str(runs), "--wide", "--heads", "--format", "markdown"]) == 0
    assert cells(capsys.readouterr().out) == [
        ["Method", "Val, 4 shots", "Val, 16 shots", "OOD, 4 shots", "OOD, 16 shots", "Seeds"],
        ["resnet18 KD (logit)", *["46.5 ± 0.7"] * 2, *["36.5 ± 0.7"] * 2, "2"],  # looks at no label
        ["resnet18 CE", "21.5 ± 0.7", "31.5 ± 0.7", "11.5 ± 0.7", "21.5 ± 0.7", "2"],
        ["resnet18 DHO", "53.0 ± 1.4", "-", "43.0 ± 1.4", "-", "2"],
        ["resnet18 DHO, h_CE alone", "40.0 ± 0.0", "-", "30.0 ± 0.0", "-", "2"],
        ["resnet18 DHO, h_KD alone", "49.0 ± 0.0", "-", "39.0 ± 0.0", "-", "2"],
    ]


def test_comparisons_with_their_p_in_the_same_cell(runs, capsys):
    assert main([str(runs), "--wide", "--paired", "--format", "markdown"]) == 0
    table = cells(capsys.readouterr().out.split("\n\n")[1])
    assert table[0] == ["Method", "Difference", "Val, 4 shots", "OOD, 4 shots", "Seeds"]
    # differences of 6 and 7 over two seeds: t = 13 with one degree of freedom
    assert table[1] == ["resnet18", "DHO - KD (logit)", "+6.5 ± 0.7 (0.049)", "+6.5 ± 0.7 (0.049)", "2"]
    assert table[2][:3] == ["resnet18", "DHO - CE", "+31.5 ± 0.7 (0.010)"]


def test_percentages_come_after_shots_and_all_labels_last_of_these(tmp_path, capsys):
    for shots, changes in ((-1, {}), (-1, {"labeled_percent": 10.0}), (2, {}), (-1, {"labeled_percent": 1.0})):
        folder = tmp_path / str(changes.get("labeled_percent", "shots"))
        write(folder, "CE", shots, 1, 20.0, **changes)
    assert main([str(tmp_path), "--wide", "--format", "csv"]) == 0
    titles = next(csv.reader(io.StringIO(capsys.readouterr().out)))
    assert [title for title in titles if title.startswith("Val,") and not title.endswith("std")] == [
        "Val, 2 shots", "Val, all", "Val, 1%", "Val, 10%"
    ]  # fmt: skip


def test_teachers_that_differ_get_rows_of_their_own(runs, capsys):
    write(runs / "more", "DHO", 4, 1, 60.0, teacher="other (zero-shot)")
    assert main([str(runs), "--wide", "--format", "markdown"]) == 0
    rows = {tuple(row[:2]): row[2] for row in cells(capsys.readouterr().out)}
    assert rows["resnet18 DHO", "other (zero-shot)"] == "60.0"
    assert rows["resnet18 DHO", "big (zero-shot)"] == "53.0 ± 1.4"


def test_where_nothing_needs_labels_no_number_of_them_is_named(tmp_path, capsys):
    write(tmp_path, "KD (logit)", None, 1, 45.0)
    assert main([str(tmp_path), "--wide", "--format", "markdown"]) == 0
    assert cells(capsys.readouterr().out)[0] == ["Method", "Val", "OOD", "Seeds"]


def test_beside_the_papers_table_1(tmp_path, capsys):
    for shots in (1, 16):
        write(tmp_path, "DHO", shots, 1, 50.0 + shots, student="resnet18 from scratch", dataset="imagenet")
    assert main([str(tmp_path), "--wide", "--paper-table", "1", "--format", "markdown"]) == 0
    header, *rows = cells(capsys.readouterr().out)
    shown = [dict(zip(header, row, strict=True)) for row in rows]
    ours, papers = (row for row in shown if row["Method"] == "resnet18 from scratch DHO")
    assert (ours["Source"], ours["Val, 1 shot"], ours["Val, 2 shots"], ours["Val, 16 shots"]) == (
        "ours", "51.0", "-", "66.0"
    )  # fmt: skip
    values = [papers[f"Val, {n} shot{'s' * (n != 1)}"] for n in (1, 2, 4, 8, 16)]
    assert (papers["Source"], values) == ("paper", ["51.8", "52.4", "52.6", "53.3", "54.5"])
    without_labels = next(row for row in shown if row["Method"] == "resnet18 from scratch KD (logit)")
    assert without_labels["Val, 1 shot"] == without_labels["Val, 16 shots"] == "51.0"
