"""The equations of Tip-Adapter: a classifier that looks its answer up among the labeled images (Zhang et al. 2022)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dho_plugin.core.losses import widen
from dho_plugin.errors import ConfigError


class CacheSearch(NamedTuple):
    """A chosen point of the alpha-beta grid of a cache model.

    Attributes:
        alpha: weight of the cache model.
        beta: sharpness of its affinities.
        accuracy: of that point, in percent.
    """

    alpha: float
    beta: float
    accuracy: float


def mean_keys(passes: Tensor) -> Tensor:
    """The cache's keys F_train: each image's mean feature over its augmented views, of unit length, as released.

    Args:
        passes: (K, N, D) float, features of N images in K views, of any length.

    Returns:
        (N, D), fp32 (fp64 for fp64 features).
    """
    return F.normalize(widen(passes).mean(dim=0), dim=-1)


def cache_logits(affinity: Tensor, values: Tensor, beta: float | Tensor) -> Tensor:
    """phi(x) = exp(-beta (1 - x F_train^T)) L_train, what the cache model says (Tip-Adapter).

    Args:
        affinity: (B, N) float, x F_train^T of unit features and keys.
        values: (N, C) L_train, a one-hot row a key.
        beta: sharpness.

    Returns:
        (B, C) of the affinity's type.
    """
    return torch.exp(-beta * (1 - affinity)) @ values.to(affinity.dtype)


def tip_logits(
    features: Tensor,
    text: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    alpha: float | Tensor,
    beta: float | Tensor,
    zeta: float,
) -> Tensor:
    """Logits f W^T / zeta + alpha phi(x) of Tip-Adapter and, with learned keys, of Tip-Adapter-F.

    The released code writes 100 in the place of 1 / zeta: it is OpenAI's scale. Learned keys are taken as they are, of
    whatever length. The gradient goes to the features, the keys and the text features.

    Args:
        features: (B, D) float of any width and length.
        text: (C, D) W, unit text features.
        keys: (N, D) F_train.
        values: (N, C) L_train.
        alpha: weight of the cache model.
        beta: sharpness of its affinities.
        zeta: CLIP's temperature.

    Returns:
        (B, C), fp32 (fp64 for fp64 keys).
    """
    dtype = torch.promote_types(keys.dtype, torch.float32)
    with torch.autocast(device_type=features.device.type, enabled=False):
        unit = F.normalize(features.to(dtype), dim=-1)
        zero_shot = F.linear(unit, text.to(dtype)) / zeta
        return zero_shot + alpha * cache_logits(F.linear(unit, keys.to(dtype)), values, beta)


@torch.no_grad()
def search_cache(
    zero_shot: Tensor, affinity: Tensor, values: Tensor, labels: Tensor, scale: Sequence[float], steps: Sequence[int]
) -> CacheSearch:
    """The alpha and beta with the best accuracy on a VALIDATION set, over the released code's grid.

    Tried are i (s - 0.1) / n + 0.1 for i = 0 ... n - 1. Of several best points the smallest beta is taken, then the
    smallest alpha.

    Args:
        zero_shot: (V, C) f W^T / zeta of the validation images.
        affinity: (V, N) f F_train^T of their unit features.
        values: (N, C) L_train.
        labels: (V,) int64.
        scale: s of beta and of alpha.
        steps: n of beta and of alpha.

    Returns:
        CacheSearch(alpha, beta, accuracy).

    Raises:
        ConfigError: no validation image.
    """
    if not len(labels):
        raise ConfigError("the search of Tip-Adapter's alpha and beta needs at least one validation image")
    betas, alphas = ([i * (s - 0.1) / n + 0.1 for i in range(n)] for s, n in zip(scale, steps, strict=True))
    best = (-1, 0.0, 0.0)
    for beta in betas:
        cached = cache_logits(affinity, values, beta)
        counts = [((zero_shot + alpha * cached).argmax(dim=1) == labels).sum() for alpha in alphas]
        correct, alpha = max(zip(torch.stack(counts).tolist(), alphas, strict=True), key=lambda point: point[0])
        best = max(best, (correct, beta, alpha), key=lambda point: point[0])  # of equal ones the first
    return CacheSearch(best[2], best[1], 100 * best[0] / len(labels))
