"""The runs' results.json: finding, checking and reading them, and what kind of run each is."""

import json
import math
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dho_plugin.errors import DataError

TEST_SETS = {"val": "Val", "imagenetv2": "V2", "imagenet_sketch": "Sketch", "imagenet_r": "R", "imagenet_a": "A"}
SHIFTED = ("imagenetv2", "imagenet_sketch", "imagenet_r", "imagenet_a")
KINDS = ("base", "labeled", "unlabeled", "placebo")  # of the runs of one method, in the order of the table


def find_results(directories: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read every results.json below the directories; what cannot be used is named on stderr and skipped.

    Args:
        directories: folders to search.

    Returns:
        The results, each with its file under "path", in the order of their paths. A run that was evaluated once more
        counts where it was trained.

    Raises:
        DataError: a directory is missing, or no usable result was found.
    """
    directories = list(directories)
    return _some([result for result in _read_all(directories) if _trained(result) is None], directories)


def find_evaluations(directories: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read the later evaluations (`--eval-only --model-dir RUN`) below the directories, and join those of one run.

    Args:
        directories: folders to search.

    Returns:
        For each run that was evaluated its own results, with the evaluations' metrics in the place of its own.

    Raises:
        DataError: a directory is missing, or no usable evaluation was found.
    """
    directories = list(directories)
    joined: dict[Path, dict[str, Any]] = {}
    for result in _read_all(directories):
        path = _trained(result)
        run = _read(path) if path and path not in joined else None
        if run is not None:
            joined[path] = {**run, "metrics": {}}
        if path in joined:
            joined[path]["metrics"].update(result["metrics"])
    return _some(list(joined.values()), directories)


def accuracy(result: dict[str, Any], name: str) -> float | None:
    """Return a run's accuracy in percent on a test set, or on "OOD" the mean of the four shifted sets; None without."""
    if name == "OOD":
        values = [accuracy(result, shifted) for shifted in SHIFTED]
        return None if None in values else statistics.fmean(values)
    return _accuracy(result["metrics"].get(name))


def is_zero_shot(result: dict[str, Any]) -> bool:
    """Say whether nothing was learned."""
    return result["trainer"].startswith("Zeroshot")


def family(result: dict[str, Any]) -> str:
    """Return the trainer's name without `_DHO`."""
    return result["trainer"].removesuffix("_DHO")


def base_method(result: dict[str, Any]) -> str:
    """Return the method's name in the table without DHO."""
    return result["method"].removesuffix(" + DHO")


def kind(result: dict[str, Any]) -> str:
    """Return which of KINDS a run is: the method alone, with DHO on labeled images, also on unlabeled, a placebo."""
    if "placebo" in str(result.get("teacher")):
        return "placebo"
    if not result["trainer"].endswith("_DHO"):
        return "base"
    return "unlabeled" if result.get("unlabeled") else "labeled"


def unique_seeds(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first run of each seed; others are named on stderr."""
    first: dict[Any, dict[str, Any]] = {}
    for run in runs:
        kept = first.setdefault(run.get("seed"), run)
        if kept is not run:
            warn(f"seed {run.get('seed')} stands twice; using {kept['path']}, not {run['path']}")
    return list(first.values())


def warn(message: str) -> None:
    """Print a warning to stderr."""
    print(f"warning: {message}", file=sys.stderr)


def _read_all(directories: list[str | Path]) -> list[dict[str, Any]]:
    for directory in map(Path, directories):
        if not directory.is_dir():
            raise DataError(f"there is no folder {directory}; give the folder in which the runs' results.json lie.")
    return [result for result in map(_read, _paths(directories)) if result is not None]


def _paths(directories: list[str | Path]) -> list[Path]:
    return sorted({path.resolve() for directory in directories for path in Path(directory).rglob("results.json")})


def _some(results: list[dict[str, Any]], directories: list[str | Path]) -> list[dict[str, Any]]:
    if results:
        return results
    where, found = ", ".join(map(str, directories)), len(_paths(directories))
    raise DataError(
        f"no usable results.json below {where} ({found} found, all skipped); a finished run writes one."
        if found
        else f"no results.json below {where}; a finished run writes one into its output folder."
    )


def _trained(result: dict[str, Any]) -> Path | None:
    """Return the results.json of the run whose model an evaluation used, if there is one."""
    path = Path(result.get("model_dir") or "") / "results.json"
    return path.resolve() if result.get("model_dir") and path.is_file() else None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        problem = _find_problem(result)
    except (OSError, ValueError) as error:
        problem = str(error)
    if problem:
        warn(f"skipping {path}: {problem}")
        return None
    return {**result, "path": path}


def _find_problem(result: Any) -> str | None:
    if not isinstance(result, dict):
        return "it is not a JSON object"
    kinds = {"trainer": str, "dataset": str, "method": str, "shots": int | None}
    wrong = [key for key, types in kinds.items() if not isinstance(result.get(key), types)]
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
