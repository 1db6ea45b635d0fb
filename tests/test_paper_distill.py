"""The paper's Tables 1, 4, 12, 14 and 15: their numbers, their place beside ours, and what is compared with what."""

import csv
import json
import re

import pytest

from dho_plugin.paired import compare
from dho_plugin.paper_distill import TABLE_5, distilled_rows, papers_means
from dho_plugin.results import DISTILLED, find_results, split_distilled
from dho_plugin.tables import main

# The lines of the paper's Table 1 as its text gives them (ResNet-18, then ResNet-50); SSKD and DHKD: section 4.2.
TABLE_1 = """
KD 51.0 - - - - - 61.0 - - - - -
CE - 0.7 1.1 1.8 3.4 8.2 - 11.4 17.3 26.4 36.7 47.0
CE+KD (feature) - 17.1 23.5 28.0 32.2 33.8 - 23.0 32.3 41.3 48.2 54.3
CE+KD (logit) - 50.5 50.6 50.6 51.0 51.2 - 60.4 60.8 61.2 61.6 62.3
SSKD - - - - - - - 55.2 58.1 60.0 62.3 64.0
DHKD - - - - - - - 25.6 34.8 42.7 49.2 55.2
DHO - 51.8 52.4 52.6 53.3 54.5 - 61.0 62.1 62.5 63.7 64.7
DHO-F - 53.7 54.2 54.8 56.2 57.7 - 62.3 63.1 63.9 65.5 66.8
"""
TEACHERS_1 = """
CLIP zero-shot 50.0 - - - - - 60.3 - - - - -
Tip-Adapter-F - 52.0 52.4 53.2 54.0 55.3 - 61.0 61.6 62.5 63.8 65.4
"""
TABLE_12 = """
ViT-B/16 zero-shot 66.7 60.8 46.2 74.0 47.0
ViT-L/14 zero-shot 75.3 68.3 59.2 86.5 74.6
ViT-H zero-shot 83.6 77.2 71.7 92.3 77.4
ViT-B/16 1% ViT-L/14 78.7 70.1 48.0 70.9 41.1
ViT-B/16 10% ViT-L/14 80.8 71.3 47.4 71.7 41.4
ViT-B/16 1% ViT-H/14 81.6 72.6 50.6 65.5 35.6
ViT-B/16 10% ViT-H/14 82.8 73.6 50.7 67.7 37.8
ViT-L/14 1% ViT-H/14 84.6 77.0 61.5 79.9 60.8
ViT-L/14 10% ViT-H/14 85.9 77.8 61.7 82.8 64.4
"""
TABLE_14 = """
DHO (base) 61.7 62.2 62.6 63.8 65.1 58.9 62.2 68.4 73.1 76.5
DHO+NL-Head-CE 61.7 61.9 62.2 63.1 64.8 59.3 62.1 68.0 72.7 76.2
DHO+NL-Head-KD 62.1 62.6 62.9 64.0 65.9 58.3 62.1 67.8 72.4 76.5
DHO+NL-Head-CE+KD 62.0 62.3 62.6 63.8 65.4 59.1 62.2 68.6 72.4 76.5
"""
TABLE_15 = """
DHO (base) 60.64 61.55 65.37
DHO+NL-Head-CE 60.18 61.39 64.91
DHO+NL-Head-KD 60.95 61.76 65.97
DHO+NL-Head-CE+KD 61.66 61.81 65.59
"""
NON_LINEAR = {"DHO (base)": "", "DHO+NL-Head-CE": " (h_CE mlp)", "DHO+NL-Head-KD": " (h_KD mlp)"}
NON_LINEAR["DHO+NL-Head-CE+KD"] = " (h_CE mlp, h_KD mlp)"
TEACHER_H = "ViT-H-14-378-quickgelu (zero-shot)"
AMOUNTS = ("-", "1 shot", "2 shots", "4 shots", "8 shots", "16 shots")
NAMES = {"KD": "KD (logit)", "CE+KD (feature)": "CE + KD (feature)", "CE+KD (logit)": "CE + KD (logit)"}


def numbers(row) -> list[float]:
    return [row.scores[name].mean for name in ("Val", "V2", "Sketch", "R", "A") if row.scores[name]]


