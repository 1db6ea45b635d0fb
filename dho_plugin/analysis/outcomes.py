"""What each head and their mix answer for every image, computed once from stored logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dho_plugin.core.inference import interpolate
from dho_plugin.engine.evaluator import CHUNK, TestLogits
from dho_plugin.errors import DataError

CE, KD, MIX = "CE head", "KD head", "mix"


@dataclass(frozen=True)
class Outcome:
    """The answers of one head, or of the mix, for the images of one test set.

    Attributes:
        prediction: (N,) int64, the most probable class.
        confidence: (N,) float32, its probability.
        labels: (N,) int64.
        top: (N, K) int64, the K most probable classes, the first one first.
        top_probs: (N, K) float32, their probabilities.
    """

    prediction: Tensor
    confidence: Tensor
    labels: Tensor
    top: Tensor
    top_probs: Tensor

    @property
    def correct(self) -> Tensor:
        """Whether each answer is right, (N,) bool."""
        return self.prediction == self.labels

    @property
    def accuracy(self) -> float:
        """The share of right answers in percent."""
        return 100.0 * self.correct.double().mean().item()

    @classmethod
    def joined(cls, parts: Sequence[Outcome]) -> Outcome:
        """Return several runs' outcomes as one, run after run."""
        names = ("prediction", "confidence", "labels", "top", "top_probs")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def outcomes(stored: TestLogits, alpha: float, beta: float, top: int = 3) -> dict[str, Outcome]:
    """Return what each head and the mix (DHO, Eq. 11) answer; unreadable images are left out.

    Args:
        stored: both heads' logits on a test set.
        alpha: weight of the CE head.
        beta: temperature of the KD head.
        top: K, how many of the most probable classes are kept (at most C).

    Returns:
        An outcome under "CE head" and, with a second head, under "KD head" (at temperature 1) and "mix".

    Raises:
        DataError: no image of the set could be read.
    """
    kept = stored.readable()
    if not len(kept.labels):
        raise DataError(f"none of the {len(stored.labels)} test images could be read: nothing to analyse")
    found = {CE: _outcome(kept, lambda ce, kd: interpolate(ce, None, 1.0, 1.0), top)}
    if kept.logits_kd is not None:
        found[KD] = _outcome(kept, lambda ce, kd: interpolate(kd, None, 1.0, 1.0), top)
        found[MIX] = _outcome(kept, lambda ce, kd: interpolate(ce, kd, alpha, beta), top)
    return found


def _outcome(kept: TestLogits, probabilities: Callable[[Tensor, Tensor | None], Tensor], top: int) -> Outcome:
    indices, values, first = [], [], []
    for start in range(0, len(kept.labels), CHUNK):
        rows = slice(start, start + CHUNK)
        probs = probabilities(kept.logits_ce[rows], None if kept.logits_kd is None else kept.logits_kd[rows])
        best = probs.topk(min(top, probs.shape[1]), dim=1)
        first.append(probs.argmax(1))  # of equal probabilities topk may take another one first
        indices.append(best.indices)
        values.append(best.values)
    top_probs = torch.cat(values)
    labels = kept.labels.clone()  # it would keep the whole file in memory
    return Outcome(torch.cat(first), top_probs[:, 0], labels, torch.cat(indices), top_probs)
