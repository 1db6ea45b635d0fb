"""Where the two heads agree, who is right alone, and what mixing them mends (DHO, Fig. 8 and 15)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from dho_plugin.analysis.outcomes import CE, KD, MIX, Outcome


class Agreement(NamedTuple):
    """Shares of the images in percent (DHO, Fig. 15).

    Attributes:
        both, ce_only, kd_only, neither: which heads are right; they sum to 100.
        same: both heads give the same class, be it right or wrong.
        ce_only_left: KD wrong and CE right, and the mix still wrong: what is left of `ce_only`, the KD head's errors
            that the CE head could mend.
        kd_only_left: the same of `kd_only`.
        mix_alone: the mix is right where both heads are wrong.
    """

    both: float
    ce_only: float
    kd_only: float
    neither: float
    same: float
    ce_only_left: float
    kd_only_left: float
    mix_alone: float


def agreement(found: dict[str, Outcome]) -> Agreement:
    """Return the agreement diagram's and the error-reduction diagram's shares.

    Args:
        found: what `outcomes` returned for a model with two heads.
    """
    ce, kd, mix = (found[name].correct for name in (CE, KD, MIX))
    return Agreement(
        both=_percent(ce & kd),
        ce_only=_percent(ce & ~kd),
        kd_only=_percent(kd & ~ce),
        neither=_percent(~ce & ~kd),
        same=_percent(found[CE].prediction == found[KD].prediction),
        ce_only_left=_percent(ce & ~kd & ~mix),
        kd_only_left=_percent(kd & ~ce & ~mix),
        mix_alone=_percent(mix & ~ce & ~kd),
    )


def _percent(mask: Tensor) -> float:
    return 100.0 * mask.double().mean().item()
