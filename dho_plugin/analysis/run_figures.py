"""Figures over rows, steps, shots and features: overview, training curves, gradients, cost, t-SNE."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from dho_plugin.analysis.curves import Band, band
from dho_plugin.analysis.style import INK, LINES, MARKERS, PALETTE, RC, WIDTH, draw


def overview(rows: Sequence[tuple[str, Sequence[float]]], label: str) -> Figure:
    """Draw a line a row of the table: a point a seed, a dash for their mean.

    Args:
        rows: name and a value for each seed.
        label: of the axis, with its unit.
    """

    names = ["\n".join(textwrap.wrap(f"{name} ({len(values)})", 32)) for name, values in rows]
    lines = max(1 + name.count("\n") for name in names)

    def paint(axes):
        for place, (_, values) in enumerate(rows):
            axes.plot(values, [place] * len(values), "o", color=PALETTE[0], markersize=4.5, alpha=0.7)
            axes.vlines(np.mean(values), place - 0.32, place + 0.32, color=PALETTE[1], linewidth=2)
        axes.set_yticks(range(len(rows)), names)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5))

    return draw(paint, height=1.0 + (0.08 + 0.17 * lines) * len(rows))


def lines_over_steps(
    series: Mapping[str, Sequence[Mapping[int, float]]], ylabel: str, xlabel: str = "training step", zero: bool = False
) -> Figure:
    """Draw lines, the means over seeds, with bands from the smallest to the largest seed.

    Args:
        series: for each line, by name, the values by step of each seed.
        ylabel: label of the upright axis, with its unit.
        xlabel: label of the other one.
        zero: whether a line marks 0.
    """

    def paint(axes):
        if zero:
            axes.axhline(0, color=INK, alpha=0.4, linewidth=1)
        for place, (name, seeds) in enumerate(series.items()):
            _band(axes, band(seeds), place, name)
        axes.set(xlabel=f"{xlabel} (n = {_seeds(series)})", ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(series) > 1:
            _legend(axes)

    return draw(paint, height=3.1 + (0.17 * len(series) if max(map(len, series)) > 20 else 0))


def over_shots(series: Mapping[str, Sequence[Mapping[int, float]]], ylabel: str) -> Figure:
    """Draw accuracy over the number of labeled images a class, with bands over seeds (DHO, Fig. 5, 6, 11 and 12).

    Args:
        series: for each method, the accuracy in percent by shots of each seed.
        ylabel: label of the upright axis, with its unit.
    """

    def paint(axes):
        shots = sorted({x for seeds in series.values() for one in seeds for x in one})
        for place, (name, seeds) in enumerate(series.items()):
            _band(axes, band(seeds), place, name)
        axes.set_xscale("log", base=2)
        axes.set_xticks(shots, [f"{x:g}" for x in shots])
        axes.set(xlabel=f"labeled images a class (n = {_seeds(series)})", ylabel=ylabel)
        _legend(axes)

    return draw(paint, height=2.9 + 0.17 * len(series))


def planes(shown: Mapping[str, tuple[Tensor, Tensor]], columns: int = 1) -> Figure:
    """Draw t-SNE's planes side by side, a colour and a marker a class (DHO, Fig. 7).

    Args:
        shown: by title, points (N, 2) and labels (N,).
        columns: how many are in a line.
    """
    with matplotlib.rc_context(RC):
        rows = -(-len(shown) // columns)
        side = WIDTH * (1 if columns == 1 else 0.62)
        figure = Figure(figsize=(side * columns, 0.92 * side * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes, (title, (points, labels)) in zip(panels, shown.items(), strict=False):
            _plane(axes, points, labels, title)
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
        return figure


def _plane(axes: Axes, points: Tensor, labels: Tensor, title: str) -> None:
    for place, label in enumerate(labels.unique()):
        mine = points[labels == label]
        colour, marker = PALETTE[place % len(PALETTE)], MARKERS[(place // len(PALETTE)) % len(MARKERS)]
        axes.scatter(mine[:, 0], mine[:, 1], s=7, c=colour, marker=marker, linewidths=0, rasterized=True)
    axes.set(xlabel="t-SNE 1 (no unit)", ylabel=f"t-SNE 2 (no unit)\nn = {len(labels):,} images", title=title)
    axes.set_xticks([])
    axes.set_yticks([])


def gains(values: Mapping[str, float], label: str) -> Figure:
    """Draw the gain over the second best method on each data set (DHO, Fig. 2).

    Args:
        values: percentage points by data set.
        label: of the axis, with its unit.
    """

    def paint(axes):
        names = sorted(values, key=values.get)
        axes.barh(range(len(names)), [values[name] for name in names], color=PALETTE[2], height=0.65)
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_yticks(range(len(names)), names)
        for place, name in enumerate(names):
            text = f"{values[name]:+.1f}"
            axes.annotate(text, (max(values[name], 0), place), (4, 0), textcoords="offset points", va="center")
        axes.margins(x=0.15)
        axes.set_xlabel(label)

    return draw(paint, height=1.0 + 0.26 * len(values))


def _band(axes: Axes, found: Band, place: int, name: str) -> None:
    colour, line = PALETTE[place % len(PALETTE)], LINES[place % len(LINES)]
    marker = MARKERS[place % len(MARKERS)] if len(found.x) <= 12 else None
    axes.plot(
        found.x, found.mean, color=colour, linestyle=line, marker=marker, markersize=3.5, linewidth=1.5, label=name
    )
    if found.seeds.max() > 1:
        axes.fill_between(found.x, found.low, found.high, color=colour, alpha=0.18, linewidth=0)


def _legend(axes: Axes) -> None:
    """Put the legend above the panel: two names a line, a long one alone."""
    _, names = axes.get_legend_handles_labels()
    columns = 1 if max(map(len, names)) > 20 else 2
    look = {"borderaxespad": 0.2, "handlelength": 2, "columnspacing": 1}
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, **look)


def _seeds(series: Mapping[str, Sequence]) -> str:
    counts = sorted({len(seeds) for seeds in series.values()})
    words = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{words} seed{'s' * (counts[-1] != 1)}"
