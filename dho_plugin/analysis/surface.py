"""Accuracy over alpha and beta on validation images (DHO, Fig. 10)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dho_plugin.core.inference import ALPHAS, BETAS, search_alpha_beta
from dho_plugin.engine.evaluator import TestLogits
from dho_plugin.errors import ConfigError


class Surface(NamedTuple):
    """Accuracy at each point of the grid.

    Attributes:
        alphas: A weights of the CE head.
        betas: K temperatures of the KD head.
        accuracy: (A, K) float64 in percent.
        best: the (alpha, beta) that `search_alpha_beta` takes.
        n: validation images.
    """

    alphas: tuple[float, ...]
    betas: tuple[float, ...]
    accuracy: Tensor
    best: tuple[float, float]
    n: int


def surface(validation: TestLogits, alphas=ALPHAS, betas=BETAS) -> Surface:
    """Return the accuracy over the alpha-beta grid; it is for VALIDATION logits only.

    Raises:
        ConfigError: the model has one head only, or no image could be read.
    """
    kept = validation.readable()
    if kept.logits_kd is None:
        raise ConfigError("the run has no second head, so there is no alpha and beta to vary")
    found = search_alpha_beta(kept.logits_ce, kept.logits_kd, kept.labels, alphas, betas)
    grid = torch.tensor([accuracy for _, _, accuracy in found.grid], dtype=torch.float64)
    shape = len(alphas), len(betas)
    return Surface(tuple(alphas), tuple(betas), grid.reshape(shape), (found.alpha, found.beta), len(kept.labels))
