"""Numbers of labels beside each other: one row a method, as in the paper's Table 1."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from dho_plugin.paired import Comparison, Paired
from dho_plugin.results import MAIN_SCORES
from dho_plugin.rows import Row, labeled_amount, shown_columns

NO_LABEL = "-"  # in the column Labeled: what such a row shows holds for every number of labels
Labeled = TypeVar("Labeled", Row, Comparison)


def widen(rows: Sequence[Row]) -> list[Row]:
    """Join the rows that differ in nothing but the number of labels; their scores become `Val, 4 shots` and so on.

    A row that needs no label stands in the columns of all numbers of them.

    Args:
        rows: what `build_rows` or `with_heads` returned.

    Returns:
        One row a method, where the first of its rows stood, with the labels that tell rows apart; its number of seeds
        is the smallest of theirs.
    """
    columns, wide = _columns(rows, [row.scores for row in rows]), []
    for same in _alike(rows):
        scores = _joined(columns, {row.labels["Labeled"]: row.scores for row in same})
        seeds = min((row.seeds for row in same if row.seeds is not None), default=None)
        wide.append(replace(same[0], scores=scores, seeds=seeds, runs=()))
    keep = shown_columns([row.labels for row in wide], ["Source", "Method"], ["Teacher", "Unlabeled", "Config"])
    return [replace(row, labels={name: row.labels[name] for name in ["Dataset", *keep]}) for row in wide]


def widen_comparisons(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Join the comparisons that differ in nothing but the number of labels, as `widen` joins rows."""
    columns, wide = _columns(comparisons, [row.measures for row in comparisons]), []
    for same in _alike(comparisons):
        measures = _joined(columns, {row.labels["Labeled"]: row.measures for row in same})
        labels = {name: text for name, text in same[0].labels.items() if name != "Labeled"}
        wide.append(Comparison(labels, {title: found or Paired(0) for title, found in measures.items()}))
    return wide


def _alike(rows: Sequence[Labeled]) -> Iterable[list[Labeled]]:
    """Return the rows that differ in the number of labels only, together."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple(text for name, text in row.labels.items() if name != "Labeled")].append(row)
    return groups.values()


def _columns(rows: Sequence[Labeled], found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return the columns in their order: what was measured, and the number of labels."""
    amounts = sorted({row.labels["Labeled"] for row in rows} - {NO_LABEL}, key=labeled_amount) or [NO_LABEL]
    shown = dict.fromkeys(title for known in found for title, value in known.items() if value is not None)
    titles = [title for title in MAIN_SCORES.values() if title in shown] or list(shown)
    return [(title, amount) for title in titles for amount in amounts]


def _joined(columns: Sequence[tuple[str, str]], found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    free = found.get(NO_LABEL, {})
    return {
        title if amount == NO_LABEL else f"{title}, {amount}": found.get(amount, free).get(title)
        for title, amount in columns
    }
