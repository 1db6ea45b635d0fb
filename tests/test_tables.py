"""The table: columns, grouping, statistics against the standard library, order, formats and unusable files."""

import csv
import json
import re
import statistics

import pytest

from dho_plugin.tables import build_rows, find_results, format_table, main

SETS = ("val", "imagenetv2", "imagenet_sketch", "imagenet_r", "imagenet_a")
TEACHER = "mini-teacher (zero-shot)"
PLACEBO = "mini-student (placebo)"


def write(folder, accuracies, **changes):
    """Write one results.json; `accuracies` in the order of SETS, None leaves a set out."""
    values = zip(SETS, accuracies, strict=True)
    result = {
        "trainer": "CoOp_DHO",
        "method": "CoOp + DHO",
        "dataset": "mini",
        "shots": 16,
        "seed": 1,
        "unlabeled": True,
        "teacher": TEACHER,
        "config": {"SEED": 1, "MODEL": {"BACKBONE": {"NAME": "mini-student"}}},
        "config_name": "mini_ep10",
        "metrics": {name: {"accuracy": value, "n": 10} for name, value in values if value is not None},
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(result))


def write_own(folder, dataset="photos", name="ImageFolder", **sets):
    """Write one results.json of a run on other data than ImageNet; accuracies by test set."""
    metrics = {key: {"accuracy": value} for key, value in sets.items()}
    write(folder, [None] * 5, dataset=dataset, metrics=metrics, config={"DATASET": {"NAME": name}})


def write_seeds(folder, runs, **changes):
    for seed, accuracies in runs.items():
        backbone = {"MODEL": {"BACKBONE": {"NAME": "mini-student"}}}
        config = {"SEED": seed, "OUTPUT_DIR": f"out/{seed}", **backbone}
        write(folder / f"seed{seed}", accuracies, **{"seed": seed, "config": config, **changes})


def zero_shot(folder, name, accuracies):
    config = {"MODEL": {"BACKBONE": {"NAME": name}}}
    nothing = dict.fromkeys(("shots", "seed", "teacher"))
    method = f"CLIP zero-shot {name}"
    write(folder, accuracies, trainer="ZeroshotCLIP", method=method, unlabeled=False, config=config, **nothing)


BASE = {"trainer": "CoOp", "method": "CoOp", "teacher": None, "unlabeled": False}


@pytest.fixture
def runs(tmp_path):
    """A full comparison, in folders whose names sort against the table's order."""
    write_seeds(tmp_path / "a", {1: [61, 50, 51, 52, 53]}, teacher=PLACEBO)
    write_seeds(tmp_path / "b", {s: [61 + s, 50 + s, 51, 52, 53 + 2 * s] for s in (1, 2, 3)})
    write_seeds(tmp_path / "c", {1: [60, 50, 51, 52, 53]}, unlabeled=False)
    write_seeds(tmp_path / "d", {1: [50, 40, 41, 42, None]}, **BASE)
    zero_shot(tmp_path / "e", "mini-teacher", [75, 70, 71, 72, 73])
    zero_shot(tmp_path / "f", "mini-student", [47, 40, 41, 42, 43])
    return tmp_path


def rows_of(folder):
    return build_rows(find_results([folder]))


def test_rows_stand_in_the_papers_order(runs):
    rows = rows_of(runs)
    assert [(r.labels["Method"], r.labels["Teacher"], r.labels["Unlabeled"], r.labels["Labeled"]) for r in rows] == [
        ("CLIP zero-shot mini-student", "-", "-", "-"),
        ("CLIP zero-shot mini-teacher", "-", "-", "-"),
        ("CoOp", "-", "-", "16 shots"),
        ("CoOp + DHO", TEACHER, "-", "16 shots"),
        ("CoOp + DHO", TEACHER, "yes", "16 shots"),
        ("CoOp + DHO", PLACEBO, "yes", "16 shots"),
    ]
    assert [row.seeds for row in rows] == [1, 1, 1, 1, 3, 1]


