"""The paper's Tables 1, 4, 5, 12, 14 and 15: distillation into compact students, in percent."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from dho_plugin.paper import SETS, merged, paper_row
from dho_plugin.results import DISTILLED
from dho_plugin.rows import Row, Score, in_shots, labeled_order, method_order, zero_shot_order

SHOTS = (1, 2, 4, 8, 16)
ZERO_SHOT = {"RN50": "RN50 (zero-shot)", "H": "ViT-H-14-378-quickgelu (zero-shot)", "L": "ViT-L/14@336px (zero-shot)"}
FEW_SHOT = "RN50 (few-shot)"

# Table 1: student -> method -> Val at 1, 2, 4, 8, 16 shots; one number stands for no labels at all.
# SSKD and DHKD: section 4.2.
TABLE_1 = {
    "resnet18 from scratch": {
        "KD (logit)": (51.0,),
        "CE": (0.7, 1.1, 1.8, 3.4, 8.2),
        "CE + KD (feature)": (17.1, 23.5, 28.0, 32.2, 33.8),
        "CE + KD (logit)": (50.5, 50.6, 50.6, 51.0, 51.2),
        "DHO": (51.8, 52.4, 52.6, 53.3, 54.5),
        "DHO-F": (53.7, 54.2, 54.8, 56.2, 57.7),
    },
    "dino_resnet50": {
        "KD (logit)": (61.0,),
        "CE": (11.4, 17.3, 26.4, 36.7, 47.0),
        "CE + KD (feature)": (23.0, 32.3, 41.3, 48.2, 54.3),
        "CE + KD (logit)": (60.4, 60.8, 61.2, 61.6, 62.3),
        "SSKD": (55.2, 58.1, 60.0, 62.3, 64.0),
        "DHKD": (25.6, 34.8, 42.7, 49.2, 55.2),
        "DHO": (61.0, 62.1, 62.5, 63.7, 64.7),
        "DHO-F": (62.3, 63.1, 63.9, 65.5, 66.8),
    },
}
# Its teachers, by the block of a student: CLIP zero-shot, Tip-Adapter-F at 1, 2, 4, 8, 16 shots. Both blocks' are RN50
# (Table 6); why that of ResNet-18 has lower numbers the paper does not say.
TEACHERS_1 = {
    "RN50": (60.3, (61.0, 61.6, 62.5, 63.8, 65.4)),
    "RN50 (block of resnet18)": (50.0, (52.0, 52.4, 53.2, 54.0, 55.3)),
}
# Tables 4 and 12: (student, labeled percent, teacher, Val, V2, Sketch, R, A).
# Table 4 has the rows of the teacher H, and Val alone.
TABLE_12 = (
    ("ViT-B/16", 1.0, "L", 78.7, 70.1, 48.0, 70.9, 41.1),
    ("ViT-B/16", 10.0, "L", 80.8, 71.3, 47.4, 71.7, 41.4),
    ("ViT-B/16", 1.0, "H", 81.6, 72.6, 50.6, 65.5, 35.6),
    ("ViT-B/16", 10.0, "H", 82.8, 73.6, 50.7, 67.7, 37.8),
    ("ViT-L/14@336px", 1.0, "H", 84.6, 77.0, 61.5, 79.9, 60.8),
    ("ViT-L/14@336px", 10.0, "H", 85.9, 77.8, 61.7, 82.8, 64.4),
)
ZERO_SHOTS = {
    "1": tuple((name, True, (value,)) for name, (value, _) in TEACHERS_1.items()),
    "4": (("ViT-H-14-378-quickgelu", True, (84.4,)),),
    "5": (("ViT-L/14@336px", True, (75.3,)),),
    "12": (
        ("ViT-B/16", False, (66.7, 60.8, 46.2, 74.0, 47.0)),
        ("ViT-L/14@336px", False, (75.3, 68.3, 59.2, 86.5, 74.6)),
        ("ViT-H-14-378-quickgelu", True, (83.6, 77.2, 71.7, 92.3, 77.4)),
    ),
}
# Table 5: heads of the student ViT-B/16 taught by L, with 1% of the labels -> Val. Which head starts from language in
# its second row, the text at hand has lost; it is taken to be h_CE, as the rows add one thing after the other.
TABLE_5 = {
    "": 78.7,
    " (h_KD linear)": 78.6,
    " (h_KD kaiming linear)": 78.5,
    " (h_CE kaiming, h_KD kaiming linear)": 78.3,
}
# Table 14: heads of DHO's ResNet-18 -> Val on ImageNet, and mean over the ten sets, at 1, 2, 4, 8, 16 shots.
TABLE_14 = {
    "": ((61.7, 62.2, 62.6, 63.8, 65.1), (58.9, 62.2, 68.4, 73.1, 76.5)),
    " (h_CE mlp)": ((61.7, 61.9, 62.2, 63.1, 64.8), (59.3, 62.1, 68.0, 72.7, 76.2)),
    " (h_KD mlp)": ((62.1, 62.6, 62.9, 64.0, 65.9), (58.3, 62.1, 67.8, 72.4, 76.5)),
    " (h_CE mlp, h_KD mlp)": ((62.0, 62.3, 62.6, 63.8, 65.4), (59.1, 62.2, 68.6, 72.4, 76.5)),
}
# Table 15: what each head reaches alone on ImageNet, 16 shots: h_CE, h_KD.
TABLE_15 = {
    "": (60.64, 61.55),
    " (h_CE mlp)": (60.18, 61.39),
    " (h_KD mlp)": (60.95, 61.76),
    " (h_CE mlp, h_KD mlp)": (61.66, 61.81),
}
MEAN = "mean of {}"
TABLES = ("1", "4", "5", "12", "14")
OWN = "own"  # in the place of a table: whichever of its rows have one of ours beside them


def distilled_rows(table: str) -> list[Row]:
    """Return the paper's rows of one of TABLES, of "14" those on ImageNet; seeds are not known (no error bars)."""
    rows = []
    others = {"1": _table_1, "4": partial(_table_12, True), "5": _table_5, "12": _table_12, "14": _table_14}[table]
    for name, is_teacher, values in ZERO_SHOTS.get(table, ()):
        order = (*zero_shot_order("imagenet", f"CLIP zero-shot {name}", is_teacher), 1, "", "")
        rows.append(paper_row(f"CLIP zero-shot {name}", "-", "-", "-", _padded(values), order))
    return rows + others()


