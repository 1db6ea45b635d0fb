"""The figures of findings, each with its caption: the report shows them, `dho_plugin.analyze` writes them to files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from torch import Tensor

from dho_plugin.analysis import head_figures, run_figures
from dho_plugin.analysis.curves import gain_over_second
from dho_plugin.analysis.features import embed, read_features
from dho_plugin.analysis.style import slugs
from dho_plugin.errors import DHOError
from dho_plugin.findings import Findings, OverSets, folder, gradients_over_sets
from dho_plugin.results import (
    MAIN_SCORES,
    SHIFTED,
    accuracy,
    is_distilled,
    is_zero_shot,
    kind,
    score_columns,
    split_distilled,
)
from dho_plugin.rows import labeled_amount, summarize

LOSSES = {"train/loss": "loss", "train/loss_ce": "L_CE", "train/loss_kd": "L_KD", "train/loss_extra": "own loss"}
# Quantity in gradients.jsonl: its line's name, by figure.
GRADIENTS = {
    "cosines": (
        "cosine of the gradients (-1 to 1)",
        {"cosine_parameters": "of the parameters", "cosine_features": "of the features"},
        "Cosine of the gradients of L_CE and L_KD with respect to the feature extractor's parameters and to the "
        "features (DHO, Fig. 4 and 13; Eq. 5 and 9). Below 0 the two losses pull apart.",
    ),
    "inner": (
        "inner product (no unit)",
        {"inner_parameters": "of the parameters"},
        "Inner product of the gradients of L_CE and L_KD with respect to the feature extractor's parameters.",
    ),
    "discrepancy": (
        "discrepancy (no unit)",
        {"discrepancy": "discrepancy"},
        "(p_CE - y)^T (p_KD - p), the prediction-level discrepancy (DHO, Fig. 4).",
    ),
    "eigenvalue": (
        "dominant eigenvalue (no unit)",
        {"eigenvalue": "eigenvalue"},
        "Dominant eigenvalue of W W^T (one head) or W_CE W_KD^T (two heads; DHO, Fig. 13).",
    ),
}


@dataclass(frozen=True)
class Exhibit:
    """A figure, a name for files and links, and what it shows."""

    name: str
    caption: str
    figure: Figure


def heads(found: Findings) -> Iterator[Exhibit]:
    """Yield the figures of the heads: accuracy, confidence, calibration, agreement, error reduction."""
    if not found.pooled:
        return
    sets = {
        name: {head: [s.accuracy for s in scores] for head, scores in of.items()} for name, of in found.scores.items()
    }
    figure = head_figures.head_accuracies(sets, max(len(seeds) for of in sets.values() for seeds in of.values()))
    yield Exhibit("accuracy", "Accuracy of each head and of the mix: a point a seed, a dash their mean.", figure)
    on = f"on {found.main_set}"
    yield Exhibit("confidence", f"How certain the answers {on} are.", head_figures.confidences(found.pooled, found.n))
    figure = head_figures.reliability_diagram(found.pooled, found.n)
    words = (
        "15 bins of equal width; perfect is the diagonal. Beside each name: the calibration error (ECE) of all answers."
    )
    yield Exhibit("reliability", f"Calibration {on}: {words}", figure)
    if found.agreement is not None:
        figure = head_figures.agreements(found.agreement, found.n)
        yield Exhibit("agreement", f"Which heads are right {on}.", figure)
        figure = head_figures.error_reduction(found.agreement, found.n)
        yield Exhibit("error-reduction", f"Errors of one head alone {on}, and what is left of them in the mix.", figure)


def surface(found: Findings) -> Iterator[Exhibit]:
    """Yield the alpha-beta surface on validation images, where there are any."""
    if found.surface is not None:
        figure = head_figures.alpha_beta(found.surface, found.fixed_point)
        seeds = ", mean of the seeds that have them" if len(found.runs) > 1 else ""
        yield Exhibit("surface", f"Accuracy over alpha and beta on validation images{seeds}.", figure)


def features(found: Findings, classes: int = 10) -> Iterator[Exhibit]:
    """Yield t-SNE's plane of the first seed's test images, where its features are stored (DHO, Fig. 7).

    Args:
        found: the runs of a row.
        classes: the first so many classes are drawn.
    """
    if (shown := _plane_of(found, classes)) is not None:
        figure = run_figures.planes({f"first {classes} classes": shown})
        yield Exhibit("tsne", f"t-SNE of the test images' features; seed {found.runs[0].get('seed')}.", figure)


def compared_features(findings: Sequence[Findings], classes: int = 10) -> Iterator[Exhibit]:
    """Yield the planes of all rows with stored features side by side (DHO, Fig. 7), where there are several."""
    shown = {found.name: _plane_of(found, classes) for found in findings}
    if len(shown := {name: plane for name, plane in shown.items() if plane is not None}) > 1:
        figure = run_figures.planes(shown, columns=2)
        yield Exhibit("tsne", f"t-SNE of the test images' features, first {classes} classes, first seed.", figure)


def _plane_of(found: Findings, classes: int) -> tuple[Tensor, Tensor] | None:
    try:
        kept = read_features(folder(found.runs[0]))
        if kept is None:
            return None
        z, labels = kept[1]
        shown = labels < classes
        return embed(z[shown]), labels[shown]
    except DHOError as error:
        found.leave_out(f"t-SNE of the features of {folder(found.runs[0]).name}: {error}")
        return None


def training(found: Findings) -> Iterator[Exhibit]:
    """Yield the training curves."""
    losses = {name: found.series(tag) for tag, name in LOSSES.items() if found.series(tag)}
    if losses:
        caption = "Training losses, running means of an epoch; bands reach from the smallest to the largest seed."
        yield Exhibit("losses", caption, run_figures.lines_over_steps(losses, "loss (nats)"))
    if series := found.series("train/acc"):
        figure = run_figures.lines_over_steps({"accuracy": series}, "training accuracy (%)")
        yield Exhibit("training-accuracy", "Accuracy of the CE head on the labeled batches.", figure)


def gradients(found: Findings) -> Iterator[Exhibit]:
    """Yield the figures of what TRAINER.DHO.PROBE_GRADIENTS recorded."""
    for name, (label, quantities, caption) in GRADIENTS.items():
        series = {
            title: [one[key] for one in found.gradients if key in one]
            for key, title in quantities.items()
            if any(key in one for one in found.gradients)
        }
        if series:
            yield Exhibit(f"gradients-{name}", caption, run_figures.lines_over_steps(series, label, zero=True))


def compared_gradients(findings: Sequence[Findings]) -> Iterator[Exhibit]:
    """Yield each recorded quantity with a line a row, such as a single head beside DHO (DHO, Fig. 4 and 13)."""
    probed = [found for found in findings if found.gradients]
    if len(probed) > 1:
        yield from _beside_each_other(probed, "gradients", "training step")


def mean_gradients(findings: Sequence[Findings]) -> Iterator[Exhibit]:
    """Yield the mean over data sets of each recorded quantity, with a line a method (DHO, Fig. 4 and 13)."""
    yield from _beside_each_other(gradients_over_sets(findings), "mean-gradients", "percent of the recorded steps")


def _beside_each_other(probed: Sequence[Findings | OverSets], start: str, xlabel: str) -> Iterator[Exhibit]:
    for label, quantities, caption in GRADIENTS.values():
        for key, title in quantities.items():
            series = {found.name: [one[key] for one in found.gradients if key in one] for found in probed}
            if series := {name: seeds for name, seeds in series.items() if seeds}:
                words = f"{title[0].upper()}{title[1:]}: {caption}" if len(quantities) > 1 else caption
                figure = run_figures.lines_over_steps(series, label, xlabel, zero=True)
                yield Exhibit(f"{start}-{key.replace('_', '-')}", words, figure)


def overviews(findings: Sequence[Findings]) -> Iterator[Exhibit]:
    """Yield, for each column of the table, all rows beside each other, and the cost of each."""
    columns = score_columns([run for found in findings for run in found.runs])
    shown = {name: title for name, title in columns.items() if title in MAIN_SCORES.values()} or columns
    for name, title in shown.items():
        values = [(f.name, [v for v in (accuracy(run, name) for run in f.runs) if v is not None]) for f in findings]
        if rows := [(row, found) for row, found in values if found]:
            what = "mean of the four shifted sets" if name == "OOD" else title
            caption = f"Accuracy, {what}: a point a seed, a dash their mean; in brackets the number of seeds."
            figure = run_figures.overview(rows, f"accuracy, {title} (%)\nn = {_images(findings, name):,} images")
            yield Exhibit(f"overview-{name}", caption, figure)
    for key, label, words in (
        ("seconds", "training time (s)", "Seconds of training and its tests."),
        (
            "peak_memory_mb",
            "peak memory (MiB)",
            "Peak memory: the accelerator's where there is one, else the process's.",
        ),
    ):
        values = [(f.name, [run[key] for run in f.runs if run.get(key)]) for f in findings]
        if rows := [(row, found) for row, found in values if found]:
            yield Exhibit(f"cost-{key}", words, run_figures.overview(rows, label))


def _images(findings: Sequence[Findings], name: str) -> int:
    """Return the most images that a run was scored on."""
    sets = SHIFTED if name == "OOD" else (name,)
    counts = ([run["metrics"].get(one, {}).get("n", 0) for one in sets] for found in findings for run in found.runs)
    return max(map(sum, counts))


def curves(findings: Sequence[Findings]) -> Iterator[Exhibit]:
    """Yield accuracy over shots, for data sets with runs at several, and the gain over the second best method."""
    datasets = list(dict.fromkeys(found.row.labels["Dataset"] for found in findings))
    for dataset, slug in zip(datasets, slugs(datasets), strict=True):
        mine = [found for found in findings if found.row.labels["Dataset"] == dataset]
        name = _main_column(mine)
        series = _by_shots(mine, name)
        if len({x for seeds in series.values() for one in seeds for x in one}) > 1:
            caption = f"{dataset}: accuracy over shots; bands reach from the smallest to the largest seed."
            figure = run_figures.over_shots(series, f"accuracy, {dataset} (%)")
            yield Exhibit(f"shots-{slug}", caption, figure)
    if gains := _gains(findings):
        figure = run_figures.gains(gains, "gain of DHO over the second best (percentage points)")
        yield Exhibit("gains", "What DHO gains over the best other method, at most shots (DHO, Fig. 2).", figure)


def _main_column(findings: Sequence[Findings]) -> str:
    return next(iter(score_columns([run for found in findings for run in found.runs])))


def _by_shots(findings: Sequence[Findings], column: str) -> dict[str, list[dict[int, float]]]:
    """Return, by the method's name, a curve a seed."""
    series: dict[str, dict[int, dict[int, float]]] = {}
    for found in findings:
        for run in found.runs:
            value, shots = accuracy(run, column), run.get("shots")
            if value is not None and shots and shots > 0:
                name = found.name.replace(f", {found.row.labels['Labeled']}", "")
                name = name.replace(f", {found.row.labels['Dataset']}", "")
                series.setdefault(name, {}).setdefault(run.get("seed"), {})[shots] = value
    return {name: list(seeds.values()) for name, seeds in series.items()}


