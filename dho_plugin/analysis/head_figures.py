"""Figures of the heads and their mix (DHO, Fig. 8, 10 and 15), of their calibration and of alpha and beta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dho_plugin.analysis.agreement import Agreement
from dho_plugin.analysis.calibration import confidence_histogram, expected_calibration_error, reliability
from dho_plugin.analysis.outcomes import CE, KD, MIX, Outcome
from dho_plugin.analysis.style import INK, LINES, MARKERS, PALETTE, draw
from dho_plugin.analysis.surface import Surface

HEADS = (CE, KD, MIX)
_LOOKS = {name: (PALETTE[i], LINES[i], MARKERS[i]) for i, name in enumerate(HEADS)}


def head_accuracies(sets: Mapping[str, Mapping[str, Sequence[float]]], seeds: int) -> Figure:
    """Draw the accuracy of each head and of the mix on each test set: a point a seed, a dash for their mean.

    Args:
        sets: for each test set, by title, and each head, its accuracy in percent for each seed.
        seeds: how many runs.
    """

    def paint(axes):
        for place, name in enumerate(HEADS):
            colour, _, marker = _LOOKS[name]
            label = name
            for x, heads in enumerate(sets.values()):
                if values := heads.get(name):
                    at = x + 0.22 * (place - 1)
                    axes.plot([at] * len(values), values, marker, color=colour, markersize=4.5, alpha=0.8, label=label)
                    axes.hlines(np.mean(values), at - 0.09, at + 0.09, color=colour, linewidth=2)
                    label = None
        axes.set_xticks(range(len(sets)), list(sets))
        axes.set_xlim(-0.5, len(sets) - 0.5)
        axes.grid(axis="x", visible=False)
        axes.set(xlabel="test set", ylabel=f"accuracy (%), n = {_count(seeds, 'run')}")
        _legend_above(axes)

    return draw(paint)


def confidences(found: Mapping[str, Outcome], n: str) -> Figure:
    """Draw the histogram of each head's largest probability (DHO, Fig. 15, left).

    Args:
        found: outcomes by head.
        n: words for how many answers there are.
    """

    def paint(axes):
        for name, outcome in found.items():
            colour, line, _ = _LOOKS[name]
            edges, shares = confidence_histogram(outcome.confidence)
            axes.stairs(shares.numpy(), edges.numpy(), color=colour, linestyle=line, linewidth=1.6, label=name)
        axes.set(xlabel="confidence (largest probability, 0 to 1)", ylabel=f"answers (%)\nn = {n}", xlim=(0, 1))
        axes.set_ylim(bottom=0)
        _legend_above(axes)

    return draw(paint)


def agreements(found: Agreement, n: str) -> Figure:
    """Draw which heads are right, as shares of all images (DHO, Fig. 15, middle)."""
    parts = {
        "both right": (found.both, PALETTE[2]),
        "only CE right": (found.ce_only, PALETTE[0]),
        "only KD right": (found.kd_only, PALETTE[1]),
        "both wrong": (found.neither, PALETTE[6]),
    }

    def paint(axes):
        for place, (share, colour) in enumerate(parts.values()):
            axes.barh(place, share, color=colour, height=0.65)
            axes.annotate(f"{share:.1f}%", (share, place), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(parts)), list(parts))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, 1.18 * max(share for share, _ in parts.values()))
        axes.set(xlabel=f"images (%), n = {n}", title=f"both heads give the same class: {found.same:.1f}%")

    return draw(paint, height=2.5)


def error_reduction(found: Agreement, n: str) -> Figure:
    """Draw how much of one head's errors that the other does not make the mix mends (DHO, Fig. 15, right)."""
    rows = (
        ("KD wrong,\nCE right", found.ce_only, found.ce_only_left),
        ("CE wrong,\nKD right", found.kd_only, found.kd_only_left),
    )

    def paint(axes):
        for place, (_, before, after) in enumerate(rows):
            for shift, share, colour, label in (
                (-0.19, before, PALETTE[6], "head's errors"),
                (0.19, after, PALETTE[2], "left in the mix"),
            ):
                axes.barh(place + shift, share, height=0.34, color=colour, label=None if place else label)
                text = f"{share:.1f}%"
                axes.annotate(text, (share, place + shift), (4, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, 1.18 * max(0.1, *(row[1] for row in rows)))
        axes.set(xlabel=f"images (%), n = {n}")
        _legend_above(axes)

    return draw(paint, height=2.5)


def reliability_diagram(found: Mapping[str, Outcome], n: str) -> Figure:
    """Draw accuracy over confidence in bins of equal width, with each head's expected calibration error."""

    def paint(axes):
        axes.plot([0, 1], [0, 1], color=INK, alpha=0.4, linewidth=1)
        for name, outcome in found.items():
            colour, line, marker = _LOOKS[name]
            bins = reliability(outcome.confidence, outcome.correct)
            ece = expected_calibration_error(outcome.confidence, outcome.correct)
            kept = (bins.count > 0).numpy()
            x, y = bins.confidence.numpy()[kept], bins.accuracy.numpy()[kept]
            look = {"color": colour, "linestyle": line, "marker": marker, "markersize": 3.5, "linewidth": 1.3}
            axes.plot(x, y, **look, label=f"{name}, {ece:.1f}%")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel=f"mean confidence of a bin (0 to 1)\nn = {n}")
        axes.set_ylabel("share of right answers (0 to 1)")
        _legend_above(axes)

    return draw(paint, height=3.4)


def alpha_beta(found: Surface, fixed: tuple[float, float]) -> Figure:
    """Draw validation accuracy over alpha and beta (DHO, Fig. 10), with the best and the fixed point.

    Args:
        found: the surface.
        fixed: the config's (alpha, beta).
    """

    def paint(axes):
        image = axes.pcolormesh(found.accuracy.numpy(), cmap="cividis")
        bar = axes.figure.colorbar(image, ax=axes, label=f"validation accuracy (%)\nn = {found.n:,} images")
        bar.outline.set_visible(False)
        axes.set_xticks(np.arange(len(found.betas)) + 0.5, [f"{beta:g}" for beta in found.betas])
        axes.set_yticks(np.arange(len(found.alphas)) + 0.5, [f"{alpha:g}" for alpha in found.alphas])
        for (alpha, beta), marker, label in ((found.best, "o", "best"), (fixed, "X", "the config's")):
            x, y = _place(beta, found.betas), _place(alpha, found.alphas)
            axes.plot(x, y, marker, color="white", markeredgecolor="black", markersize=8, label=label)
        axes.grid(visible=False)
        axes.set(xlabel="beta, temperature of the KD head", ylabel="alpha, weight of the CE head")
        _legend_above(axes)

    return draw(paint, height=3.4)


def _place(value: float, ticks: Sequence[float]) -> float:
    """Return where a value lies between the middles of the cells, also off the grid's own values."""
    return float(np.interp(value, ticks, np.arange(len(ticks)) + 0.5))


def _legend_above(axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2, handlelength=1.6, columnspacing=1)
    axes.yaxis.set_major_locator(MaxNLocator(6)) if axes.get_ylabel().endswith(")") else None


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"