def test_the_student_is_known_by_the_runs_that_adapt_it(tmp_path):
    write_seeds(tmp_path / "run", {1: [60] * 5}, config={"MODEL": {"BACKBONE": {"NAME": "ViT-B/16"}}})
    zero_shot(tmp_path / "x", "RN50 (teacher)", [70] * 5)
    zero_shot(tmp_path / "y", "ViT-B/16", [60] * 5)
    assert [r.labels["Method"][15:] for r in rows_of(tmp_path)[:2]] == ["ViT-B/16", "RN50 (teacher)"]


def test_methods_stand_in_the_papers_order(tmp_path):
    trainers = {
        "Other": "Other",
        "PromptSRC": "PromptSRC",
        "VPT": "VPT-10",
        "CoOp": "CoOp",
        "LinearProbe": "LinearProbe",
    }
    names = [*trainers.items(), ("VPT", "VPT-3")]
    for trainer, method in names:
        write(tmp_path / method, [1] * 5, trainer=trainer, method=method)
        write(tmp_path / f"{method}_DHO", [1] * 5, trainer=f"{trainer}_DHO", method=f"{method} + DHO")
    zero_shot(tmp_path / "zero", "mini-student", [47] * 5)
    ordered = ["LinearProbe", "VPT-3", "VPT-10", "CoOp", "PromptSRC", "Other"]
    expected = [name + added for name in ordered for added in ("", " + DHO")]
    assert [row.labels["Method"] for row in rows_of(tmp_path)] == ["CLIP zero-shot mini-student", *expected]


def test_mean_and_sample_standard_deviation(runs):
    scores = rows_of(runs)[4].scores
    assert list(scores) == ["Val", "V2", "Sketch", "R", "A", "OOD"]
    assert scores["Val"].mean == pytest.approx(63)
    assert scores["Val"].std == pytest.approx(statistics.stdev([62, 63, 64]))
    # OOD is a mean over sets within a seed, then over seeds: 51.5 + 0.75 s
    assert scores["OOD"].mean == pytest.approx(53.0)
    assert scores["OOD"].std == pytest.approx(statistics.stdev([52.25, 53.0, 53.75]))


def test_missing_set_and_single_seed(runs):
    scores = rows_of(runs)[2].scores
    assert scores["A"] is None
    assert scores["OOD"] is None
    assert (scores["Val"].mean, scores["Val"].std) == (50, None)
    line = next(line for line in format_table(rows_of(runs)).splitlines() if line.startswith("CoOp  "))
    assert line.split()[-7:] == ["50.0", "40.0", "41.0", "42.0", "-", "-", "1"]


def test_seed_without_a_set_is_left_out_there_and_named(tmp_path, capsys):
    write_seeds(tmp_path, {1: [60, 50, 50, 50, 50], 2: [62, 54, 54, 54, None]})
    (row,) = rows_of(tmp_path)
    assert row.scores["V2"].mean == 52
    assert row.scores["A"].mean == row.scores["OOD"].mean == 50
    assert "different test sets" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"dataset": "imagenet"},
        {"shots": 4},
        {"unlabeled": False},
        {"teacher": PLACEBO},
        {"config_name": "mini_ep20"},
        {"trainer": "VPT_DHO"},
    ],
)
def test_only_seeds_are_averaged(tmp_path, change):
    write(tmp_path / "a", [60] * 5)
    write(tmp_path / "b", [70] * 5, seed=2, **change)
    assert [row.seeds for row in rows_of(tmp_path)] == [1, 1]


def test_plain(runs):
    lines = format_table(rows_of(runs)).splitlines()
    assert re.split(r"  +", lines[0].strip()) == [
        *("Method", "Labeled", "Teacher", "Unlabeled", "Val", "V2", "Sketch", "R", "A", "OOD", "Seeds")
    ]
    assert "63.0 ± 1.0" in lines[6]
    assert "53.0 ± 0.8" in lines[6]
    assert len(lines) == 2 + 6


