"""Mixing the two heads at test time, and the search for alpha and beta on stored validation logits."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dho_plugin.core.losses import widen
from dho_plugin.errors import ConfigError

ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))
BETAS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)  # around [0.1, 1], where the paper's Figure 10 is flat
_MAX_ELEMENTS = 1 << 22  # of one block of mixed probabilities: 16 MB in fp32


class AlphaBeta(NamedTuple):
    """A chosen point of the alpha-beta grid.

    Attributes:
        alpha: weight of the CE head.
        beta: temperature of the KD head.
        accuracy: of that point, in percent.
        grid: every (alpha, beta, accuracy in percent), betas varying fastest.
    """

    alpha: float
    beta: float
    accuracy: float
    grid: tuple[tuple[float, float, float], ...]


def interpolate(logits_ce: Tensor, logits_kd: Tensor | None, alpha: float, beta: float) -> Tensor:
    """alpha * softmax(logits_ce) + (1 - alpha) * softmax(logits_kd / beta) (DHO, Eq. 11; Algorithm 2).

    Args:
        logits_ce: (B, C) float of any width.
        logits_kd: (B, C), or None for a model without a KD head: the CE head's probabilities alone.
        alpha: weight of the CE head, in [0, 1].
        beta: temperature of the KD head, > 0.

    Returns:
        (B, C) probabilities, fp32 (fp64 for fp64 input).

    Raises:
        ConfigError: alpha or beta out of range, or the heads differ in shape.
    """
    _check_alpha_beta((alpha,), (beta,))
    if logits_kd is None:
        return _softmax(logits_ce)
    _check_shapes(logits_ce, logits_kd)
    return alpha * _softmax(logits_ce) + (1 - alpha) * _softmax(logits_kd, beta)


def interpolate_log(logits_ce: Tensor, logits_kd: Tensor | None, alpha: float, beta: float) -> Tensor:
    """The logarithm of `interpolate` (DHO, Eq. 11), finite also where a probability is too small for a float.

    Its softmax is Eq. 11, so it serves as the logits of a model with two heads: divided by eta, as p^(1 / eta). Without
    a KD head it is the logits less a number a row, to which no softmax at any temperature pays attention.

    Args:
        logits_ce: (B, C) float of any width.
        logits_kd: (B, C), or None for a model without a KD head.
        alpha: weight of the CE head, in [0, 1].
        beta: temperature of the KD head, > 0.

    Returns:
        (B, C) log-probabilities, fp32 (fp64 for fp64 input).

    Raises:
        ConfigError: alpha or beta out of range, or the heads differ in shape.
    """
    _check_alpha_beta((alpha,), (beta,))
    from_ce = _log_softmax(logits_ce)
    if logits_kd is None or alpha == 1:
        return from_ce
    _check_shapes(logits_ce, logits_kd)
    from_kd = _log_softmax(logits_kd, beta)
    return from_kd if alpha == 0 else torch.logaddexp(from_ce + math.log(alpha), from_kd + math.log1p(-alpha))


@torch.no_grad()
def search_alpha_beta(
    logits_ce: Tensor,
    logits_kd: Tensor,
    labels: Tensor,
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
) -> AlphaBeta:
    """The alpha and beta with the best accuracy on stored logits of a VALIDATION set (DHO, section 3.2).

    Of several best points the nearest to the untuned (0.5, 1) is taken, by |alpha - 0.5| + |ln beta|; if still tied,
    the smaller alpha, then the smaller beta.

    Args:
        logits_ce: (N, C) float.
        logits_kd: (N, C) float.
        labels: (N,) int64.
        alphas: weights to try, each in [0, 1].
        betas: temperatures to try, each > 0.

    Returns:
        AlphaBeta(alpha, beta, accuracy, grid).

    Raises:
        ConfigError: an alpha or beta out of range, an empty grid or set, or shapes that do not fit.
    """
    alphas, betas = [float(alpha) for alpha in alphas], [float(beta) for beta in betas]
    _check_alpha_beta(alphas, betas)
    _check_shapes(logits_ce, logits_kd)
    if labels.shape != logits_ce.shape[:1] or not len(labels):
        raise ConfigError(
            f"the alpha-beta search needs one label for each of the {len(logits_ce)} validation images, "
            f"at least one; it got {len(labels)}."
        )
    correct = _count_correct(logits_ce, logits_kd, labels, alphas, betas).tolist()
    grid = tuple(
        (alpha, beta, 100 * count / len(labels))
        for alpha, row in zip(alphas, correct, strict=True)
        for beta, count in zip(betas, row, strict=True)
    )
    alpha, beta, accuracy = min(grid, key=lambda p: (-p[2], abs(p[0] - 0.5) + abs(math.log(p[1])), p[0], p[1]))
    return AlphaBeta(alpha, beta, accuracy, grid)


def _count_correct(
    logits_ce: Tensor, logits_kd: Tensor, labels: Tensor, alphas: Sequence[float], betas: Sequence[float]
) -> Tensor:
    """(A, K) counts of right answers; the images go through in blocks, so memory does not grow with their number."""
    weights = torch.tensor(alphas, dtype=torch.float64, device=logits_ce.device)[:, None, None]
    correct = torch.zeros(len(alphas), len(betas), dtype=torch.int64, device=logits_ce.device)
    rows = max(1, _MAX_ELEMENTS // (len(alphas) * logits_ce.shape[1]))
    for ce, kd, target in zip(logits_ce.split(rows), logits_kd.split(rows), labels.split(rows), strict=True):
        probs_ce = _softmax(ce)
        # weights are rounded after 1 - alpha, as Python scalars are, so that each point equals `interpolate`
        from_ce = weights.to(probs_ce.dtype) * probs_ce
        for k, beta in enumerate(betas):
            mixed = from_ce + (1 - weights).to(probs_ce.dtype) * _softmax(kd, beta)
            correct[:, k] += (mixed.argmax(dim=-1) == target).sum(dim=-1)
    return correct


def _softmax(logits: Tensor, beta: float = 1.0) -> Tensor:
    return (widen(logits) / beta).softmax(dim=-1)


def _log_softmax(logits: Tensor, beta: float = 1.0) -> Tensor:
    return (widen(logits) / beta).log_softmax(dim=-1)


def _check_shapes(logits_ce: Tensor, logits_kd: Tensor) -> None:
    if logits_ce.shape != logits_kd.shape:
        raise ConfigError(
            f"the CE head's logits have shape {tuple(logits_ce.shape)} and the KD head's {tuple(logits_kd.shape)}: "
            "both heads must answer for the same images and classes."
        )


def _check_alpha_beta(alphas: Sequence[float], betas: Sequence[float]) -> None:
    if not alphas or not all(0 <= alpha <= 1 for alpha in alphas):
        raise ConfigError(f"TRAINER.DHO.ALPHA is {_listed(alphas)}; every value must lie in [0, 1].")
    if not betas or not all(beta > 0 for beta in betas):
        raise ConfigError(f"TRAINER.DHO.BETA is {_listed(betas)}; every value must be greater than 0.")


def _listed(values: Sequence[float]) -> str:
    return ", ".join(str(value) for value in values) or "empty"
