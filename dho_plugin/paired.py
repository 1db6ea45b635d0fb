"""What DHO and unlabeled images change, seed by seed: paired differences and Student's t-test."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scipy.special import stdtr
from tabulate import tabulate

from dho_plugin.results import (
    DISTILLED,
    MAIN_SCORES,
    accuracy,
    base_method,
    family,
    is_distilled,
    is_zero_shot,
    kind,
    labeled_percent,
    score_columns,
    split_distilled,
)
from dho_plugin.rows import describe_labeled, labeled_order, method_order, shown_columns

# (kind of run, the kind that it is compared with, name of the difference).
PAIRS = (
    ("labeled", "base", "DHO labeled - base"),
    ("unlabeled", "base", "DHO unlabeled - base"),
    ("unlabeled", "labeled", "DHO unlabeled - DHO labeled"),
    ("unlabeled", "placebo", "DHO unlabeled - placebo"),
)
NOTE = (
    "Differences in percentage points over the seeds that both have: mean and standard deviation, {} "
    "of a two-sided paired t-test (not corrected for the number of comparisons)."
)


@dataclass(frozen=True)
class Paired:
    """Differences over the n common seeds, in percentage points; std (n - 1) and p are None where they do not exist."""

    n: int
    mean: float | None = None
    std: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None


@dataclass(frozen=True)
class Comparison:
    """One kind of run against another of the same method: its labels, and the differences on Val (or Test) and OOD."""

    labels: dict[str, str]
    measures: dict[str, Paired]


def paired(differences: Sequence[float]) -> Paired:
    """Summarize paired differences; p is two-sided, of t = mean / (std / sqrt(n)) with n - 1 degrees of freedom.

    Args:
        differences: one for each common seed.

    Returns:
        Their summary; without spread (or with one seed) there is no t.
    """
    n = len(differences)
    if n == 0:
        return Paired(0)
    mean, std = statistics.fmean(differences), statistics.stdev(differences) if n > 1 else None
    # equal differences of accuracies in percent differ by rounding only
    p = 2 * float(stdtr(n - 1, -abs(mean) / (std / n**0.5))) if std and std > 1e-9 else None
    return Paired(n, mean, std, min(differences), max(differences), p)


def compare(results: Sequence[dict[str, Any]]) -> list[Comparison]:
    """Compare, method by method, the kinds of runs that are there.

    Args:
        results: what `dho_plugin.results.find_results` returned.

    Returns:
        The comparisons in the table's order, those of each teacher apart.
    """
    methods = defaultdict(list)
    for result in results:
        if not is_zero_shot(result):
            labeled = labeled_order(result.get("shots"), labeled_percent(result))
            order = method_order(result["dataset"], family(result), base_method(result), labeled, 0)
            methods[(order, str(result.get("config_name") or "-"))].append(result)
    kinds = [comparison for key in sorted(methods) for comparison in _compare_kinds(methods[key])]
    return kinds + list(_compare_distilled([result for result in results if is_distilled(result)]))


def compare_runs(
    runs: Sequence[dict[str, Any]],
    others: Sequence[dict[str, Any]],
    labels: dict[str, str],
    every: Sequence[dict[str, Any]] | None = None,
) -> Comparison:
    """Compare some runs with others of the same seeds.

    Args:
        runs: results of one side.
        others: of the other.
        labels: of the comparison.
        every: all that one table is about, which say what its columns are; None for these two sides.
    """
    columns = score_columns([*runs, *others] if every is None else every)
    shown = {name: columns[name] for name in MAIN_SCORES if name in columns} or columns
    return Comparison(labels, {title: paired(_differences(runs, others, key)) for key, title in shown.items()})


def format_comparisons(comparisons: Sequence[Comparison], style: str, decimals: int = 1, *, ranges: bool = True) -> str:
    """Format comparisons as text, with a line that says what the columns are.

    Args:
        comparisons: what `compare` or `widen_comparisons` returned.
        style: tabulate's name of the format.
        decimals: digits after the point.
        ranges: whether the smallest and the largest difference are shown.

    Returns:
        The table, or a line that says there is nothing to compare.
    """
    if not comparisons:
        return "Nothing to compare: no method has runs with and without DHO here."
    labels = [comparison.labels for comparison in comparisons]
    shown = shown_columns(labels, ["Method", "Labeled", "Difference"], ["Teacher", "Config"])
    titles = dict.fromkeys(title for row in comparisons for title in row.measures)
    titles = sorted(titles, key=lambda title: title == "OOD")  # last, as in the table
    parts = ("", " range", " p") if ranges else ("",)
    headers = [*shown, *(f"{title}{part}" for title in titles for part in parts), "Seeds"]
    body = [
        [
            *(row.labels[name] for name in shown),
            *_format_measures([row.measures.get(title, Paired(0)) for title in titles], decimals, ranges),
            _format_seeds(row.measures),
        ]
        for row in comparisons
    ]
    align = ["left"] * len(shown) + ["right"] * (len(headers) - len(shown))
    return (
        tabulate(body, headers, tablefmt=style, disable_numparse=True, colalign=align)
        + "\n\n"
        + NOTE.format("smallest to largest, p" if ranges else "in brackets p")
    )


def _compare_kinds(runs: list[dict[str, Any]]) -> Iterator[Comparison]:
    groups = defaultdict(list)
    for run in runs:
        if kind(run) == "placebo" and not run.get("unlabeled"):
            continue  # its counterpart would be the labeled one
        shared = kind(run) in ("base", "placebo")  # compared with the runs of every teacher
        groups[kind(run), None if shared else run.get("teacher")].append(run)
    first = runs[0]
    of_student = split_distilled(first["method"])[1] if is_distilled(first) else ""
    labels = {
        "Dataset": first["dataset"],
        "Method": base_method(first),
        "Labeled": describe_labeled(first),
        "Config": first.get("config_name") or "-",
    }
    for teacher in sorted({str(teacher) for _, teacher in groups if teacher is not None}):
        for mine, other, name in PAIRS:
            a = groups.get((mine, teacher))
            b = groups.get((other, None if other in ("base", "placebo") else teacher))
            if a and b:
                difference = name.replace("DHO", of_student or "DHO")  # a single head is compared with itself, too
                yield compare_runs(a, b, {**labels, "Difference": difference, "Teacher": teacher}, runs)


def _compare_distilled(runs: list[dict[str, Any]]) -> Iterator[Comparison]:
    """Compare DHO and DHO-F with the methods before them in the table, on the same student and as many labels.

    What has other heads than a student usually has (the paper's Tables 5 and 14) is compared with what has those.
    """
    groups: dict[tuple, dict[Side, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        student, method = split_distilled(run["method"])
        side = Side(method, describe_labeled(run), run.get("teacher"), bool(run.get("unlabeled")))
        groups[run["dataset"], student, run.get("config_name") or "-"][side].append(run)
    for (dataset, student, config), found in sorted(groups.items()):
        every = [run for side in found.values() for run in side]
        labels = {"Dataset": dataset, "Method": student, "Config": config}
        for side, mine in found.items():
            others = DISTILLED[: DISTILLED.index(side.method)] if side.method.startswith("DHO") else ()
            name = side.method if side.unlabeled else f"{side.method} labeled"
            for other in others:
                if (theirs := _counterpart(side, other, found)) is not None:
                    own = {"Labeled": side.labeled, "Difference": f"{name} - {other}", "Teacher": str(side.teacher)}
                    yield compare_runs(mine, found[theirs], {**labels, **own}, every)
        student, _, heads = student.partition(" (h_")
        usual = groups.get((dataset, student, config), {}) if heads else {}
        for side in (side for side in found if side in usual):
            name = f"{side.method} with h_{heads.removesuffix(')')} - {side.method}"
            own = {"Labeled": side.labeled, "Difference": name, "Teacher": str(side.teacher)}
            yield compare_runs(found[side], usual[side], {**labels, "Method": student, **own}, every)


class Side(NamedTuple):
    """What runs have in common that differ in their seed alone."""

    method: str
    labeled: str
    teacher: str | None
    unlabeled: bool


def _counterpart(side: Side, method: str, found: Iterable[Side]) -> Side | None:
    """Return the side of another method with as many labels, or none, and the same teacher, if only zero-shot."""

    def clip(teacher: str | None) -> str:
        return str(teacher).rpartition(" (")[0]

    fitting = [
        other
        for other in found
        if other.method == method and other.labeled in (side.labeled, "-")
        if other.teacher is None or (clip(other.teacher) == clip(side.teacher) and other.unlabeled == side.unlabeled)
    ]
    return max(fitting, key=lambda other: (other.labeled == side.labeled, other.teacher == side.teacher), default=None)


def _differences(runs: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], measure: str) -> list[float]:
    # reversed: of two runs of a seed the first counts, as in the table
    a, b = ({run.get("seed"): accuracy(run, measure) for run in reversed(side)} for side in (runs, others))
    return [a[seed] - b[seed] for seed in a if a[seed] is not None and b.get(seed) is not None]


def _format_measures(measures: Sequence[Paired], decimals: int, ranges: bool) -> Iterator[str]:
    """Yield a cell for the difference, its range and its p; without ranges one cell for difference and p."""
    for found in measures:
        if found.mean is None:
            yield from "---" if ranges else "-"
            continue
        spread = "" if found.std is None else f" ± {found.std:.{decimals}f}"
        p = "-" if found.p is None else "<0.001" if found.p < 0.001 else f"{found.p:.3f}"
        if ranges:
            yield f"{found.mean:+.{decimals}f}{spread}"
            yield "-" if found.n < 2 else f"{found.low:+.{decimals}f} to {found.high:+.{decimals}f}"
            yield p
        else:
            yield f"{found.mean:+.{decimals}f}{spread} ({p})"


def _format_seeds(measures: dict[str, Paired]) -> str:
    counts = [str(found.n) for found in measures.values()]
    return counts[0] if len(set(counts)) == 1 else " / ".join(counts)