def _gains(findings: Sequence[Findings]) -> dict[str, float]:
    """Return DHO's gain by data set, and by student where one has several: its best row against the best without it.

    Rows of the most shots count (without any, of the largest percentage); CLIP itself, caches, few-shot teachers and
    placebos do not.
    """
    groups: dict[tuple[str, str], list[Findings]] = {}
    for found in filter(_is_method, findings):
        run = found.runs[0]
        student = split_distilled(run["method"])[0] if is_distilled(run) else ""
        groups.setdefault((found.row.labels["Dataset"], student), []).append(found)
    datasets = [dataset for dataset, _ in groups]
    gains = {}
    for (dataset, student), mine in groups.items() if len(set(datasets)) > 1 else ():
        if (gain := _gain(mine)) is not None:
            gains[f"{dataset}, {student}" if datasets.count(dataset) > 1 and student else dataset] = gain
    return gains


def _is_method(found: Findings) -> bool:
    run = found.runs[0]
    cache = run["trainer"].startswith("TipAdapter") or "few-shot" in str(run.get("teacher"))
    return not (is_zero_shot(run) or cache or kind(run) == "placebo")


def _gain(mine: Sequence[Findings]) -> float | None:
    taught = [one.row.labels["Labeled"] for one in mine if "DHO" in one.row.labels["Method"]]
    most = max([words for words in taught if words[-1] != "%"] or taught, key=labeled_amount, default="")
    column, best = _main_column(mine), {}
    for found in (one for one in mine if one.row.labels["Labeled"] in (most, "-")):  # some methods look at no label
        score = summarize(found.runs, column)
        name = "DHO" if "DHO" in found.row.labels["Method"] else found.row.labels["Method"]
        if score is not None:
            best[name] = max(score.mean, best.get(name, 0.0))
    return gain_over_second(best, "DHO")