def printed_in_table_1(lines: str, names: tuple[str, str]) -> dict:
    """Return the numbers by row and labels; `names` are the rows' names in the blocks of ResNet-18 and ResNet-50."""
    printed = {}
    for line in lines.strip().splitlines():
        name, *values = re.split(r" (?=-(?: |$)|\d)", line)
        for block, six in zip(names, (values[:6], values[6:]), strict=True):
            for labeled, value in zip(AMOUNTS, six, strict=True):
                if value != "-":
                    printed[block.format(NAMES.get(name, name)), labeled] = [float(value)]
    return printed


def test_every_number_of_table_1_is_the_printed_one():
    printed = printed_in_table_1(TABLE_1, ("resnet18 from scratch {}", "dino_resnet50 {}"))
    printed |= printed_in_table_1(TEACHERS_1, ("{} RN50 (block of resnet18)", "{} RN50"))
    rows = distilled_rows("1")
    assert len(rows) == len(printed)
    assert {(row.labels["Method"], row.labels["Labeled"]): numbers(row) for row in rows} == printed


def test_the_papers_few_shot_teacher_stands_behind_ours(tmp_path, capsys):
    write(tmp_path, "TipAdapterF", "Tip-Adapter-F RN50", 60.0, shots=4, teacher=None, unlabeled=False)
    rows = [row for row in shown(capsys, tmp_path, "--paper-table", "1") if row["Method"] == "Tip-Adapter-F RN50"]
    at = next(k for k, row in enumerate(rows) if row["Source"] == "ours")
    assert [(row["Source"], row["Labeled"], row["Val"]) for row in rows[at : at + 2]] == [
        ("ours", "4 shots", "60.0"),
        ("paper", "4 shots", "62.5"),
    ]
    assert all(rows[at][key] == rows[at + 1][key] for key in ("Teacher", "Unlabeled"))


def test_every_number_of_tables_4_and_12_is_the_printed_one():
    printed = [[float(v) for v in re.findall(r"\d+\.\d", line)] for line in TABLE_12.strip().splitlines()]
    assert [numbers(row) for row in distilled_rows("12")] == printed
    low_shot = {tuple(row.labels[k] for k in ("Method", "Labeled")): numbers(row) for row in distilled_rows("4")}
    assert low_shot == {
        ("CLIP zero-shot ViT-H-14-378-quickgelu", "-"): [84.4],
        ("ViT-B/16 DHO", "1%"): [81.6],
        ("ViT-B/16 DHO", "10%"): [82.8],
        ("ViT-L/14@336px DHO", "1%"): [84.6],
        ("ViT-L/14@336px DHO", "10%"): [85.9],
    }


def test_table_5_is_the_papers():
    """78.3, then + 0.2, + 0.3 and + 0.4: each row has one thing more."""
    rows = {row.labels["Method"]: numbers(row) for row in distilled_rows("5")}
    first, *more = (value for (value,) in reversed([rows[f"ViT-B/16{heads} DHO"] for heads in TABLE_5]))
    assert first == 78.3
    assert [round(value - first, 1) for value in more] == [0.2, 0.3, 0.4]
    assert rows["CLIP zero-shot ViT-L/14@336px"] == [75.3]
    assert len(rows) == 5


def printed_by_heads(lines: str) -> dict[str, list[float]]:
    """Return the numbers of a table of non-linear heads by our name of the heads."""
    split = (re.split(r" (?=\d)", line) for line in lines.strip().splitlines())
    return {NON_LINEAR[name]: [float(value) for value in values] for name, *values in split}


def test_every_number_of_tables_14_and_15_is_the_printed_one():
    printed = {}
    for heads, values in printed_by_heads(TABLE_14).items():
        for labeled, value in zip(AMOUNTS[1:], values[:5], strict=True):
            printed[f"resnet18 from scratch{heads} DHO", labeled] = [value]
        assert [row.scores["Test"].mean for row in papers_means()[f"resnet18.tv_in1k{heads} DHO"]] == values[5:]
    for heads, (ce, kd, _) in printed_by_heads(TABLE_15).items():
        for head, value in (("h_CE", ce), ("h_KD", kd)):
            printed[f"resnet18 from scratch{heads} DHO, {head} alone", "16 shots"] = [value]
    rows = distilled_rows("14")
    assert len(rows) == len(printed)
    assert {(row.labels["Method"], row.labels["Labeled"]): numbers(row) for row in rows} == printed


