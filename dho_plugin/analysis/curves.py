"""Series over training steps, shots and data sets (DHO, Fig. 2, 5, 6, 11 and 12)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dho_plugin.errors import DataError


class Band(NamedTuple):
    """A series with its spread: x (n,), mean (n,), low and high (n,) over seeds, and the number of seeds at each x."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: np.ndarray


def band(series: Sequence[Mapping[float, float]]) -> Band:
    """Return mean, smallest and largest value over seeds at every x that any of them has.

    Args:
        series: for each seed its values by x.

    Raises:
        DataError: nothing is there.
    """
    places = sorted({x for one in series for x in one})
    if not places:
        raise DataError("a curve needs at least one value")
    values = [[one[x] for one in series if x in one] for x in places]
    mean, low, high = (np.array([fold(v) for v in values]) for fold in (np.mean, np.min, np.max))
    return Band(np.array(places), mean, low, high, np.array([len(v) for v in values]))


class Quarter(NamedTuple):
    """A quantity in a quarter of the training: mean and standard deviation (n - 1; None for one) over seeds."""

    mean: float
    std: float | None


def quarters(series: Sequence[Mapping[int, float]]) -> tuple[list[Quarter], float]:
    """Return what a recorded quantity is in each quarter of the training, and the share of its records below zero.

    Args:
        series: for each seed its values by step, four or more of them.

    Returns:
        The four quarters, and the share in percent, the mean over seeds.

    Raises:
        DataError: a seed has fewer than four records.
    """
    if any(len(one) < 4 for one in series) or not series:
        raise DataError("quarters of a training need at least four records of each seed")
    parts = [
        [float(part.mean()) for part in np.array_split([value for _, value in sorted(one.items())], 4)]
        for one in series
    ]
    found = [
        Quarter(float(np.mean(part)), float(np.std(part, ddof=1)) if len(part) > 1 else None)
        for part in zip(*parts, strict=True)
    ]
    return found, 100.0 * float(np.mean([np.mean(np.array(list(one.values())) < 0) for one in series]))


def over_progress(series: Mapping[int, float], points: int = 101) -> dict[float, float]:
    """Return a recorded quantity at equal parts of the training, straight lines between its records.

    Args:
        series: values by step.
        points: how many, from 0 to 100 percent of the last recorded step.

    Raises:
        DataError: nothing is there.
    """
    if not series:
        raise DataError("a curve needs at least one value")
    steps, values = map(np.array, zip(*sorted(series.items()), strict=True))
    percent = np.linspace(0.0, 100.0, points)
    return dict(zip(percent.tolist(), np.interp(percent / 100 * steps[-1], steps, values).tolist(), strict=True))


def mean_over_sets(sets: Sequence[Mapping[Any, Mapping[str, Mapping[int, float]]]]) -> list[dict[str, dict]]:
    """Return the means of recorded quantities over data sets (DHO, Fig. 4 and 13), seed by seed.

    Args:
        sets: for each data set, by seed, the values by step of each quantity; trainings may be of different length.

    Returns:
        For each seed that all sets have, the mean by percent of the recorded steps of each quantity that all have.
    """
    found = []
    for seed in [seed for seed in sets[0] if all(seed in one for one in sets)]:
        runs = [one[seed] for one in sets]
        shared = [key for key in runs[0] if all(run.get(key) for run in runs)]
        curves = {key: [over_progress(run[key]) for run in runs] for key in shared}
        found.append({key: {x: float(np.mean([c[x] for c in same])) for x in same[0]} for key, same in curves.items()})
    return found


def gain_over_second(scores: Mapping[str, float], method: str) -> float | None:
    """Return the accuracy of a method less that of the best other one (DHO, Fig. 2), or None without another.

    Args:
        scores: accuracy in percent by method.
        method: the one in question.
    """
    others = [value for name, value in scores.items() if name != method]
    return scores[method] - max(others) if method in scores and others else None


def training_scalars(run_dir: str | Path) -> dict[str, dict[int, float]]:
    """Return what a run wrote for tensorboard: values by step, by tag; empty where it wrote nothing.

    A resumed run has several event files; of a step that stands twice the later one counts.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: dict[str, dict[int, float]] = {}
    for path in sorted((Path(run_dir) / "tensorboard").glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value if event.HasField("summary") else ():
                number = value.tensor.float_val[0] if value.tensor.float_val else value.simple_value
                found.setdefault(value.tag, {})[event.step] = float(number)
    return {tag: dict(sorted(values.items())) for tag, values in found.items()}


def read_gradients(run_dir: str | Path) -> dict[str, dict[int, float]]:
    """Return what TRAINER.DHO.PROBE_GRADIENTS recorded: values by step, by quantity; empty where it recorded nothing.

    A run that was killed may have a half last line, and a resumed one steps that stand twice: the later one counts.
    """
    path = Path(run_dir) / "gradients.jsonl"
    found: dict[str, dict[int, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        for name, value in record.items():
            if name != "step" and value is not None:
                found.setdefault(name, {})[record["step"]] = value
    return {name: dict(sorted(values.items())) for name, values in found.items()}