def test_markdown(runs):
    lines = format_table(rows_of(runs), "markdown", decimals=2).splitlines()
    assert {line.count("|") for line in lines} == {12}
    assert set(lines[1]) <= set("|-: ")
    assert "| 63.00 ± 1.00 |" in lines[6]


def test_latex(runs):
    write(runs / "g", [1.25] * 5, trainer="X", method="a_b & 5%", teacher=None, unlabeled=False)
    text = format_table(rows_of(runs), "latex")
    assert r"$63.0 \pm 1.0$" in text
    assert r"a\_b \& 5\%" in text
    assert text.startswith(r"\begin{tabular}{llllrrrrrrr}")


def test_csv(runs):
    table = list(csv.DictReader(format_table(rows_of(runs), "csv", decimals=3).splitlines()))
    assert (table[4]["Val"], table[4]["Val std"], table[4]["OOD std"]) == ("63.000", "1.000", "0.750")
    assert (table[2]["A"], table[2]["Val std"], table[2]["Seeds"]) == ("", "", "1")


def test_columns_that_tell_rows_apart_appear_when_needed(tmp_path):
    write(tmp_path / "a", [60] * 5)
    assert format_table(rows_of(tmp_path)).split()[0] == "Method"
    write(tmp_path / "b", [70] * 5, config_name="mini_ep20")
    assert "Config" in format_table(rows_of(tmp_path)).splitlines()[0]
    write(tmp_path / "c", [70] * 5, dataset="imagenet")
    assert format_table(rows_of(tmp_path)).split()[0] == "Dataset"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"trainer": "CoOp", ', "Expecting"),
        ("[]", "not a JSON object"),
        ('{"trainer": "CoOp", "dataset": "mini", "metrics": {}}', "lacks a usable method"),
        ('{"trainer": "C", "dataset": "m", "method": "C", "shots": "16"}', "lacks a usable shots"),
        ('{"trainer": "CoOp", "dataset": "mini", "method": "CoOp", "metrics": {}}', "hold no test set"),
        (
            '{"trainer": "C", "dataset": "m", "method": "C", "metrics": {"val": {"accuracy": NaN}}}',
            "no accuracy for val",
        ),
        ('{"trainer": "C", "dataset": "m", "method": "C", "metrics": {"val": {}}}', "no accuracy for val"),
        ('{"trainer": "C", "dataset": "m", "method": "C", "metrics": {"night": 3}}', "no accuracy for night"),
        ('{"trainer": "C", "dataset": "m", "method": "C", "labeled_percent": "1"}', "lacks a usable labeled_percent"),
    ],
)
def test_unusable_files_are_named_and_skipped(tmp_path, capsys, content, reason):
    write(tmp_path / "good", [60] * 5)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "results.json").write_text(content)
    assert main([str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert re.search(rf"skipping .*bad.results\.json: .*{reason}", captured.err)
    assert "CoOp + DHO" in captured.out


def test_binary_file_is_skipped(tmp_path, capsys):
    write(tmp_path / "good", [60] * 5)
    (tmp_path / "results.json").write_bytes(b"\xff\xfe\x00")
    assert len(rows_of(tmp_path)) == 1
    assert "skipping" in capsys.readouterr().err


def test_differing_configs_in_one_row_are_named(tmp_path, capsys):
    write_seeds(tmp_path, {1: [60] * 5, 2: [61] * 5})
    rows_of(tmp_path)
    assert capsys.readouterr().err == ""
    write(tmp_path / "other", [62] * 5, seed=3, config={"SEED": 3, "OPTIM": {"LR": 0.1}})
    assert rows_of(tmp_path)[0].seeds == 3
    error = capsys.readouterr().err
    assert "OPTIM.LR: 0.0003 there, 0.1 here" in error or "OPTIM.LR: 0.1 there, 0.0003 here" in error
    assert "SEED" not in error


def test_a_run_that_was_evaluated_once_more_counts_where_it_was_trained(tmp_path):
    write(tmp_path / "trained", [60] * 5)
    again = json.loads((tmp_path / "trained" / "results.json").read_text())
    for name, model_dir in (("again", tmp_path / "trained"), ("elsewhere", tmp_path / "no_results_there")):
        (tmp_path / name).mkdir()
        content = {**again, "model_dir": str(model_dir), "dataset": name}
        (tmp_path / name / "results.json").write_text(json.dumps(content))
    assert [row.labels["Dataset"] for row in rows_of(tmp_path)] == ["elsewhere", "mini"]


def test_evaluations_are_joined_under_the_run_that_they_used(tmp_path, capsys):
    write_seeds(tmp_path / "runs", {1: [60] * 5, 2: [62] * 5})
    for seed in (1, 2):
        for number, name in enumerate(SETS[1:]):
            accuracies = [None if name != other else 40.0 + 10 * number + seed for other in SETS]
            trained = str(tmp_path / f"runs/seed{seed}")
            write(
                tmp_path / "eval" / name / f"seed{seed}", accuracies, dataset=name, model_dir=trained, config_name=name
            )
    assert main([str(tmp_path / "eval"), "--evaluations", "--format", "csv"]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (row["Method"], row["V2"], row["A"], row["OOD"], row["Seeds"]) == ("CoOp + DHO", "41.5", "71.5", "56.5", "2")
    assert "Val" not in row
    assert float(row["V2 std"]) == pytest.approx(statistics.stdev([41, 42]), abs=0.05)
    assert main([str(tmp_path / "eval/imagenet_r"), "--evaluations", "--format", "csv"]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (row["V2"], row["R"], row["OOD"]) == ("", "61.5", "")
    assert main([str(tmp_path / "runs"), "--evaluations"]) == 2
    assert main([str(tmp_path / "eval")]) == 2  # they are no runs of their own


def test_an_evaluation_on_other_classes_or_of_a_part_of_the_model_stands_by_itself(tmp_path, capsys):
    """Base to new: CoOp's prompts of a DHO run on the new classes, beside the run itself on the base classes."""
    base, new = ({"DATASET": {"NAME": "ImageNet", "SUBSAMPLE_CLASSES": which}} for which in ("base", "new"))
    write(tmp_path / "run", [60] * 5, config=base)
    model = {"model_dir": str(tmp_path / "run")}
    write(tmp_path / "eval/base", [None, 50, None, None, None], config=base, **model)
    write(tmp_path / "eval/new", [None, 30, None, None, None], config=new, **BASE, **model)
    assert main([str(tmp_path / "eval"), "--evaluations", "--format", "csv"]) == 0
    printed = capsys.readouterr()
    whole, prompts = csv.DictReader(printed.out.splitlines())
    assert (whole["Method"], whole["V2"], whole["imagenetv2 (new classes)"]) == ("CoOp + DHO", "50.0", "")
    learned = "CoOp (what CoOp + DHO learned)"  # else it would stand in the row of CoOp itself
    assert (prompts["Method"], prompts["V2"], prompts["imagenetv2 (new classes)"]) == (learned, "", "30.0")
    assert "twice" not in printed.err
    write(tmp_path / "eval/other", [None, 31, None, None, None], config=new, **BASE, **model)
    assert main([str(tmp_path / "eval"), "--evaluations"]) == 0
    assert "imagenetv2 (new classes) of" in capsys.readouterr().err


def test_evaluations_find_their_runs_where_all_was_moved(tmp_path, capsys):
    write(tmp_path / "old/run", [60] * 5)
    model = {"model_dir": str(tmp_path / "old/run"), "model_dir_from_here": "../../run"}
    write(tmp_path / "old/eval/v2", [None, 50, None, None, None], **model)
    (tmp_path / "old").rename(tmp_path / "new")
    assert main([str(tmp_path / "new"), "--format", "csv"]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert row["Val"] == "60.0"
    assert main([str(tmp_path / "new"), "--evaluations", "--format", "csv"]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert row["V2"] == "50.0"


def test_prompts_of_a_dho_run_never_join_coops_own(tmp_path, capsys):
    for seed in (1, 2, 3):
        for folder, words, accuracy in (("dho", {}, 80), ("coop", BASE, 70)):
            run = tmp_path / f"runs/{folder}{seed}"
            write(run, [60] * 5, seed=seed, **words)
            scores = [None, accuracy + seed, None, None, None]
            write(tmp_path / f"eval/{folder}{seed}", scores, seed=seed, **BASE, model_dir=str(run))
    assert main([str(tmp_path / "eval"), "--evaluations", "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert {(row["Method"], row["V2"], row["Seeds"]) for row in rows} == {
        ("CoOp", "72.0", "3"),
        ("CoOp (what CoOp + DHO learned)", "82.0", "3"),
    }
    assert main([str(tmp_path / "eval"), "--evaluations", "--heads", "--wide", "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert sorted(row["V2, 16 shots"] for row in rows) == ["72.0", "82.0"]  # without Val or OOD, what there is


def test_two_zero_shot_classifiers_of_a_clip_have_two_names(tmp_path, capsys):
    zero_shot(tmp_path / "one", "ViT-B/16", [60] * 5)
    result = json.loads((tmp_path / "one/results.json").read_text())
    (tmp_path / "two").mkdir()
    (tmp_path / "two/results.json").write_text(json.dumps(result | {"trainer": "ZeroshotCLIP2"}))
    assert main([str(tmp_path), "--format", "csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    names = ["CLIP zero-shot ViT-B/16", "CLIP zero-shot ViT-B/16 (templates)"]
    assert sorted(row["Method"] for row in rows) == names
    assert main([str(tmp_path / "two"), "--format", "csv"]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert row["Method"] == names[0]


def columns_of(folder, *words, capsys):
    """Return the number columns of the printed table, and its cells by row."""
    assert main([str(folder), "--format", "csv", *words]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    labels = {"Dataset", "Method", "Labeled", "Teacher", "Unlabeled", "Config", "Seeds"}
    return [name for name in rows[0] if name not in labels and not name.endswith(" std")], rows


def test_other_data_has_the_column_test_then_further_sets_by_name(tmp_path, capsys):
    write_own(tmp_path / "a", sketches=50.0, test=80.0, night=60.0, validation=99.0)
    columns, (row,) = columns_of(tmp_path, capsys=capsys)
    assert columns == ["Test", "night", "sketches"]
    assert (row["Test"], row["night"], row["sketches"]) == ("80.0", "60.0", "50.0")
    write_own(tmp_path / "b", dataset="dtd", name="DescribableTextures", test=40.0)
    columns, rows = columns_of(tmp_path, capsys=capsys)
    assert columns == ["Test", "night", "sketches"]
    assert [(row["Dataset"], row["Test"], row["night"]) for row in rows] == [
        ("dtd", "40.0", ""),
        ("photos", "80.0", "60.0"),
    ]
    assert "80.0     60.0        50.0" in format_table(rows_of(tmp_path))


def test_validation_images_in_the_place_of_test_are_one_column(tmp_path, capsys):
    write_own(tmp_path, val=70.0)
    assert columns_of(tmp_path, capsys=capsys)[0] == ["Val"]
    assert columns_of(tmp_path, capsys=capsys)[1][0]["Val"] == "70.0"


@pytest.mark.parametrize("name", ["ImageNet", None])
def test_imagenet_keeps_all_its_columns_whatever_was_scored(tmp_path, capsys, name):
    config = {"DATASET": {"NAME": name}} if name else {}
    write(tmp_path, [70, None, None, None, None], config=config)
    assert columns_of(tmp_path, capsys=capsys)[0] == ["Val", "V2", "Sketch", "R", "A", "OOD"]


def test_several_data_sets_in_one_table(tmp_path, capsys):
    write(tmp_path / "a", [70, 60, 50, 40, 30], config={"DATASET": {"NAME": "ImageNet"}})
    write_own(tmp_path / "b", test=80.0, night=60.0, Sketch=55.0)
    columns, (first, second) = columns_of(tmp_path, capsys=capsys)
    assert columns == ["Test", "Val", "V2", "Sketch", "R", "A", "OOD", "Sketch (set)", "night"]
    assert [first[name] for name in columns] == ["", "70.0", "60.0", "50.0", "40.0", "30.0", "45.0", "", ""]
    assert [second[name] for name in columns] == ["80.0", "", "", "", "", "", "", "55.0", "60.0"]


def test_the_mean_of_the_shifted_sets_needs_all_four(tmp_path, capsys):
    shifted = dict(zip(SETS[1:], (10.0, 20.0, 30.0, 40.0), strict=True))
    write_own(tmp_path, test=80.0, **shifted)
    columns, (row,) = columns_of(tmp_path, capsys=capsys)
    assert (columns, row["OOD"]) == (["Test", "V2", "Sketch", "R", "A", "OOD"], "25.0")
    del shifted["imagenet_a"]
    write_own(tmp_path, test=80.0, **shifted)
    assert columns_of(tmp_path, capsys=capsys)[0] == ["Test", "V2", "Sketch", "R"]


def test_a_run_scored_on_validation_images_alone_is_no_row(tmp_path, capsys):
    write_own(tmp_path, validation=80.0)
    assert main([str(tmp_path)]) == 2
    assert "its metrics hold no test set" in capsys.readouterr().err


def test_percentages_are_rows_of_their_own_behind_the_shots(tmp_path):
    amounts = [(-1, 10.0), (4, None), (1, None), (-1, 1.0), (-1, None), (16, 0), (-1, 2.5)]
    for number, (shots, percent) in enumerate(amounts):
        write_seeds(tmp_path / str(number), {s: [60] * 5 for s in (1, 2)}, shots=shots, labeled_percent=percent)
    rows = rows_of(tmp_path)
    assert [row.labels["Labeled"] for row in rows] == ["all", "1 shot", "4 shots", "16 shots", "1%", "2.5%", "10%"]
    assert {row.seeds for row in rows} == {2}


def test_a_model_that_learned_nothing_has_no_labeled_images(tmp_path):
    zero_shot(tmp_path, "mini-student", [47] * 5)
    content = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps({**content, "labeled_percent": 1.0}))
    assert rows_of(tmp_path)[0].labels["Labeled"] == "-"


def test_runs_from_before_percentages_are_the_same_rows(tmp_path):
    write(tmp_path / "a", [60] * 5)
    write(tmp_path / "b", [62] * 5, seed=2, labeled_percent=None)
    assert [(row.seeds, row.labels["Labeled"]) for row in rows_of(tmp_path)] == [(2, "16 shots")]


def test_a_model_that_was_evaluated_on_other_data(tmp_path, capsys):
    """The column of the data set that it was trained on is not overwritten by another one's."""
    trained = tmp_path / "runs/photos"
    write_own(trained, test=80.0)
    for dataset, accuracy in (("photos", 81.0), ("holiday", 60.0)):
        folder = tmp_path / "eval" / dataset
        write_own(folder, dataset=dataset, test=accuracy, night=accuracy - 10)
        content = json.loads((folder / "results.json").read_text())
        (folder / "results.json").write_text(json.dumps({**content, "model_dir": str(trained)}))
    columns, (row,) = columns_of(tmp_path / "eval", "--evaluations", capsys=capsys)
    assert columns == ["Test", "holiday", "night"]
    assert (row["Test"], row["holiday"]) == ("81.0", "60.0")


def test_a_seed_counts_once(tmp_path, capsys):
    write_seeds(tmp_path / "a", {1: [60] * 5, 2: [62] * 5})
    write_seeds(tmp_path / "copy", {1: [60] * 5})
    rows = build_rows(find_results([tmp_path, tmp_path / "a"]))
    assert [row.seeds for row in rows] == [2]
    assert "seed 1 stands twice" in capsys.readouterr().err


def test_nothing_to_show(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    assert "no results.json below" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{")
    assert main([str(tmp_path)]) == 2
    assert "1 found, all skipped" in capsys.readouterr().err


def test_command_line(runs, capsys):
    assert main([str(runs), "--format", "markdown", "--decimals", "3"]) == 0
    assert "63.000 ± 1.000" in capsys.readouterr().out
    for words in (["--format", "html"], ["--paired", "--format", "csv"]):
        with pytest.raises(SystemExit) as stopped:
            main([str(runs), *words])
        assert stopped.value.code == 2


def test_own_data_of_one_name_in_two_places_are_two_data_sets(tmp_path, capsys):
    for place, accuracy in (("/a", 10.0), ("/b", 30.0)):
        config = {"DATASET": {"NAME": "ImageFolder", "ROOT": place, "PREFIX": "photos"}}
        write(
            tmp_path / place[1:], [None] * 5, dataset="photos", metrics={"test": {"accuracy": accuracy}}, config=config
        )
    write_own(tmp_path / "other", dataset="holidays", test=50.0)
    names = [row.labels["Dataset"] for row in rows_of(tmp_path)]
    assert names == ["holidays", "photos in /a", "photos in /b"]
    assert "stands twice" not in capsys.readouterr().err


def test_own_data_called_mini_are_not_the_mini_world(tmp_path):
    write(tmp_path / "world", [50.0] * 5)
    config = {"DATASET": {"NAME": "ImageFolder", "ROOT": "/a", "PREFIX": "mini"}}
    write(tmp_path / "own", [None] * 5, metrics={"test": {"accuracy": 10.0}}, config=config)
    assert [row.labels["Dataset"] for row in rows_of(tmp_path)] == ["mini", "mini in /a"]


def test_images_that_do_not_count_are_named(tmp_path, capsys):
    write(tmp_path, [None] * 5, metrics={"val": {"accuracy": 50.0, "n": 9, "n_unreadable": 4}})
    assert len(rows_of(tmp_path)) == 1
    assert "4 images of val could not be read and do not count" in capsys.readouterr().err


def test_runs_on_data_that_changed_between_them_are_named(tmp_path, capsys):
    for seed, digest in ((1, "a"), (2, "a"), (3, "b")):
        data = {"labeled": [4, f"shots of {seed}"], "training": [9, digest], "test": [5, "t"]}
        write_seeds(tmp_path, {seed: [60] * 5}, data=data)
    write(tmp_path / "older", [60] * 5, seed=4)
    assert len(rows_of(tmp_path)) == 1
    err = capsys.readouterr().err
    assert err.count("on data that changed between them") == 1
    assert "seed3" in err


def test_runs_on_half_of_the_classes_are_rows_of_their_own(tmp_path):
    for which, accuracy in (("all", 50.0), ("base", 70.0), ("new", 30.0)):
        write(tmp_path / which, [accuracy] * 5, config={"DATASET": {"NAME": "ImageNet", "SUBSAMPLE_CLASSES": which}})
    rows = {row.labels["Dataset"]: row.scores["Val"].mean for row in rows_of(tmp_path)}
    assert rows == {"mini": 50.0, "mini (base classes)": 70.0, "mini (new classes)": 30.0}
