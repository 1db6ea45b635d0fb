"""Calibration: expected calibration error, the reliability diagram and confidence histograms."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dho_plugin.errors import ConfigError

BINS = 15


class Reliability(NamedTuple):
    """The reliability diagram's bins, equal in width over [0, 1]; means of an empty bin are NaN.

    Attributes:
        edges: (M + 1,) float64.
        confidence: (M,) float64, mean confidence in each bin.
        accuracy: (M,) float64, share of right answers in each bin, 0 to 1.
        count: (M,) int64 answers in each bin.
    """

    edges: Tensor
    confidence: Tensor
    accuracy: Tensor
    count: Tensor


def reliability(confidence: Tensor, correct: Tensor, bins: int = BINS) -> Reliability:
    """Return the reliability diagram; bin m holds confidences in ((m - 1) / M, m / M], 0 lies in the first one.

    Args:
        confidence: (N,) float in [0, 1].
        correct: (N,) bool.
        bins: M.

    Raises:
        ConfigError: no answer, shapes that differ, or no bin.
    """
    _check(confidence, correct, bins)
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    confidence = confidence.double().cpu()
    place = torch.bucketize(confidence, edges[1:-1], right=False)
    count = torch.bincount(place, minlength=bins)
    sums = torch.bincount(place, confidence, bins), torch.bincount(place, correct.double().cpu(), bins)
    return Reliability(edges, sums[0] / count, sums[1] / count, count)


def expected_calibration_error(confidence: Tensor, correct: Tensor, bins: int = BINS) -> float:
    """Return ECE = sum over bins of n_m / N * |accuracy_m - confidence_m|, in percent (Guo et al., ICML 2017, Eq. 3).

    Args:
        confidence: (N,) float in [0, 1].
        correct: (N,) bool.
        bins: M bins of equal width.

    Raises:
        ConfigError: no answer, shapes that differ, or no bin.
    """
    found = reliability(confidence, correct, bins)
    gaps = (found.accuracy - found.confidence).abs()[found.count > 0]
    shares = found.count[found.count > 0].double() / len(confidence)
    return 100.0 * (shares * gaps).sum().item()


def confidence_histogram(confidence: Tensor, bins: int = 20) -> tuple[Tensor, Tensor]:
    """Return the edges (M + 1,) and the percent of answers (M,) in each of M bins of equal width over [0, 1].

    Raises:
        ConfigError: no answer, or no bin.
    """
    found = reliability(confidence, torch.zeros(len(confidence), dtype=torch.bool), bins)
    return found.edges, 100.0 * found.count.double() / len(confidence)


def _check(confidence: Tensor, correct: Tensor, bins: int) -> None:
    if bins < 1:
        raise ConfigError(f"bins is {bins}; it must be at least 1")
    if not len(confidence) or confidence.shape != correct.shape:
        shapes = f"{tuple(confidence.shape)} and {tuple(correct.shape)}"
        raise ConfigError(f"confidence and correct have shapes {shapes}; both must be (N,) with at least one answer")