def papers_means() -> dict[str, list[Row]]:
    """Return the paper's means over the ten sets (Table 14) behind ours of the same student: method -> rows."""
    found = {}
    for heads, (_, values) in TABLE_14.items():
        method = f"resnet18.tv_in1k{heads} DHO"
        found[method] = [_row_of_mean(method, shots, value) for shots, value in zip(SHOTS, values, strict=True)]
    return found


def _row_of_mean(method: str, shots: int, value: float) -> Row:
    order = (*method_order(MEAN.format(10), "Distill", method, labeled_order(shots), 2), 1, "", "")
    row = paper_row(method, in_shots(shots), ZERO_SHOT["RN50"], "yes", (None,) * len(SETS), order)
    return replace(row, labels={**row.labels, "Dataset": MEAN.format(10)}, scores={"Test": Score(value, None)})


def with_means(rows: Sequence[Row]) -> list[Row]:
    """Add to the rows of several data sets their means, where a method has a row on each of them, and the paper's."""
    names, groups = {row.labels["Dataset"] for row in rows}, defaultdict(list)
    for row in rows:
        groups[tuple(v for k, v in row.labels.items() if k != "Dataset")].append(row)
    found = []
    for same in groups.values():
        scores = [row.scores.get("Test") for row in same]
        if len(same) == len(names) and None not in scores:
            title = MEAN.format(len(names))
            labels, order = {**same[0].labels, "Dataset": title}, (title, *same[0].order[1:])
            mean = Score(statistics.fmean(score.mean for score in scores), None)
            found.append(Row(labels, {"Test": mean}, min(row.seeds for row in same), order))
    known = {row.labels["Method"] for row in found} if len(names) == 10 else set()
    paper = [row for method, means in papers_means().items() if method in known for row in means]
    return [*rows, *sorted([*found, *paper], key=lambda row: row.order)]


