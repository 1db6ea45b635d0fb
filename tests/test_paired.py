"""Paired differences: published t values, scipy's own test, which runs are paired, what is said of missing seeds."""

import json
import random
import re
import statistics

import pytest
from scipy.stats import ttest_rel

from dho_plugin.paired import compare, format_comparisons, paired
from dho_plugin.tables import main

SETS = ("val", "imagenetv2", "imagenet_sketch", "imagenet_r", "imagenet_a")
KINDS = {
    "base": {"trainer": "CoOp", "method": "CoOp", "teacher": None, "unlabeled": False},
    "labeled": {"trainer": "CoOp_DHO", "method": "CoOp + DHO", "teacher": "big (zero-shot)", "unlabeled": False},
    "unlabeled": {"trainer": "CoOp_DHO", "method": "CoOp + DHO", "teacher": "big (zero-shot)", "unlabeled": True},
    "placebo": {"trainer": "CoOp_DHO", "method": "CoOp + DHO", "teacher": "small (placebo)", "unlabeled": True},
}


def result(kind, seed, val, ood=50.0, **changes):
    """One run; the shifted sets lie around `ood`, their mean."""
    accuracies = (val, ood - 3, ood + 1, ood + 1, ood + 1)
    metrics = {name: {"accuracy": value} for name, value in zip(SETS, accuracies, strict=True) if value is not None}
    shared = {"dataset": "mini", "shots": 16, "seed": seed, "config_name": "mini_ep10", "metrics": metrics}
    return {**shared, **KINDS[kind], **changes}


def test_students_of_several_teachers_are_compared_teacher_by_teacher():
    runs = []
    for seed in (1, 2, 3):
        for teacher, gain in (("RN50", 1.0), ("ViT-L", 5.0)):
            shared = {"trainer": "Distill_DHO", "unlabeled": True, "teacher": f"{teacher} (zero-shot)"}
            runs.append(result("base", seed, 50.0 + seed, **shared, method="r18 CE + KD (logit)"))
            runs.append(result("base", seed, 50.0 + seed + gain, **shared, method="r18 DHO"))
            few = shared | {"teacher": f"{teacher} (few-shot)"}
            runs.append(result("base", seed, 50.0 + seed + 2 * gain, **few, method="r18 DHO-F"))
            runs.append(result("base", seed, 60.0, **shared | {"unlabeled": False}, method="r18 DHO"))
    alone = {"trainer": "Distill_CE", "unlabeled": False, "teacher": None, "method": "r18 CE"}
    runs += [result("base", seed, 40.0 + seed, **alone) for seed in (1, 2, 3)]
    found = {(c.labels["Teacher"], c.labels["Difference"]): c.measures["Val"].mean for c in compare(runs)}
    for teacher, gain in (("RN50", 1.0), ("ViT-L", 5.0)):
        zero, few = f"{teacher} (zero-shot)", f"{teacher} (few-shot)"
        assert found.pop((zero, "DHO - CE + KD (logit)")) == pytest.approx(gain)
        assert found.pop((zero, "DHO - CE")) == pytest.approx(10 + gain)
        assert found.pop((zero, "DHO labeled - CE")) == pytest.approx(18)
        assert found.pop((few, "DHO-F - CE")) == pytest.approx(10 + 2 * gain)
        assert found.pop((few, "DHO-F - CE + KD (logit)")) == pytest.approx(2 * gain)
        assert found.pop((few, "DHO-F - DHO")) == pytest.approx(gain)
        assert found.pop((zero, "DHO unlabeled - DHO labeled")) == pytest.approx(gain - 8)
    assert not found


# Critical values of Student's t, two-sided, from the published tables: (degrees of freedom, p, t).
TABLE = [(1, 0.05, 12.706), (2, 0.05, 4.303), (2, 0.01, 9.925), (4, 0.05, 2.776), (9, 0.001, 4.781), (30, 0.10, 1.697)]