def test_the_papers_heads_stand_behind_ours(tmp_path, capsys):
    """A row of ours and its heads, then the paper's and its heads, for each kind of heads that ours have."""
    for heads in ("", " (h_CE mlp, h_KD mlp)"):
        scores = {"accuracy": 65.0, "ce_head_accuracy": 60.0, "kd_head_accuracy": 61.0}
        write(tmp_path, "Distill_DHO", f"resnet18 from scratch{heads} DHO", metrics={"val": scores})
    rows = shown(capsys, tmp_path, "--paper-table", "14", "--heads")
    for heads, theirs in (("", ("65.1", "60.6", "61.5")), (" (h_CE mlp, h_KD mlp)", ("65.4", "61.7", "61.8"))):
        name = f"resnet18 from scratch{heads} DHO"
        names = (name, f"{name}, h_CE alone", f"{name}, h_KD alone")
        found = [
            (row["Source"], row["Method"], row["Val"])
            for row in rows
            if row["Method"] in names and row["Labeled"] == "16 shots"
        ]
        ours = [("ours", name, value) for name, value in zip(names, ("65.0", "60.0", "61.0"), strict=True)]
        assert found == ours + [("paper", name, value) for name, value in zip(names, theirs, strict=True)]


def test_a_name_is_taken_apart():
    for method in DISTILLED:
        assert split_distilled(f"resnet18 from scratch {method}") == ("resnet18 from scratch", method)


def write(folder, trainer, method, accuracy=50.0, seed=1, shots=16, dataset="imagenet", **changes):
    labels = trainer not in ("Distill_KD", "Distill_KDFeature")
    content = {
        "trainer": trainer, "method": method, "dataset": dataset, "shots": shots if labels else None, "seed": seed,
        "labeled_percent": None, "unlabeled": trainer != "Distill_CE", "config_name": "some",
        "teacher": None if trainer == "Distill_CE" else "RN50 (zero-shot)",
        "metrics": {"val" if dataset == "imagenet" else "test": {"accuracy": accuracy}}, **changes,
    }  # fmt: skip
    run = folder / f"{dataset}{trainer}{seed}{shots}{method}".replace("/", "-")
    run.mkdir(parents=True)
    (run / "results.json").write_text(json.dumps(content))


def shown(capsys, *words) -> list[dict]:
    assert main([*map(str, words), "--format", "csv"]) == 0
    return list(csv.DictReader(capsys.readouterr().out.splitlines()))


def test_the_papers_rows_stand_behind_ours_of_the_same_student_method_and_shots(tmp_path, capsys):
    student = "resnet18 from scratch"
    for trainer, method in (("CE", "CE"), ("DHO", "DHO"), ("CEKD", "CE + KD (logit)"), ("KD", "KD (logit)")):
        write(tmp_path, f"Distill_{trainer}", f"{student} {method}")
    rows = shown(capsys, tmp_path, "--paper-table", "1")
    for k, row in enumerate(rows):
        if row["Source"] == "ours":
            same = [row[key] == rows[k + 1][key] for key in ("Method", "Labeled", "Teacher", "Unlabeled")]
            assert all(same), rows[k : k + 2]
            assert rows[k + 1]["Source"] == "paper"
    order = [row["Method"].removeprefix(f"{student} ") for row in rows if row["Method"].startswith(student)]
    assert list(dict.fromkeys(order)) == [name for name in DISTILLED if name in order]
    first = order.index("CE + KD (logit)")
    assert [row["Labeled"] for row in rows if row["Method"] == f"{student} CE + KD (logit)"] == [
        *AMOUNTS[1:5], "16 shots", "16 shots",
    ]  # fmt: skip
    assert first


def test_of_the_papers_rows_those_that_ours_are_about(tmp_path, capsys):
    write(tmp_path, "Distill_DHO", "dino_resnet50 DHO", shots=4)
    write(tmp_path, "Distill_KD", "dino_resnet50 KD (logit)")
    write(tmp_path, "Distill_DHO", "mobilenetv2_100 from scratch DHO", shots=4)
    write(tmp_path, "ZeroshotCLIP2", "CLIP zero-shot RN50", shots=None, teacher=None, unlabeled=False)
    write(tmp_path, "Distill_DHO", "ViT-B/16 DHO", shots=None, labeled_percent=1.0, teacher=TEACHER_H)
    rows = [row for row in shown(capsys, tmp_path, "--paper-table", "own") if row["Source"] == "paper"]
    assert [(row["Method"], row["Labeled"], row["Val"]) for row in rows] == [
        ("CLIP zero-shot RN50", "-", "60.3"),
        ("ViT-B/16 DHO", "1%", "81.6"),
        ("dino_resnet50 KD (logit)", "-", "61.0"),
        ("dino_resnet50 DHO", "4 shots", "62.5"),
    ]


