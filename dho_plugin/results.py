"""The runs' results.json: finding, checking and reading them, and what kind of run each is."""

import json
import math
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dho_plugin.engine.files import named_path
from dho_plugin.errors import DataError

# Test sets of ImageNet and what its table calls them; any other data set has "test" and further ones by its own names.
TEST_SETS = {"val": "Val", "imagenetv2": "V2", "imagenet_sketch": "Sketch", "imagenet_r": "R", "imagenet_a": "A"}
MAIN_SCORES = {"test": "Test", "val": "Val", "OOD": "OOD"}  # what stands for a run where there is room for few columns
SHIFTED = ("imagenetv2", "imagenet_sketch", "imagenet_r", "imagenet_a")
# The methods that distil into compact students, as their names end, in the order of the paper's Table 1.
DISTILLED = ("KD (logit)", "KD (feature)", "CE", "CE + KD (feature)", "CE + KD (logit)", "SSKD", "DHKD", "DHO", "DHO-F")
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
    found = [result for result in _read_all(directories) if _trained(result) is None]
    for result in found:
        _warn_of_unreadable(result)
    return _some(_tell_apart(found), directories)


def find_evaluations(directories: Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read the later evaluations (`--eval-only --model-dir RUN`) below the directories, and join those of one run.

    Args:
        directories: folders to search.

    Returns:
        For each run that was evaluated, and each trainer that did it, the run's own results with the evaluations'
        metrics in the place of its own.

    Raises:
        DataError: a directory is missing, or no usable evaluation was found.
    """
    directories = list(directories)
    joined: dict[tuple[Path, str], dict[str, Any]] = {}
    evaluations = [(result, path) for result in _read_all(directories) if (path := _trained(result))]
    runs = {path: _read(path) for path in dict.fromkeys(path for _, path in evaluations)}
    for result, path in evaluations:
        if (run := runs[path]) is None:
            continue
        row = joined.setdefault((path, result["trainer"]), {**_evaluated_as(run, result), "metrics": {}})
        for name, metric in _named_by_data(result, run).items():
            if _accuracy(row["metrics"].setdefault(name, metric)) != _accuracy(metric):
                warn(f"{name} of {path} was evaluated twice with different results; {result['path']} is not used")
    for result in joined.values():
        _warn_of_unreadable(result)
    return _some(_tell_apart(list(joined.values())), directories)


def score_columns(results: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Return what a table of results shows, in its order: the name of a test set, or "OOD", and the column's title.

    Runs on ImageNet have all of its columns, others what they were scored on: Test, then further sets by their names.
    """
    results = list(results)
    names = {name for result in results for name in _scored(result)}
    imagenet = any(_on_imagenet(result) for result in results)
    columns = {"test": "Test"} if "test" in names else {}
    columns |= {name: title for name, title in TEST_SETS.items() if imagenet or name in names}
    if imagenet or any(accuracy(result, "OOD") is not None for result in results):
        columns["OOD"] = "OOD"
    titles = {"Test", "OOD", *TEST_SETS.values()}
    further = sorted(names - {"test", *TEST_SETS})
    return columns | {name: f"{name} (set)" if name in titles else name for name in further}


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
    """Return the trainer's name without `_DHO`; all that distil into compact students are one family."""
    return "Distill" if is_distilled(result) else result["trainer"].removesuffix("_DHO")


def is_distilled(result: dict[str, Any]) -> bool:
    """Say whether a compact student learned as a whole."""
    return result["trainer"].startswith("Distill_")


def split_distilled(method: str) -> tuple[str, str]:
    """Return student and method of a name such as `resnet18 CE + KD (logit)`; an unknown method is ""."""
    for name in sorted(DISTILLED, key=len, reverse=True):
        if method.endswith(f" {name}"):
            return method.removesuffix(f" {name}"), name
    return method, ""


def base_method(result: dict[str, Any]) -> str:
    """Return the method's name in the table without DHO."""
    return result["method"].removesuffix(" + DHO")


def kind(result: dict[str, Any]) -> str:
    """Return which of KINDS a run is: the method alone, with DHO on labeled images, also on unlabeled, a placebo."""
    if "placebo" in str(result.get("teacher")):
        return "placebo"
    if result["trainer"] == "Distill_CE" or not (is_distilled(result) or result["trainer"].endswith("_DHO")):
        return "base"
    return "unlabeled" if result.get("unlabeled") else "labeled"


def labeled_percent(result: dict[str, Any]) -> float | None:
    """Return the percent of the training images that are labeled, or None where shots say how many are."""
    return None if is_zero_shot(result) else result.get("labeled_percent") or None


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
    if not result.get("model_dir"):
        return None
    run = named_path(result["path"].parent, result["model_dir"], result.get("model_dir_from_here"))
    path = run / "results.json"
    return path.resolve() if path.is_file() else None


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
    kinds = {"trainer": str, "dataset": str, "method": str, "shots": int | None, "labeled_percent": int | float | None}
    wrong = [key for key, types in kinds.items() if not isinstance(result.get(key), types)]
    if wrong:
        return f"it lacks a usable {', '.join(wrong)}"
    if not isinstance(result.get("metrics"), dict) or not _scored(result):
        return "its metrics hold no test set"
    bad = [name for name, metric in _scored(result).items() if _accuracy(metric) is None]
    return f"its metrics have no accuracy for {', '.join(bad)}" if bad else None


def _tell_apart(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Name one's own data with their place where other data have the same name, and half of the classes as such.

    A classifier of all templates is named so where one of a single prompt has the same name.
    """
    results = [{**result, "dataset": result["dataset"] + _half(result)} for result in results]
    plain = {(result["dataset"], result["method"]) for result in results if result["trainer"] == "ZeroshotCLIP"}
    results = [
        {**result, "method": f"{result['method']} (templates)"}
        if result["trainer"] == "ZeroshotCLIP2" and (result["dataset"], result["method"]) in plain
        else result
        for result in results
    ]
    places: dict[str, set[Any]] = {}
    for result in results:
        places.setdefault(result["dataset"], set()).add(_own_place(result))
    return [
        {**result, "dataset": f"{result['dataset']} in {_own_place(result)}"}
        if _own_place(result) and len(places[result["dataset"]]) > 1
        else result
        for result in results
    ]


def _half(result: dict[str, Any]) -> str:
    which = _data_config(result).get("SUBSAMPLE_CLASSES", "all")
    return "" if which == "all" else f" ({which} classes)"


def _own_place(result: dict[str, Any]) -> str | None:
    """Return where one's own data lie, or None for a published set."""
    data = _data_config(result)
    return str(data.get("ROOT")) if data.get("NAME") == "ImageFolder" else None


def _data_config(result: dict[str, Any]) -> dict[str, Any]:
    return (result.get("config") or {}).get("DATASET") or {}


def _warn_of_unreadable(result: dict[str, Any]) -> None:
    for name, metrics in _scored(result).items():
        if metrics.get("n_unreadable"):
            warn(f"{result['path']}: {metrics['n_unreadable']} images of {name} could not be read and do not count")


def _scored(result: dict[str, Any]) -> dict[str, Any]:
    """Return the metrics of the test sets."""
    return {name: metric for name, metric in result["metrics"].items() if name != "validation"}


def _on_imagenet(result: dict[str, Any]) -> bool:
    """Say whether a run was scored on ImageNet or one of its shifted sets; a run without a config, by their names."""
    dataset = _data_config(result)
    known = _scored(result).keys() & TEST_SETS.keys()
    return bool(known) and (
        str(dataset["NAME"]).startswith("ImageNet") if "NAME" in dataset else known == {*_scored(result)}
    )


def _evaluated_as(run: dict[str, Any], evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return a run as the method that an evaluation took it for: of a DHO run, CoOp takes the prompts alone.

    They are not CoOp's own, so they have a name and rows of their own.
    """
    if run["trainer"] == evaluation["trainer"]:
        return run
    method = f"{evaluation['method']} (what {run['method']} learned)"
    return {**run, "trainer": evaluation["trainer"], "method": method}


def _named_by_data(result: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    """Return an evaluation's metrics by test set; other data or another half of the classes stands in the name."""
    added = "" if _half(result) == _half(run) else _half(result) or " (all classes)"
    other = result["dataset"] != run["dataset"]
    names = {name: result["dataset"] if other and name == "test" else name for name in result["metrics"]}
    return {names[name] + added: metric for name, metric in result["metrics"].items()}


def _accuracy(metric: Any) -> float | None:
    value = metric.get("accuracy") if isinstance(metric, dict) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None
