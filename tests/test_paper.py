"""The paper's Table 13: its numbers, and their place beside ours."""

import csv
import json

import pytest

from dho_plugin.paper import paper_rows
from dho_plugin.tables import main

# The lines of the paper's table as its text gives them: method, labeled data, Val, V2, Sketch, R, A.
PRINTED = """
CLIP zero-shot ViT-B/16 - 66.7 60.8 46.2 74.0 47.8
Linear evaluation 1% 72.8 64.2 47.0 74.6 48.6
Linear evaluation + DHO 1% 73.4 65.3 48.3 75.8 49.4
Linear evaluation + DHO 1% 74.6 66.4 49.2 76.1 49.8
VPT-3 1.25% 73.6 64.6 47.7 75.2 48.7
VPT-3 + DHO 1.25% 73.6 65.3 48.7 75.9 49.1
VPT-3 + DHO 1.25% 75.1 66.8 50.0 76.9 50.5
VPT-9 + DHO 1.25% 74.0 65.9 48.9 75.8 46.5
VPT-9 + DHO 1.25% 75.6 67.4 50.8 77.3 46.5
CoOp 16-shots 71.5 64.2 48.0 75.2 49.7
CoOp + CasPL 16-shots 71.9 64.3 48.3 76.0 -
CoOp + DHO 16-shots 72.8 65.5 49.3 76.4 49.5
CoOp + DHO 16-shots 73.4 66.2 49.5 77.0 50.5
PromptSRC 16-shots 71.3 64.4 49.6 77.8 50.9
PromptSRC + CasPL 16-shots 72.8 65.7 49.7 77.9 -
PromptSRC + DHO 16-shots 73.0 65.3 49.5 77.8 51.3
PromptSRC + DHO 16-shots 73.6 66.1 49.8 78.1 51.0
"""


def test_every_number_is_the_printed_one():
    lines = []
    for row in paper_rows():
        scores = [row.scores[name] for name in ("Val", "V2", "Sketch", "R", "A")]
        numbers = " ".join("-" if score is None else f"{score.mean:.1f}" for score in scores)
        lines.append(f"{row.labels['Method']} {row.labels['Labeled'].replace(' ', '-')} {numbers}")
    assert lines == PRINTED.strip().splitlines()


def test_gains_over_the_base_methods_are_those_of_the_text():
    """The paper's text: on average over the four shifted sets DHO gains 0.9 (CoOp, labeled images only), and ..."""
    rows = {(row.labels["Method"], row.labels["Unlabeled"]): row for row in paper_rows()}
    gain = rows["CoOp + DHO", "-"].scores["OOD"].mean - rows["CoOp", "-"].scores["OOD"].mean
    assert gain == pytest.approx(0.9, abs=0.05)
    gain = rows["PromptSRC + DHO", "-"].scores["OOD"].mean - rows["PromptSRC", "-"].scores["OOD"].mean
    assert gain == pytest.approx(0.3, abs=0.05)
    assert rows["CoOp + CasPL", "yes"].scores["OOD"] is None


def write(folder, trainer, method, unlabeled=False, dataset="imagenet", backbone="ViT-B/16", **changes):
    teacher = "ViT-L/14@336px (zero-shot)" if trainer.endswith("_DHO") else None
    names = ("val", "imagenetv2", "imagenet_sketch", "imagenet_r", "imagenet_a")
    content = {
        "trainer": trainer, "method": method, "dataset": dataset, "shots": 16, "seed": 1, "unlabeled": unlabeled,
        "teacher": teacher, "config_name": f"{trainer}.yaml", "config": {"MODEL": {"BACKBONE": {"NAME": backbone}}},
        "metrics": {name: {"accuracy": 12.5} for name in names}, **changes,
    }  # fmt: skip
    run = folder / f"{method}{unlabeled}".replace("/", "-")
    run.mkdir(parents=True)
    (run / "results.json").write_text(json.dumps(content))


def test_each_of_the_papers_rows_follows_ours_of_the_same_method(tmp_path, capsys):
    nothing = dict.fromkeys(("shots", "seed"))
    write(tmp_path / "s", "ZeroshotCLIP", "CLIP zero-shot ViT-B/16", **nothing)
    write(tmp_path / "t", "ZeroshotCLIP2", "CLIP zero-shot ViT-L/14@336px", backbone="ViT-L/14@336px", **nothing)
    for trainer, method in (("LinearProbe", "LinearProbe"), ("VPT", "VPT-3"), ("VPT", "VPT-9"), ("CoOp", "CoOp")):
        write(tmp_path, trainer, method)
        write(tmp_path, f"{trainer}_DHO", f"{method} + DHO")
        write(tmp_path, f"{trainer}_DHO", f"{method} + DHO", unlabeled=True)
    assert main([str(tmp_path), "--paper", "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    found = [(row["Source"], row["Method"], row["Unlabeled"]) for row in rows]
    for method, paper in (("LinearProbe", "Linear evaluation"), ("VPT-3", "VPT-3"), ("CoOp", "CoOp")):
        for added, unlabeled in (("", "-"), (" + DHO", "-"), (" + DHO", "yes")):
            place = found.index(("ours", method + added, unlabeled))
            assert found[place + 1] == ("paper", paper + added, unlabeled)
    assert [row[:2] for row in found[:3]] == [
        ("ours", "CLIP zero-shot ViT-B/16"),
        ("paper", "CLIP zero-shot ViT-B/16"),
        ("ours", "CLIP zero-shot ViT-L/14@336px"),
    ]
    assert [row for row in found if row[1] == "VPT-9"] == [("ours", "VPT-9", "-")]  # the paper has no such row
    assert {row["Seeds"] for row in rows if row["Source"] == "paper"} == {"-"}
    assert {row["Teacher"] for row in rows if row["Method"] == "CoOp + DHO"} == {"ViT-L/14@336px (zero-shot)"}
    assert len(rows) == 2 + 12 + 17


def test_the_papers_one_percent_stands_beside_ours_where_there_is_some(tmp_path, capsys):
    percent = {"shots": -1, "labeled_percent": 1.0}
    for folder, changes in (("shots", {}), ("percent", percent)):
        write(tmp_path / folder, "LinearProbe", "LinearProbe", **changes)
        write(tmp_path / folder, "LinearProbe_DHO", "LinearProbe + DHO", unlabeled=True, **changes)
        write(tmp_path / folder, "VPT_DHO", "VPT-3 + DHO", unlabeled=True, **changes)
    assert main([str(tmp_path), "--paper", "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    linear = [(r["Source"], r["Labeled"], r["Unlabeled"]) for r in rows if r["Method"].startswith("Linear")]
    assert linear == [
        ("ours", "16 shots", "-"),
        ("ours", "16 shots", "yes"),
        ("ours", "1%", "-"),
        ("paper", "1%", "-"),
        ("paper", "1%", "-"),
        ("ours", "1%", "yes"),
        ("paper", "1%", "yes"),
    ]
    prompts = [(r["Source"], r["Labeled"]) for r in rows if r["Method"].startswith("VPT-3")]
    assert prompts == [("paper", "1.25%")] * 2 + [("ours", "16 shots"), ("paper", "1.25%"), ("ours", "1%")]
    assert len(rows) == 6 + 17


def test_other_data_sets_have_no_numbers_in_the_paper(tmp_path, capsys):
    write(tmp_path, "CoOp", "CoOp", dataset="mini")
    assert main([str(tmp_path), "--paper"]) == 2
    assert "these runs are on mini" in capsys.readouterr().err
