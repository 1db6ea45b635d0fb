"""How figures look and how they are written: colours that the colour-blind tell apart, SVG for pages, PDF and PNG."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dho_plugin.engine.files import atomic_write

INK = "#010203"  # of text and axes; a page replaces it by the colour of its own text, so that it suits the dark
# Okabe and Ito's colours, which the colour-blind tell apart; each series also has a marker or line style of its own.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
WIDTH = 4.6  # inches; at 10 pt the text can be read where a phone shows the figure over its whole width
RC = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "axes.axisbelow": True,
    "svg.fonttype": "none",
    "svg.hashsalt": "dho",
    "pdf.fonttype": 42,
    "path.simplify": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor"), INK
    ),
}


def draw(paint: Callable[[Axes], None], height: float = 3.1, width: float = WIDTH) -> Figure:
    """Return a figure with one panel.

    Args:
        paint: called with the panel.
        height: in inches.
        width: in inches.
    """
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(width, height), layout="constrained")
        paint(figure.add_subplot())
        return figure


def to_svg(figure: Figure, name: str, label: str) -> str:
    """Return a figure as an `<svg>` element for a page.

    Args:
        figure: what `draw` returned.
        name: goes before every id, so that two figures of a page never share one; letters, digits, hyphens.
        label: what a screen reader says.
    """
    stream = io.StringIO()
    with matplotlib.rc_context(RC):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|xlink:href="#)', rf"\1{name}-", text).replace("xlink:href", "href")
    text = text.replace("font-family: 'DejaVu Sans'", "font-family: inherit").replace(INK, "currentColor")
    for place, colour in enumerate(PALETTE):  # lighter in the dark, where the page says so
        text = text.replace(colour.lower(), f"var(--series-{place}, {colour})")
    # Hundredths of a point, in the tags: between them stand the words and numbers that people read.
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d{2})\d+", r"\1", tag[0]), text)
    size = re.search(r'viewBox="([^"]+)"', text)[1]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" role="img" aria-label="{_quoted(label)}"'
    return re.sub(r"\A<svg\b[^>]*", head, text).strip()


def slugs(texts: Iterable[str]) -> list[str]:
    """Return texts as they can stand in ids, links and file names, letters, digits and hyphens, no two alike."""
    found: list[str] = []
    for text in texts:
        base = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "row"  # of another alphabet nothing is left
        numbered = (f"{base}-{number}" for number in itertools.count(2))
        found.append(next(one for one in itertools.chain([base], numbered) if one not in found))
    return found


def save_figure(figure: Figure, stem: str | Path) -> list[Path]:
    """Write a figure as PDF and PNG (200 dpi), each atomically, and return the two paths.

    Args:
        figure: what `draw` returned.
        stem: path without an ending.
    """
    paths = [Path(f"{stem}.{ending}") for ending in ("pdf", "png")]
    with matplotlib.rc_context(RC):
        for path in paths:
            ending, metadata = path.suffix[1:], {"CreationDate": None} if path.suffix == ".pdf" else None
            atomic_write(
                path,
                lambda file, e=ending, m=metadata: figure.savefig(
                    file, format=e, dpi=200, facecolor="white", metadata=m
                ),
            )
    return paths


def _quoted(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