@pytest.mark.parametrize(("df", "p", "t"), TABLE)
def test_p_at_the_published_critical_values(df, p, t):
    n = df + 1
    spread = [(-1) ** k * 1.0 for k in range(n)] if n % 2 == 0 else [*((-1) ** k * 1.0 for k in range(n - 1)), 0.0]
    std = statistics.stdev(spread)
    differences = [x + t * std / n**0.5 for x in spread]
    assert paired(differences).p == pytest.approx(p, rel=2e-3)
    assert paired([-x for x in differences]).p == pytest.approx(p, rel=2e-3)


def test_against_another_implementation():
    rng = random.Random(0)
    for n in (2, 3, 5, 20):
        mine, other = ([rng.gauss(60 + shift, 2) for _ in range(n)] for shift in (1, 0))
        differences = [a - b for a, b in zip(mine, other, strict=True)]
        found = paired(differences)
        assert found.p == pytest.approx(ttest_rel(mine, other).pvalue, rel=1e-9)
        assert found.mean == pytest.approx(sum(differences) / n)
        assert (found.low, found.high, found.n) == (min(differences), max(differences), n)


def test_without_spread_or_seeds_there_is_no_p():
    assert paired([]) == paired(())
    assert paired([]).mean is None
    assert (paired([2.0]).mean, paired([2.0]).std, paired([2.0]).p) == (2.0, None, None)
    same = paired([64.3 - 60.3, 64.4 - 60.4, 64.5 - 60.5])
    assert (same.p, same.mean) == (None, pytest.approx(4))


def test_only_common_seeds_are_paired_each_with_its_own():
    runs = [result("base", s, 60 + 10 * s) for s in (1, 2, 3)]
    runs += [result("unlabeled", s, 60 + 10 * s + s) for s in (2, 3, 4)]
    (found,) = compare(runs)
    assert found.labels["Difference"] == "DHO unlabeled - base"
    assert found.measures["Val"].n == 2
    assert (found.measures["Val"].low, found.measures["Val"].high) == (2, 3)
    assert found.measures["OOD"].mean == 0


def test_every_difference_of_a_method_and_no_other():
    runs = [result(kind, s, 60 + place) for place, kind in enumerate(KINDS) for s in (1, 2)]
    other = {"config_name": "other", "trainer": "VPT_DHO", "method": "VPT-3 + DHO"}
    runs += [result("unlabeled", s, 10, **other) for s in (1, 2)]
    runs += [result("base", s, 1, **change) for s in (1, 2) for change in ({"shots": 4}, {"dataset": "imagenet"})]
    found = compare(runs)
    assert {c.labels["Difference"]: c.measures["Val"].mean for c in found} == {
        "DHO labeled - base": 1,
        "DHO unlabeled - base": 2,
        "DHO unlabeled - DHO labeled": 1,
        "DHO unlabeled - placebo": -1,
    }
    assert len(found) == 4


def test_a_seed_that_stands_twice_counts_as_in_the_table():
    runs = [result("base", s, 60) for s in (1, 2)] + [
        result("unlabeled", s, val) for s, val in ((1, 63), (2, 63), (1, 99))
    ]
    (found,) = compare(runs)
    assert (found.measures["Val"].n, found.measures["Val"].high) == (2, 3)


def test_a_placebo_without_unlabeled_images_is_not_compared_with_runs_that_have_them():
    runs = [result("unlabeled", s, 63) for s in (1, 2)] + [result("placebo", s, 60, unlabeled=False) for s in (1, 2)]
    assert compare(runs) == []


def test_methods_in_the_papers_order_and_teachers_apart():
    names = {"trainer": "VPT", "method": "VPT-3"}, {"trainer": "VPT_DHO", "method": "VPT-3 + DHO"}
    runs = [result("base", s, 60) for s in (1, 2)] + [result("base", s, 50, **names[0]) for s in (1, 2)]
    runs += [result("unlabeled", s, 51, **names[1]) for s in (1, 2)]
    runs += [result("unlabeled", s, 60 + len(t), teacher=t) for s in (1, 2) for t in ("b", "aa")]
    found = [(c.labels["Method"], c.labels["Teacher"], c.measures["Val"].mean) for c in compare(runs)]
    assert found == [("VPT-3", "big (zero-shot)", 1), ("CoOp", "aa", 2), ("CoOp", "b", 1)]
    assert "Teacher" in format_comparisons(compare(runs), "simple").splitlines()[0]


