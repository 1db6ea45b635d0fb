"""Each head alone: rows below those of the mix, and the mix against each of them, seed by seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from dho_plugin.paired import Comparison, compare_runs
from dho_plugin.results import base_method, is_distilled, kind, score_columns, split_distilled
from dho_plugin.rows import Row, summarize

HEADS = {"h_CE": "ce_head_accuracy", "h_KD": "kd_head_accuracy"}


def has_heads(run: dict[str, Any]) -> bool:
    """Say whether a run was scored by each of two heads."""
    return bool(run["metrics"]) and all(set(HEADS.values()) <= scores.keys() for scores in run["metrics"].values())


def head_runs(runs: Iterable[dict[str, Any]], head: str) -> list[dict[str, Any]]:
    """Return the runs as if they predicted with one head: "h_CE" or "h_KD"."""
    return [
        run | {"metrics": {name: {**m, "accuracy": m[HEADS[head]]} for name, m in run["metrics"].items()}}
        for run in runs
    ]


def with_heads(rows: Sequence[Row]) -> list[Row]:
    """Add below each row of runs with two heads what each head reaches alone.

    Args:
        rows: what `build_rows` returned.
    """
    found = []
    for row in rows:
        found.append(row)
        for head in _heads(row):
            alone = head_runs(row.runs, head)
            columns = {name: title for name, title in score_columns(alone).items() if title in row.scores}
            scores = {title: summarize(alone, name) for name, title in columns.items()}
            labels = {**row.labels, "Method": f"{row.labels['Method']}, {head} alone"}
            found.append(replace(row, labels=labels, scores=scores, runs=()))
    return found


def compare_heads(rows: Sequence[Row]) -> list[Comparison]:
    """Compare the mix of both heads with each of them, on the same runs.

    Args:
        rows: what `build_rows` returned.
    """
    return [
        compare_runs(row.runs, head_runs(row.runs, head), {**row.labels, **_names(row.runs[0], head)})
        for row in rows
        for head in _heads(row)
    ]


def _heads(row: Row) -> tuple[str, ...]:
    """Return the heads whose own figures all runs of a row have; none of a row of the paper's, which has no runs."""
    return tuple(HEADS) if row.runs and all(map(has_heads, row.runs)) else ()


def _names(run: dict[str, Any], head: str) -> dict[str, str]:
    """Return method and difference as the other comparisons call them."""
    if is_distilled(run):
        method, mine = split_distilled(run["method"])
    else:
        method, mine = base_method(run), kind(run) if kind(run) == "placebo" else f"DHO {kind(run)}"
    return {"Method": method, "Difference": f"{mine} - its {head}"}