def beside_the_papers_table(rows: Sequence[Row], table: str) -> list[Row]:
    """Put a table of the paper beside ours.

    Args:
        rows: rows of runs on ImageNet.
        table: one of TABLES; "own" for those rows of 1 and 12 that are of one of ours: the same method, labels and
            teacher.

    Returns:
        All rows in order, each of the paper's behind ours of the same method.

    Raises:
        DataError: a row is of another data set.
    """
    if table != OWN:
        return merged(rows, distilled_rows(table))
    own = {_facts(row) for row in rows}
    return merged(rows, [row for row in distilled_rows("1") + distilled_rows("12") if _facts(row) in own])


def _facts(row: Row) -> tuple[str, ...]:
    return tuple(row.labels[name] for name in ("Method", "Labeled", "Teacher", "Unlabeled"))


def _table_1() -> list[Row]:
    found = []
    for student, methods in TABLE_1.items():
        for method in DISTILLED:
            values = methods.get(method, ())
            teacher = "-" if method == "CE" else FEW_SHOT if method == "DHO-F" else ZERO_SHOT["RN50"]
            for shots, value in zip(SHOTS if len(values) > 1 else (None,), values, strict=bool(values)):
                labeled = "-" if shots is None else in_shots(shots)
                order = _order(f"{student} {method}", labeled_order(shots), method == "CE")
                unlabeled = "-" if method == "CE" else "yes"
                found.append(paper_row(f"{student} {method}", labeled, teacher, unlabeled, _padded((value,)), order))
    return found + _few_shot_teachers()


def _few_shot_teachers() -> list[Row]:
    found = []
    for name, (_, values) in TEACHERS_1.items():
        method = f"Tip-Adapter-F {name}"
        for shots, value in zip(SHOTS, values, strict=True):
            order = (*method_order("imagenet", "TipAdapterF", method, labeled_order(shots), 0), 1, "", "")
            found.append(paper_row(method, in_shots(shots), "-", "-", _padded((value,)), order))
    return found


def _table_5() -> list[Row]:
    found = []
    for heads, value in TABLE_5.items():
        method = f"ViT-B/16{heads} DHO"
        order = _order(method, labeled_order(None, 1.0), False)
        found.append(paper_row(method, "1%", ZERO_SHOT["L"], "yes", _padded((value,)), order))
    return found


def _table_14() -> list[Row]:
    found = []
    for heads, (values, _) in TABLE_14.items():
        method, alone = f"resnet18 from scratch{heads} DHO", zip(("h_CE", "h_KD"), TABLE_15[heads], strict=True)
        scores = [(method, *pair) for pair in zip(SHOTS, values, strict=True)]
        for name, shots, value in [*scores, *((f"{method}, {head} alone", 16, value) for head, value in alone)]:
            order = _order(method, labeled_order(shots), False)
            found.append(paper_row(name, in_shots(shots), ZERO_SHOT["RN50"], "yes", _padded((value,)), order))
    return found


def _table_12(table_4: bool = False) -> list[Row]:
    found = []
    for student, percent, teacher, *values in TABLE_12:
        if not table_4 or teacher == "H":
            order = _order(f"{student} DHO", labeled_order(None, percent), False)
            values = values[:1] if table_4 else values
            labels = (f"{student} DHO", f"{percent:g}%", ZERO_SHOT[teacher], "yes")
            found.append(paper_row(*labels, _padded(values), order))
    return found


def _order(method: str, labeled: tuple[float, int], base: bool) -> tuple:
    return (*method_order("imagenet", "Distill", method, labeled, 0 if base else 2), 1, "", "")


def _padded(values: Sequence[float]) -> tuple[float | None, ...]:
    return (*values, *[None] * (len(SETS) - len(values)))