def test_formats():
    gains = {1: (4.0, 2.0), 2: (4.5, 3.0), 3: (5.0, 1.0)}
    runs = [result("base", s, 60.0) for s in gains]
    runs += [result("unlabeled", s, 60 + val, 50 + ood) for s, (val, ood) in gains.items()]
    text = format_comparisons(compare(runs), "github")
    header, _, row, *_ = text.splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    titles = [cell.strip() for cell in header.strip("|").split("|")]
    assert dict(zip(titles, cells, strict=True)) == {
        "Method": "CoOp", "Labeled": "16 shots", "Difference": "DHO unlabeled - base",
        "Val": "+4.5 ± 0.5", "Val range": "+4.0 to +5.0", "Val p": "0.004",  # t = 4.5 / (0.5 / sqrt 3) = 15.59
        "OOD": "+2.0 ± 1.0", "OOD range": "+1.0 to +3.0", "OOD p": "0.074",  # t = 3.46
        "Seeds": "3",
    }  # fmt: skip
    assert "two-sided paired t-test" in text
    assert "+4.500 ± 0.500" in format_comparisons(compare(runs), "simple", decimals=3)


def test_other_data_is_compared_on_its_test_images():
    def own(kind, seed, accuracy):
        return result(kind, seed, None, dataset="photos", metrics={name: {"accuracy": accuracy} for name in sets})

    sets = ("test", "night")
    runs = [own("base", s, 60.0) for s in (1, 2)] + [own("unlabeled", s, 64.0 + s) for s in (1, 2)]
    header, _, row, *_ = format_comparisons(compare(runs), "simple").splitlines()
    assert header.split()[-6:] == ["Test", "Test", "range", "Test", "p", "Seeds"]
    assert "+5.5 ± 0.7" in row
    mixed = runs + [result("base", s, 60) for s in (1, 2)] + [result("unlabeled", s, 63) for s in (1, 2)]
    header, _, mini, photos, *_ = format_comparisons(compare(mixed), "simple").splitlines()
    titles = [title for title in re.split(r"  +", header.strip()) if not title.endswith((" range", " p"))]
    assert titles[-4:] == ["Val", "Test", "OOD", "Seeds"]
    assert mini.split()[-1] == photos.split()[-1] == "2"
    sets = ("night",)
    runs = [own("base", s, 60.0) for s in (1, 2)] + [own("unlabeled", s, 64.0) for s in (1, 2)]
    assert "night range" in format_comparisons(compare(runs), "simple").splitlines()[0]


def test_percentages_are_not_compared_with_shots():
    percent = {"shots": -1, "labeled_percent": 1.0}
    runs = [result("base", s, 60) for s in (1, 2)] + [result("unlabeled", s, 64, **percent) for s in (1, 2)]
    assert compare(runs) == []
    runs += [result("base", s, 61, **percent) for s in (1, 2)]
    (found,) = compare(runs)
    assert (found.labels["Labeled"], found.measures["Val"].mean) == ("1%", 3)


def test_too_few_seeds_are_dashes():
    one = format_comparisons(compare([result("base", 1, 60), result("unlabeled", 1, 64)]), "simple").splitlines()[2]
    assert one.split()[-7:] == ["+4.0", "-", "-", "+0.0", "-", "-", "1"]
    none = format_comparisons(compare([result("base", 1, 60), result("unlabeled", 2, 64)]), "simple").splitlines()[2]
    assert none.split()[-7:] == ["-", "-", "-", "-", "-", "-", "0"]
    runs = [result("base", s, 60) for s in (1, 2)] + [result("unlabeled", s, 64 + s) for s in (1, 2)]
    del runs[0]["metrics"]["imagenet_a"]
    partly = format_comparisons(compare(runs), "simple").splitlines()[2]
    assert partly.endswith("2 / 1")


def test_nothing_to_compare(tmp_path, capsys):
    assert "Nothing to compare" in format_comparisons(compare([result("base", 1, 60)]), "simple")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "results.json").write_text(json.dumps(result("base", 1, 60)))
    assert main([str(tmp_path), "--paired"]) == 0
    out = capsys.readouterr().out
    assert out.index("CoOp") < out.index("Nothing to compare")
