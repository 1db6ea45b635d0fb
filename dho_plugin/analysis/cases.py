"""Images on which the heads and the mix differ (DHO, Fig. 9 and 16 to 19)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from dho_plugin.analysis.outcomes import CE, KD, MIX, Outcome

# Which of CE head, KD head and mix are right; in the paper's cases the mix is.
KINDS = {
    "only the CE head, and the mix": (True, False, True),
    "only the KD head, and the mix": (False, True, True),
    "only the mix": (False, False, True),
    "the CE head, but not the mix": (True, False, False),
    "the KD head, but not the mix": (False, True, False),
}


class Case(NamedTuple):
    """One image.

    Attributes:
        index: its place among the readable images of the test set, from 0.
        label: name of its class.
        top: for each head and the mix, its most probable classes with their probabilities in percent.
    """

    index: int
    label: str
    top: dict[str, list[tuple[str, float]]]


def case_masks(found: dict[str, Outcome]) -> dict[str, Tensor]:
    """Return, for each of KINDS, which images are such a case, (N,) bool.

    Args:
        found: what `outcomes` returned for a model with two heads.
    """
    right = [found[name].correct for name in (CE, KD, MIX)]
    return {
        name: (right[0] == wanted[0]) & (right[1] == wanted[1]) & (right[2] == wanted[2])
        for name, wanted in KINDS.items()
    }


def pick_cases(found: dict[str, Outcome], mask: Tensor, classnames: Sequence[str], count: int = 3) -> list[Case]:
    """Return the cases of which the mix is most certain, the most certain first; ties go to the smaller index.

    Args:
        found: what `outcomes` returned.
        mask: (N,) bool, the images to choose from.
        classnames: C names.
        count: how many, at most.
    """
    indices = mask.nonzero().flatten()
    order = found[MIX].confidence[indices].argsort(descending=True, stable=True)[:count]
    return [_case(found, int(index), classnames) for index in indices[order]]


def _case(found: dict[str, Outcome], index: int, classnames: Sequence[str]) -> Case:
    top = {
        name: [
            (classnames[int(label)], 100.0 * float(prob))
            for label, prob in zip(outcome.top[index], outcome.top_probs[index], strict=True)
        ]
        for name, outcome in found.items()
    }
    return Case(index, classnames[int(found[MIX].labels[index])], top)
