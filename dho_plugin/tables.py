"""One table from the runs' results.json, in the column order of the paper's Table 13."""

import argparse
import csv
import io
import json
import math
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate
from yacs.config import CfgNode

from dho_plugin.engine.config import differing_keys, flatten
from dho_plugin.errors import DataError, run_command

TEST_SETS = {"val": "Val", "imagenetv2": "V2", "imagenet_sketch": "Sketch", "imagenet_r": "R", "imagenet_a": "A"}
SHIFTED = ("imagenetv2", "imagenet_sketch", "imagenet_r", "imagenet_a")
FORMATS = {"plain": "simple", "markdown": "github", "latex": "latex_raw", "csv": ""}
_GROUP_KEYS = ("dataset", "trainer", "method", "shots", "unlabeled", "teacher", "config_name")


@dataclass(frozen=True)
class Score:
    """Accuracy of one test set in percent over seeds: mean, and sample standard deviation (n - 1; None for one)."""

    mean: float
    std: float | None


@dataclass(frozen=True)
class Row:
    """One line of the table, the runs that differ only in their seed: text and number columns by name, and their count.

    The labels are Dataset, Method, Labeled, Teacher, Unlabeled, Config; a score is None where no run has that test set.
    """

    labels: dict[str, str]
    scores: dict[str, Score | None]
    seeds: int


