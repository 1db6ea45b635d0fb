"""The figure of cases (DHO, Fig. 9 and 16 to 19): each image beside the three best answers of each head and the mix."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from PIL import Image

from dho_plugin.analysis.cases import Case
from dho_plugin.analysis.style import INK, PALETTE, RC, WIDTH


def case_rows(cases: Sequence[tuple[Image.Image, Case]]) -> Figure:
    """Draw a row a case: the image, then each head's best answers as bars; the right answer's bar is green.

    Args:
        cases: image and case.
    """
    with matplotlib.rc_context({**RC, "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "axes.grid": False}):
        figure = Figure(figsize=(WIDTH, 0.45 + 1.15 * len(cases)), layout="constrained")
        panels = figure.subplots(len(cases), 1 + len(cases[0][1].top), squeeze=False)
        for axes, head in zip(panels[0][1:], cases[0][1].top, strict=True):
            axes.set_title(f"{head} (%)", loc="left")
        for row, (image, case) in zip(panels, cases, strict=True):
            row[0].imshow(image, interpolation="none")  # a page holds its own pixels
            row[0].set_axis_off()
            row[0].set_title(_short(case.label, 15), loc="left", fontsize=7)
            for axes, top in zip(row[1:], case.top.values(), strict=True):
                _bars(axes, top, case.label)
        return figure


def _bars(axes, top: Sequence[tuple[str, float]], label: str) -> None:
    for place, (name, percent) in enumerate(top):
        axes.barh(place, percent, height=0.86, color=PALETTE[2] if name == label else PALETTE[6], alpha=0.55)
        text = f"{_short(name)} {percent:.0f}"
        axes.annotate(text, (0, place), (2, 0), textcoords="offset points", va="center", color=INK)
    axes.set_xlim(0, 100)
    axes.set_ylim(2.6, -0.6)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines["bottom"].set_visible(False)


def _short(name: str, length: int = 17) -> str:
    return name if len(name) <= length else name[: length - 1] + "\u2026"
