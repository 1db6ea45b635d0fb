"""How the gradients of L_CE and L_KD relate (DHO, Eq. 4, 5, 8, 9; Fig. 4 and 13)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Alignment(NamedTuple):
    """Cosine and inner product of two gradients; the cosine with a zero gradient is 0."""

    cosine: float
    inner: float


def alignment(first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> Alignment:
    """Compare two gradients with respect to the same parameters, taken as one long vector each, in float64.

    Args:
        first: a tensor a parameter; None stands for zeros.
        second: the same, of the same shapes.
    """
    inner, squares = 0.0, [0.0, 0.0]
    for a, b in zip(first, second, strict=True):
        if a is not None and b is not None:
            inner += float(a.double().flatten() @ b.double().flatten())
        for place, one in enumerate((a, b)):
            squares[place] += 0.0 if one is None else float(one.double().square().sum())
    norm = (squares[0] * squares[1]) ** 0.5
    return Alignment(inner / norm if norm else 0.0, inner)


def image_alignment(first: Tensor, second: Tensor) -> Alignment:
    """Return the means over images of the cosine and of the inner product of two gradients with respect to features.

    Args:
        first: (B, D) float, a gradient an image (DHO, Eq. 4 and 8).
        second: (B, D) float.
    """
    first, second = first.double(), second.double()
    norms = first.norm(dim=1) * second.norm(dim=1)
    inner = (first * second).sum(1)
    cosines = torch.where(norms > 0, inner / norms.where(norms > 0, torch.ones_like(norms)), torch.zeros_like(inner))
    return Alignment(cosines.mean().item(), inner.mean().item())


def residuals(logits_ce: Tensor, labels: Tensor, logits_kd: Tensor, teacher_logits: Tensor, eta: float = 1.0):
    """Return p_CE - y and p_KD - p (DHO, Eq. 4 and 8), each (B, C) float64.

    Args:
        logits_ce: (B, C) h_CE(z).
        labels: (B,) int64.
        logits_kd: (B, C) h_KD(z); of a single head the same logits.
        teacher_logits: (B, C), cosine similarities divided by zeta.
        eta: temperature of the KD head and of the teacher.
    """
    target = F.one_hot(labels, logits_ce.shape[1]).double()
    taught = (logits_kd.double() / eta).softmax(1) - (teacher_logits.double() / eta).softmax(1)
    return logits_ce.double().softmax(1) - target, taught


def discrepancy(residual_ce: Tensor, residual_kd: Tensor) -> float:
    """Return the mean over images of (p_CE - y)^T (p_KD - p), the prediction-level discrepancy (DHO, section 3.2).

    Args:
        residual_ce: (B, C), p_CE - y.
        residual_kd: (B, C), p_KD - p.
    """
    return (residual_ce.double() * residual_kd.double()).sum(1).mean().item()


def dominant_eigenvalue(weight_ce: Tensor, weight_kd: Tensor | None = None) -> float:
    """Return the eigenvalue of W_CE W_KD^T that is largest in modulus, its real part (DHO, Fig. 13).

    The nonzero eigenvalues of W_CE W_KD^T (C, C) are those of W_KD^T W_CE (D, D); the smaller matrix is used.

    Args:
        weight_ce: (C, D).
        weight_kd: (C, D); None is a single head, whose W W^T is symmetric.
    """
    first = weight_ce.detach().double().cpu()
    if weight_kd is None:
        return float(torch.linalg.svdvals(first)[0] ** 2)
    second = weight_kd.detach().double().cpu()
    product = first @ second.T if len(first) <= first.shape[1] else second.T @ first
    values = torch.linalg.eigvals(product)
    return float(values[values.abs().argmax()].real)