def find_results(directories: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read every results.json below the directories; what cannot be used is named on stderr and skipped.

    Args:
        directories: folders to search.

    Returns:
        The results, each with its file under "path", in the order of their paths.

    Raises:
        DataError: a directory is missing, or no usable result was found.
    """
    directories = [Path(directory) for directory in directories]
    for directory in directories:
        if not directory.is_dir():
            raise DataError(f"there is no folder {directory}; give the folder in which the runs' results.json lie.")
    paths = sorted({path.resolve() for directory in directories for path in directory.rglob("results.json")})
    results = [result for result in map(_read, paths) if result is not None]
    if not results:
        where = ", ".join(map(str, directories))
        raise DataError(
            f"no usable results.json below {where} ({len(paths)} found, all skipped); a finished run writes one."
            if paths
            else f"no results.json below {where}; a finished run writes one into its output folder."
        )
    return results


def build_rows(results: Sequence[dict[str, Any]]) -> list[Row]:
    """Group results over seeds and put them in order.

    Zero-shot student, zero-shot teacher, then, method by method: the base method, with DHO on labeled images, with DHO
    on labeled and unlabeled images, with a placebo teacher.

    Args:
        results: what `find_results` returned.

    Returns:
        One row for each group of runs that differ only in their seed.
    """
    groups = defaultdict(list)
    for result in results:
        groups[tuple(json.dumps(result.get(key)) for key in _GROUP_KEYS)].append(result)
    students = {_backbone(result) for result in results if not _is_zero_shot(result)}
    ordered = sorted(groups.values(), key=lambda runs: _order(runs[0], students))
    return [_make_row(_unique_seeds(runs)) for runs in ordered]


def format_table(rows: Sequence[Row], style: str = "plain", decimals: int = 1) -> str:
    """Format rows as text.

    Args:
        rows: what `build_rows` returned.
        style: "plain", "markdown", "latex" or "csv" (there mean and standard deviation have a column each).
        decimals: digits after the point.

    Returns:
        The table.
    """
    labels = _shown_labels(rows)
    if style == "csv":
        return _format_csv(rows, labels, decimals)
    escape = _escape_latex if style == "latex" else str
    body = [
        [
            *(escape(row.labels[name]) for name in labels),
            *(_format_score(score, style, decimals) for score in row.scores.values()),
            str(row.seeds),
        ]
        for row in rows
    ]
    headers = [*labels, *rows[0].scores, "Seeds"]
    align = ["left"] * len(labels) + ["right"] * (len(headers) - len(labels))
    return tabulate(body, headers, tablefmt=FORMATS[style], disable_numparse=True, colalign=align)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of all runs below some folders.

    Args:
        argv: command line; None reads `sys.argv`.

    Returns:
        0, or 2 where there is nothing to show.
    """
    parser = argparse.ArgumentParser(prog="python -m dho_plugin.tables", description=__doc__)
    parser.add_argument("directories", nargs="+", metavar="DIR", help="folder with runs; every results.json counts")
    parser.add_argument("--format", choices=FORMATS, default="plain")
    parser.add_argument("--decimals", type=int, choices=range(7), default=1, metavar="0-6")
    args = parser.parse_args(argv)
    return run_command(
        lambda: print(format_table(build_rows(find_results(args.directories)), args.format, args.decimals))
    )


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        problem = _find_problem(result)
    except (OSError, ValueError) as error:
        problem = str(error)
    if problem:
        _warn(f"skipping {path}: {problem}")
        return None
    # A run that was evaluated once more counts where it was trained.
    evaluated = result.get("model_dir") and (Path(result["model_dir"]) / "results.json").is_file()
    return None if evaluated else {**result, "path": path}


def _find_problem(result: Any) -> str | None:
    if not isinstance(result, dict):
        return "it is not a JSON object"
    kinds = {"trainer": str, "dataset": str, "method": str, "shots": int | None}
    wrong = [key for key, kind in kinds.items() if not isinstance(result.get(key), kind)]
    if wrong:
        return f"it lacks a usable {', '.join(wrong)}"
    metrics = result.get("metrics")
    if not isinstance(metrics, dict) or not set(metrics) & set(TEST_SETS):
        return f"its metrics hold none of {', '.join(TEST_SETS)}"
    bad = [name for name in TEST_SETS if name in metrics and _accuracy(metrics[name]) is None]
    return f"its metrics have no accuracy for {', '.join(bad)}" if bad else None


def _accuracy(metric: Any) -> float | None:
    value = metric.get("accuracy") if isinstance(metric, dict) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _is_zero_shot(result: dict[str, Any]) -> bool:
    return result["trainer"].startswith("Zeroshot")


def _backbone(result: dict[str, Any]) -> str | None:
    return dict(flatten(CfgNode(result.get("config") or {}))).get("MODEL.BACKBONE.NAME")


def _order(result: dict[str, Any], students: set[str | None]) -> tuple:
    name = str(result.get("config_name"))
    if _is_zero_shot(result):
        # the student is the backbone that the other runs adapt
        return result["dataset"], 0, _backbone(result) not in students, result["method"], 0, 0, name
    if "placebo" in str(result.get("teacher")):
        rank = 3
    else:
        rank = (2 if result.get("unlabeled") else 1) if result["trainer"].endswith("_DHO") else 0
    family = result["trainer"].removesuffix("_DHO")
    return result["dataset"], 1, False, family, result.get("shots") or 0, rank, name


def _unique_seeds(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    first: dict[Any, dict[str, Any]] = {}
    for run in runs:
        kept = first.setdefault(run.get("seed"), run)
        if kept is not run:
            _warn(f"seed {run.get('seed')} stands twice; using {kept['path']}, not {run['path']}")
    return list(first.values())


def _make_row(runs: list[dict[str, Any]]) -> Row:
    _warn_of_differences(runs)
    first = runs[0]
    labels = {
        "Dataset": first["dataset"],
        "Method": first["method"],
        "Labeled": _describe_shots(first.get("shots")),
        "Teacher": first.get("teacher") or "-",
        "Unlabeled": "yes" if first.get("unlabeled") else "-",
        "Config": first.get("config_name") or "-",
    }
    by_set = {name: [run["metrics"][name]["accuracy"] for run in runs if name in run["metrics"]] for name in TEST_SETS}
    complete = [run for run in runs if set(SHIFTED) <= set(run["metrics"])]
    shifted = [statistics.fmean(run["metrics"][name]["accuracy"] for name in SHIFTED) for run in complete]
    scores = {title: _summarize(by_set[name]) for name, title in TEST_SETS.items()}
    return Row(labels, {**scores, "OOD": _summarize(shifted)}, len(runs))


def _describe_shots(shots: int | None) -> str:
    if shots is None:
        return "-"
    return f"{shots} shots" if shots > 0 else "all"


def _summarize(values: list[float]) -> Score | None:
    if not values:
        return None
    return Score(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def _warn_of_differences(runs: list[dict[str, Any]]) -> None:
    first = runs[0]
    for run in runs[1:]:
        keys = [k for k in differing_keys(run.get("config") or {}, first.get("config") or {}) if k[:5] != "SEED:"]
        if keys:
            _warn(f"one row averages runs that differ: {first['path']} and {run['path']}: {'; '.join(keys)}")
        if set(first["metrics"]) != set(run["metrics"]):
            _warn(f"one row averages runs with different test sets: {first['path']} and {run['path']}")


def _shown_labels(rows: Sequence[Row]) -> list[str]:
    """Dataset is a column where there are several; Config where rows could not be told apart without it."""
    shown = ["Method", "Labeled", "Teacher", "Unlabeled"]
    if len({row.labels["Dataset"] for row in rows}) > 1:
        shown.insert(0, "Dataset")
    if len({tuple(row.labels[name] for name in shown) for row in rows}) < len(rows):
        shown.append("Config")
    return shown


def _format_score(score: Score | None, style: str, decimals: int) -> str:
    if score is None:
        return "-"
    mean = f"{score.mean:.{decimals}f}"
    if score.std is None:
        return mean
    std = f"{score.std:.{decimals}f}"
    return rf"${mean} \pm {std}$" if style == "latex" else f"{mean} ± {std}"


def _escape_latex(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _format_csv(rows: Sequence[Row], labels: list[str], decimals: int) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*labels, *(column for name in rows[0].scores for column in (name, f"{name} std")), "Seeds"])
    for row in rows:
        pairs = [(score.mean, score.std) if score else (None, None) for score in row.scores.values()]
        texts = ["" if number is None else f"{number:.{decimals}f}" for pair in pairs for number in pair]
        writer.writerow([*(row.labels[name] for name in labels), *texts, row.seeds])
    return stream.getvalue().rstrip("\n")


if __name__ == "__main__":
    sys.exit(main())
