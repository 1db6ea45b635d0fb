"""What the files of a row of the table, the runs that differ only in their seed, say: the input of every figure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from dho_plugin.analysis.agreement import Agreement, agreement
from dho_plugin.analysis.calibration import expected_calibration_error
from dho_plugin.analysis.cases import Case, case_masks, pick_cases
from dho_plugin.analysis.curves import mean_over_sets, read_gradients, training_scalars
from dho_plugin.analysis.features import LinearEvaluation, read_linear_evaluation
from dho_plugin.analysis.outcomes import MIX, Outcome, outcomes
from dho_plugin.analysis.style import slugs
from dho_plugin.analysis.surface import Surface, surface
from dho_plugin.engine.evaluator import TestLogits
from dho_plugin.errors import DHOError
from dho_plugin.ood import stored_sets
from dho_plugin.results import TEST_SETS, is_distilled, is_zero_shot, kind
from dho_plugin.rows import Row, build_rows

_KIND_WORDS = {"labeled": ", labeled only", "unlabeled": ", unlabeled", "placebo": ", placebo"}


@dataclass(frozen=True)
class HeadScore:
    """Accuracy and expected calibration error of one head on one test set, in percent."""

    accuracy: float
    ece: float


@dataclass
class Findings:
    """The runs of one row.

    Attributes:
        row: the row of the table.
        name: short and different from every other row's.
        slug: the name as it can stand in file names and links, different, too.
        left_out: what cannot be shown, with the reason.
    """

    row: Row
    name: str
    slug: str
    left_out: list[str] = field(default_factory=list)

    @property
    def runs(self) -> Sequence[dict[str, Any]]:
        """Return the runs' results."""
        return self.row.runs

    @cached_property
    def _read(self) -> list[tuple[dict[str, Any], dict[str, dict[str, Outcome]]]]:
        """The runs whose stored logits can be read, and what these show."""
        return [(run, found) for run in self.runs if (found := self._of_run(run))]

    @property
    def _outcomes(self) -> list[dict[str, dict[str, Outcome]]]:
        return [found for _, found in self._read]

    def _of_run(self, run: dict[str, Any]) -> dict[str, dict[str, Outcome]]:
        alpha, beta = (1.0 if run.get(key) is None else run[key] for key in ("alpha", "beta"))
        found = {}
        try:
            for name, path in stored_sets(folder(run)).items():
                found[name] = outcomes(TestLogits.load(path), alpha, beta)
        except DHOError as error:
            self.leave_out(f"what stored logits show, of {folder(run).name}: {error}")
        return found

    @cached_property
    def scores(self) -> dict[str, dict[str, list[HeadScore]]]:
        """Return, by test set and head, the scores of each seed, from the stored logits."""
        table: dict[str, dict[str, list[HeadScore]]] = {}
        for found in self._outcomes:
            for name, heads in found.items():
                for head, outcome in heads.items():
                    ece = expected_calibration_error(outcome.confidence, outcome.correct)
                    score = HeadScore(outcome.accuracy, ece)
                    table.setdefault(title(name), {}).setdefault(head, []).append(score)
        return table

    @cached_property
    def pooled(self) -> dict[str, Outcome]:
        """Return the outcomes on the main test set by head, all seeds after each other."""
        main = [found[next(iter(found))] for found in self._outcomes]
        return {head: Outcome.joined([one[head] for one in main]) for head in (main[0] if main else ())}

    @property
    def main_set(self) -> str:
        """Return the title of the test set that `pooled` is of."""
        return next(iter(self.scores), "")

    @property
    def n(self) -> str:
        """Return how many answers `pooled` has, in words."""
        answers = len(next(iter(self.pooled.values())).labels) if self.pooled else 0
        seeds = len(self._outcomes)
        return f"{answers // max(1, seeds):,} images" + (f" x {seeds} seeds" if seeds > 1 else "")

    @cached_property
    def agreement(self) -> Agreement | None:
        """Return how the heads agree on the main test set, or None without a second head."""
        return agreement(self.pooled) if MIX in self.pooled else None

    @cached_property
    def surface(self) -> Surface | None:
        """Return the mean over seeds of the validation accuracy over alpha and beta; None where there is none."""
        found = []
        for run in self.runs:
            path = folder(run) / "logits" / "validation.safetensors"
            if path.is_file() and run.get("alpha") is not None:
                try:
                    found.append(surface(TestLogits.load(path)))
                except DHOError as error:
                    self.leave_out(f"alpha-beta surface, of {folder(run).name}: {error}")
        if not found:
            return None
        mean = sum(one.accuracy for one in found) / len(found)
        best = divmod(int(mean.argmax()), mean.shape[1])
        first = found[0]
        point = first.best if len(found) == 1 else (first.alphas[best[0]], first.betas[best[1]])
        return first._replace(accuracy=mean, best=point, n=sum(one.n for one in found) // len(found))

    @property
    def first_read(self) -> dict[str, Any]:
        """Return the first run whose logits can be read, of which `cases` are."""
        return self._read[0][0]

    @property
    def fixed_point(self) -> tuple[float, float]:
        """Return the config's alpha and beta."""
        node = ((self.runs[0].get("config") or {}).get("TRAINER") or {}).get("DHO") or {}
        return node.get("ALPHA", 0.5), node.get("BETA", 1.0)

    def cases(self, count: int = 3) -> dict[str, tuple[int, list[Case]]]:
        """Return, of the first seed with logits, the number of cases of each kind, and those it is most certain of."""
        if self.agreement is None:
            return {}
        run = self.first_read
        stored = TestLogits.load(next(iter(stored_sets(folder(run)).values())))
        found = outcomes(stored, run["alpha"], run["beta"])
        places = (stored.labels >= 0).nonzero().flatten()
        table = {}
        for name, mask in case_masks(found).items():
            picked = pick_cases(found, mask, stored.classnames, count)
            table[name] = int(mask.sum()), [case._replace(index=int(places[case.index])) for case in picked]
        return table

    @cached_property
    def scalars(self) -> list[dict[str, dict[int, float]]]:
        """Return each seed's training curves, without runs that have none."""
        return [found for found in (training_scalars(folder(run)) for run in self.runs) if found]

    @cached_property
    def gradients_by_seed(self) -> dict[int | None, dict[str, dict[int, float]]]:
        """Return each seed's recorded gradient quantities, without runs that have none."""
        return {run.get("seed"): found for run in self.runs if (found := read_gradients(folder(run)))}

    @property
    def gradients(self) -> list[dict[str, dict[int, float]]]:
        """Return the recorded gradient quantities of the seeds that have some."""
        return list(self.gradients_by_seed.values())

    def series(self, tag: str) -> list[dict[int, float]]:
        """Return one training curve by step of every seed that has it."""
        return [found[tag] for found in self.scalars if tag in found]

    @property
    def linear_evaluations(self) -> list[tuple[int | None, LinearEvaluation]]:
        """Return the seed and the stored linear evaluation of every run that has one."""
        found = ((run.get("seed"), read_linear_evaluation(folder(run))) for run in self.runs)
        return [(seed, score) for seed, score in found if score is not None]

    def explain(self) -> list[str]:
        """Return what cannot be shown of these runs, each with its reason."""
        reasons = []
        if self.pooled and self.agreement is None:
            reasons.append("agreement, error reduction, alpha-beta surface and cases: the model has no second head")
        elif self.agreement is not None and self.surface is None:
            reasons.append(
                "alpha-beta surface: no stored validation logits (DATASET.NUM_VAL_SHOTS 0, or TRAINER.DHO.SEARCH "
                "False); it is never drawn on test images"
            )
        if is_zero_shot(self.runs[0]):
            reasons.append("training curves: nothing was trained")
        elif not self.scalars:
            reasons.append("training curves: the runs' folders hold no tensorboard files")
        if not self.gradients and not is_zero_shot(self.runs[0]):
            reasons.append("gradients: not recorded (TRAINER.DHO.PROBE_GRADIENTS is 0)")
        if not self.linear_evaluations and not is_zero_shot(self.runs[0]):
            reasons.append("linear evaluation and t-SNE: they need the images; run dho-analyze features once")
        return [*self.left_out, *reasons, *(f"test set {name}: {why}" for name, why in self._missing_sets())]

    def _missing_sets(self) -> list[tuple[str, str]]:
        wanted = ((self.runs[0].get("config") or {}).get("TEST") or {}).get("SHIFTED") or ()
        have = {_letters(name) for name in self.runs[0]["metrics"]}
        return [(name, "not on disk when the run was tested") for name in wanted if _letters(name) not in have]

    def leave_out(self, reason: str) -> None:
        """Note what the runs do not allow to be shown, and why."""
        if reason not in self.left_out:
            self.left_out.append(reason)


def find(results: Sequence[dict[str, Any]]) -> list[Findings]:
    """Return the findings of every row of the table, in its order.

    Args:
        results: what `dho_plugin.results.find_results` returned.
    """
    rows = build_rows(results)
    names = _names(rows)
    return [Findings(*parts) for parts in zip(rows, names, slugs(names), strict=True)]


class OverSets(NamedTuple):
    """The mean over data sets of one method's gradients: a name, and of each seed the quantities by percent."""

    name: str
    gradients: list[dict[str, dict[float, float]]]


def gradients_over_sets(findings: Sequence[Findings]) -> list[OverSets]:
    """Return the means of the recorded gradients over data sets (DHO, Fig. 4 and 13).

    Args:
        findings: rows of any data sets; those that differ in the data set only are one method.

    Returns:
        One for each method that was recorded on two sets or more, and there with a seed in common; its name says on
        how many.
    """
    groups = defaultdict(list)
    for found in findings:
        if found.gradients:
            groups[tuple(text for name, text in found.row.labels.items() if name != "Dataset")].append(found)
    several = [same for same in groups.values() if len(same) > 1]
    titles = [
        f"{name}, mean of {len(one)} sets"
        for name, one in zip(_names([s[0].row for s in several]), several, strict=True)
    ]
    means = [mean_over_sets([found.gradients_by_seed for found in same]) for same in several]
    return [OverSets(title, mean) for title, mean in zip(titles, means, strict=True) if mean]


def folder(run: dict[str, Any]) -> Path:
    """Return the folder of a run."""
    return Path(run["path"]).parent


def title(name: str) -> str:
    """Return a test set's title in tables."""
    return {"test": "Test", **TEST_SETS}.get(name, name)


def _kind_words(run: dict[str, Any]) -> str:
    """Return which kind of run it is; what distils into a compact student always has the unlabeled images."""
    usual = is_distilled(run) and kind(run) == "unlabeled"
    return "" if usual else _KIND_WORDS.get(kind(run), "")


def _names(rows: Sequence[Row]) -> list[str]:
    names = [row.labels["Method"] + _kind_words(row.runs[0]) for row in rows]
    for column in ("Labeled", "Dataset", "Teacher", "Config"):
        if len(set(names)) == len(names):
            break
        if len({row.labels[column] for row in rows}) > 1:
            names = [f"{name}, {row.labels[column]}" for name, row in zip(names, rows, strict=True)]
    return names


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
