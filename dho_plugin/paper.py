"""The paper's Table 13 (DHO, appendix D.2): accuracy in percent on ImageNet and its four shifted sets."""

import statistics
from collections.abc import Sequence

from dho_plugin.errors import DataError
from dho_plugin.results import KINDS
from dho_plugin.rows import Row, Score, labeled_order, method_order, zero_shot_order

SETS = ("Val", "V2", "Sketch", "R", "A")
TEACHER = "ViT-L/14@336px (zero-shot)"
ZERO_SHOT = (66.7, 60.8, 46.2, 74.0, 47.8)  # CLIP ViT-B/16
CASCADE = 0.5  # CasPL stands between the base method and DHO

# (our trainer, our name of the method, the paper's name, labeled, [(place among the kinds, Val, V2, Sketch, R, A)]).
METHODS = (
    ("LinearProbe", "LinearProbe", "Linear evaluation", "1%", (
        ("base", 72.8, 64.2, 47.0, 74.6, 48.6),
        ("labeled", 73.4, 65.3, 48.3, 75.8, 49.4),
        ("unlabeled", 74.6, 66.4, 49.2, 76.1, 49.8),
    )),
    ("VPT", "VPT-3", "VPT-3", "1.25%", (
        ("base", 73.6, 64.6, 47.7, 75.2, 48.7),
        ("labeled", 73.6, 65.3, 48.7, 75.9, 49.1),
        ("unlabeled", 75.1, 66.8, 50.0, 76.9, 50.5),
    )),
    ("VPT", "VPT-9", "VPT-9", "1.25%", (
        ("labeled", 74.0, 65.9, 48.9, 75.8, 46.5),
        ("unlabeled", 75.6, 67.4, 50.8, 77.3, 46.5),
    )),
    ("CoOp", "CoOp", "CoOp", "16 shots", (
        ("base", 71.5, 64.2, 48.0, 75.2, 49.7),
        ("cascade", 71.9, 64.3, 48.3, 76.0, None),
        ("labeled", 72.8, 65.5, 49.3, 76.4, 49.5),
        ("unlabeled", 73.4, 66.2, 49.5, 77.0, 50.5),
    )),
    ("PromptSRC", "PromptSRC", "PromptSRC", "16 shots", (
        ("base", 71.3, 64.4, 49.6, 77.8, 50.9),
        ("cascade", 72.8, 65.7, 49.7, 77.9, None),
        ("labeled", 73.0, 65.3, 49.5, 77.8, 51.3),
        ("unlabeled", 73.6, 66.1, 49.8, 78.1, 51.0),
    )),
)  # fmt: skip
_RANK = (
    len(method_order("", "", "", labeled_order(None), 0)) - 1
)  # before it in the order: which method, how many labels
_ADDED = {"base": "", "cascade": " + CasPL", "labeled": " + DHO", "unlabeled": " + DHO"}


def paper_rows(ours: Sequence[Row] = ()) -> list[Row]:
    """Return the paper's rows; OOD is the mean of its four shifted numbers, seeds are not known (no error bars there).

    Args:
        ours: rows of our runs. 1% and 1.25% of ImageNet's training images are 13 and 16 a class, so where ours of the
            method have no such percentage, the paper's stand beside those of 16 shots.
    """
    places = {row.order[:_RANK] for row in ours}
    order = (*zero_shot_order("imagenet", "CLIP zero-shot ViT-B/16", False), 1, "", "")
    rows = [paper_row("CLIP zero-shot ViT-B/16", "-", "-", "-", ZERO_SHOT, order)]
    for trainer, method, name, labeled, kinds in METHODS:
        amounts = [labeled_order(None, float(labeled[:-1]))] if labeled.endswith("%") else []
        orders = [method_order("imagenet", trainer, method, amount, 0) for amount in (*amounts, labeled_order(16))]
        place = next((order[:_RANK] for order in orders if order[:_RANK] in places), orders[-1][:_RANK])
        for kind, *values in kinds:
            order = (*place, CASCADE if kind == "cascade" else KINDS.index(kind), 1, "", "")
            teacher = {"base": "-", "cascade": "yes"}.get(kind, TEACHER)
            unlabeled = "yes" if kind in ("cascade", "unlabeled") else "-"
            rows.append(paper_row(name + _ADDED[kind], labeled, teacher, unlabeled, values, order))
    return rows


def beside_the_papers(rows: Sequence[Row]) -> list[Row]:
    """Put the paper's rows beside ours.

    Args:
        rows: rows of runs on ImageNet.

    Returns:
        All rows in order, each of the paper's behind ours of the same method.

    Raises:
        DataError: a row is of another data set.
    """
    return merged(rows, paper_rows(rows))


def merged(rows: Sequence[Row], paper: Sequence[Row]) -> list[Row]:
    """Return our rows and the paper's in order.

    Raises:
        DataError: a row is of another data set than ImageNet.
    """
    others = sorted({row.labels["Dataset"] for row in rows} - {"imagenet"})
    if others:
        raise DataError(
            f"--paper: these runs are on {', '.join(others)}, the paper's numbers on imagenet; give the folder of the "
            "runs on imagenet, or leave --paper out"
        )
    return sorted([*rows, *paper], key=lambda row: row.order)


def paper_row(
    method: str, labeled: str, teacher: str, unlabeled: str, values: Sequence[float | None], order: tuple
) -> Row:
    """Return one of the paper's rows: `values` are those of SETS, None where the paper has none."""
    labels = {"Dataset": "imagenet", "Method": method, "Labeled": labeled, "Teacher": teacher, "Unlabeled": unlabeled}
    shifted = None if None in values else statistics.fmean(values[1:])
    scores = {
        name: None if value is None else Score(value, None)
        for name, value in zip((*SETS, "OOD"), (*values, shifted), strict=True)
    }
    return Row({**labels, "Config": "-", "Source": "paper"}, scores, None, order)
