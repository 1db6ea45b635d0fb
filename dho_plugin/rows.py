"""The rows of the table: runs grouped over their seeds, in the order of the paper's Table 13."""

import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from dho_plugin.engine.config import differing_keys, flatten
from dho_plugin.results import (
    DISTILLED,
    KINDS,
    accuracy,
    base_method,
    family,
    is_zero_shot,
    kind,
    labeled_percent,
    score_columns,
    split_distilled,
    unique_seeds,
    warn,
)

FAMILIES = ("LinearProbe", "VPT", "CoOp", "PromptSRC", "Distill")  # others follow by name
_GROUP_KEYS = ("dataset", "trainer", "method", "shots", "unlabeled", "teacher", "config_name")


@dataclass(frozen=True)
class Score:
    """Accuracy of one test set in percent over seeds: mean, and sample standard deviation (n - 1; None for one)."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Row:
    """One line of the table, the runs that differ only in their seed: text and number columns by name, and their count.

    The labels are Dataset, Method, Labeled, Teacher, Unlabeled, Config and Source; a score is None where no run has
    that test set, the number of seeds where it is not known. Rows are sorted by `order`; `runs` are their results.
    """

    labels: dict[str, str]
    scores: dict[str, Score | None]
    seeds: int | None
    order: tuple
    runs: tuple[dict[str, Any], ...] = ()


def build_rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    """Group results over seeds and put them in order.

    Zero-shot student, zero-shot teacher, then, method by method: the base method, with DHO on labeled images, with DHO
    on labeled and unlabeled images, with a placebo teacher.

    Args:
        results: what `dho_plugin.results.find_results` returned.

    Returns:
        One row for each group of runs that differ only in their seed.
    """
    groups = defaultdict(list)
    for result in results:
        same = tuple(json.dumps(result.get(key)) for key in _GROUP_KEYS)
        groups[same, labeled_percent(result)].append(result)
    students = {_backbone(result) for result in results if not is_zero_shot(result)}
    columns = score_columns(results)
    rows = [_make_row(unique_seeds(runs), _order(runs[0], students), columns) for runs in groups.values()]
    return sorted(rows, key=lambda row: row.order)


def method_order(dataset: str, trainer: str, method: str, labeled: tuple[float, int], rank: float) -> tuple:
    """Return what sorts the rows of methods that learn.

    Args:
        dataset: the data set's short name.
        trainer: name of the trainer, without `_DHO`.
        method: name of the method, without DHO; VPT-3 comes before VPT-10.
        labeled: how many images are labeled, as `labeled_order` gives it.
        rank: place among the runs of the method, as in KINDS.
    """
    place = FAMILIES.index(trainer) if trainer in FAMILIES else len(FAMILIES)
    if trainer == "Distill":  # by student, and its methods as in the paper's Table 1
        student, name = split_distilled(method)
        method_place = (*_natural(student), DISTILLED.index(name) if name else len(DISTILLED))
    else:
        method_place = _natural(method)
    return dataset, 1, False, place, trainer, method_place, labeled, rank


def zero_shot_order(dataset: str, method: str, is_teacher: bool) -> tuple:
    """Return what sorts the zero-shot rows: the student first, both before all methods."""
    return dataset, 0, is_teacher, 0, "", _natural(method), labeled_order(None), 0


def labeled_order(shots: int | None, percent: float | None = None) -> tuple[float, int]:
    """Return what sorts rows by how many images are labeled: all, so many a class, so many percent."""
    return percent or 0, 0 if percent else shots or 0


def describe_labeled(result: dict[str, Any]) -> str:
    """Return the words of the column Labeled."""
    shots, percent = result.get("shots"), labeled_percent(result)
    if percent is not None:
        return f"{percent:g}%"
    if shots is None:
        return "-"
    return in_shots(shots) if shots > 0 else "all"


def labeled_amount(words: str) -> tuple[bool, float]:
    """Return what sorts the words of the column Labeled: `1 shot`, `16 shots`, `all`, `1%`, `10%`."""
    number = re.match(r"[\d.]+", words)
    return words.endswith("%"), float(number[0]) if number else math.inf


def in_shots(number: int) -> str:
    """Return a number of shots in words, `1 shot`, `16 shots`."""
    return f"{number} shot{'s' * (number != 1)}"


def shown_columns(labels: Sequence[dict[str, str]], always: Sequence[str], when_needed: Sequence[str]) -> list[str]:
    """Return the label columns to show.

    Args:
        labels: the labels of all rows, which have the same ones.
        always: columns that are shown where rows have them.
        when_needed: columns that are added, one after the other, while rows cannot be told apart without.

    Returns:
        Dataset first where there are several.
    """
    known = set().union(*labels)
    dataset = ["Dataset"] if len({row["Dataset"] for row in labels}) > 1 else []
    shown = [*dataset, *(name for name in always if name in known)]
    for name in (name for name in when_needed if name in known):
        if len({tuple(row[column] for column in shown) for row in labels}) == len(labels):
            break
        shown.append(name)
    return shown


def _natural(name: str) -> tuple:
    return tuple(int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name))


def _backbone(result: dict[str, Any]) -> str | None:
    return dict(flatten(CfgNode(result.get("config") or {}))).get("MODEL.BACKBONE.NAME")


def _order(result: dict[str, Any], students: set[str | None]) -> tuple:
    dataset, method = result["dataset"], base_method(result)
    last = 0, str(result.get("config_name")), str(result.get("teacher"))  # 0: ours, before the paper's
    if is_zero_shot(result):
        # the student is the backbone that the other runs adapt
        return *zero_shot_order(dataset, method, _backbone(result) not in students), *last
    labeled = labeled_order(result.get("shots"), labeled_percent(result))
    return *method_order(dataset, family(result), method, labeled, KINDS.index(kind(result))), *last


def _make_row(runs: list[dict[str, Any]], order: tuple, columns: dict[str, str]) -> Row:
    _warn_of_differences(runs)
    first = runs[0]
    labels = {
        "Dataset": first["dataset"],
        "Method": first["method"],
        "Labeled": describe_labeled(first),
        "Teacher": first.get("teacher") or "-",
        "Unlabeled": "yes" if first.get("unlabeled") else "-",
        "Config": first.get("config_name") or "-",
        "Source": "ours",
    }
    scores = {title: summarize(runs, name) for name, title in columns.items()}
    return Row(labels, scores, len(runs), order, tuple(runs))


def summarize(runs: Sequence[dict[str, Any]], name: str) -> Score | None:
    """Return the runs' accuracy on a test set, or on "OOD"; None where none has it."""
    known = [value for run in runs if (value := accuracy(run, name)) is not None]
    if not known:
        return None
    return Score(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None)


def _warn_of_differences(runs: list[dict[str, Any]]) -> None:
    known = [run for run in runs if run.get("data")]
    for run in known[1:]:
        if any(run["data"].get(part) != known[0]["data"].get(part) for part in ("training", "test")):
            warn(f"one row averages runs on data that changed between them: {known[0]['path']} and {run['path']}")
    first = runs[0]
    for run in runs[1:]:
        keys = [k for k in differing_keys(run.get("config") or {}, first.get("config") or {}) if k[:5] != "SEED:"]
        if keys:
            warn(f"one row averages runs that differ: {first['path']} and {run['path']}: {'; '.join(keys)}")
        if set(first["metrics"]) != set(run["metrics"]):
            warn(f"one row averages runs with different test sets: {first['path']} and {run['path']}")