def test_dho_is_compared_with_every_other_method_seed_by_seed(tmp_path):
    for seed, (dho, ce, kd) in enumerate([(50.0, 40.0, 49.0), (52.0, 41.0, 51.5)]):
        write(tmp_path, "Distill_DHO", "mini-resnet DHO", dho, seed)
        write(tmp_path, "Distill_CE", "mini-resnet CE", ce, seed)
        write(tmp_path, "Distill_KD", "mini-resnet KD (logit)", kd, seed)
        write(tmp_path, "Distill_CE", "mini-resnet CE", 10.0, seed, shots=1)
        write(tmp_path, "Distill_CE", "mini-student CE", 90.0, seed)
    found = compare(find_results([tmp_path]))
    assert [(row.labels["Method"], row.labels["Labeled"], row.labels["Difference"]) for row in found] == [
        ("mini-resnet", "16 shots", "DHO - KD (logit)"),
        ("mini-resnet", "16 shots", "DHO - CE"),
    ]
    assert [row.measures["Val"].mean for row in found] == pytest.approx([0.75, 10.5])
    assert [row.measures["Val"].n for row in found] == [2, 2]


def test_other_heads_are_compared_with_the_usual_ones(tmp_path):
    for seed, (usual, other) in enumerate([(50.0, 51.0), (52.0, 52.5)]):
        write(tmp_path, "Distill_DHO", "mini-resnet DHO", usual, seed)
        write(tmp_path, "Distill_DHO", "mini-resnet (h_CE mlp, h_KD mlp) DHO", other, seed)
        write(tmp_path, "Distill_DHO", "mini-resnet (h_KD mlp) DHO", 60.0, seed, shots=4)  # nothing to compare with
    found = compare(find_results([tmp_path]))
    assert [(row.labels["Method"], row.labels["Labeled"], row.labels["Difference"]) for row in found] == [
        ("mini-resnet", "16 shots", "DHO with h_CE mlp, h_KD mlp - DHO")
    ]
    assert found[0].measures["Val"].mean == pytest.approx(0.75)


def test_means_over_data_sets_stand_below_and_the_papers_beside_them(tmp_path, capsys):
    sets = [f"set{number}" for number in range(10)]
    for number, dataset in enumerate(sets):
        for seed in (1, 2):
            write(tmp_path, "Distill_DHO", "resnet18.tv_in1k DHO", 50.0 + number, seed, dataset=dataset)
    write(tmp_path, "Distill_CE", "resnet18.tv_in1k CE", 30.0, dataset="set3")  # not on all sets: no mean
    rows = shown(capsys, tmp_path, "--mean")
    means = [(row["Labeled"], row["Test"], row["Source"]) for row in rows if row["Dataset"] == "mean of 10"]
    printed = zip(AMOUNTS[1:], ("58.9", "62.2", "68.4", "73.1", "76.5"), strict=True)
    paper = [(labeled, value, "paper") for labeled, value in printed]
    assert means == [*paper[:4], ("16 shots", "54.5", "ours"), paper[4]]
    assert len(rows) == 10 + 1 + 6
    heads = " (h_KD mlp)"
    for dataset in sets:
        write(tmp_path, "Distill_DHO", f"resnet18.tv_in1k{heads} DHO", 40.0, dataset=dataset)
    rows = [
        row for row in shown(capsys, tmp_path, "--mean") if row["Dataset"] == "mean of 10" and heads in row["Method"]
    ]
    assert [row["Test"] for row in rows] == ["58.3", "62.1", "67.8", "72.4", "40.0", "76.5"]


def test_an_average_of_other_sets_than_the_papers_ten_stands_alone(tmp_path, capsys):
    for dataset in ("dtd", "eurosat"):
        write(tmp_path, "Distill_DHO", "resnet18.tv_in1k DHO", dataset=dataset)
    rows = shown(capsys, tmp_path, "--mean")
    assert [row["Dataset"] for row in rows] == ["dtd", "eurosat", "mean of 2"]
