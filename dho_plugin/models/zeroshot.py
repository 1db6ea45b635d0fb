"""The zero-shot classifier of a CLIP: text features of the class names."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dho_plugin.core.heads import CosineHead
from dho_plugin.models.clip import LoadedCLIP


@torch.no_grad()
def class_features(
    clip: LoadedCLIP,
    classnames: Sequence[str],
    templates: Sequence[str],
    batch_size: int = 256,
    *,
    normalize_each: bool = True,
) -> Tensor:
    """Return the normalized text feature of each class, averaged over templates: f_T(t_c) of DHO, Eq. 1.

    Each template's feature is normalized, the mean over templates is normalized again, as in Tip-Adapter; PromptSRC
    does only the latter.

    Args:
        clip: any CLIP; it is called where its weights lie.
        classnames: C names; "_" reads as a space.
        templates: strings with one "{}" each.
        batch_size: prompts that are encoded at once.
        normalize_each: normalize each template's feature before averaging.

    Returns:
        (C, D) float32 of unit length, on the CLIP's device.
    """
    names = [name.replace("_", " ") for name in classnames]
    prompts = ([template.format(name) for name in names] for template in templates)
    features = (_encode(clip, texts, batch_size) for texts in prompts)
    total = sum(normalize(f, dim=-1) if normalize_each else f for f in features)
    return normalize(total / len(templates), dim=-1)


def zero_shot_head(
    clip: LoadedCLIP, classnames: Sequence[str], templates: Sequence[str], zeta: float = 0.0
) -> CosineHead:
    """Return the frozen classifier cos(z, f_T(t_c)) / zeta of a CLIP (DHO, Eq. 1).

    Args:
        clip: any CLIP; it is called where its weights lie.
        classnames: C names; "_" reads as a space.
        templates: strings with one "{}" each.
        zeta: temperature; 0 takes the one that comes with the weights.
    """
    features = class_features(clip, classnames, templates)
    return CosineHead(features.shape[1], len(features), zeta or clip.zeta, init=features).requires_grad_(False)


def _encode(clip: LoadedCLIP, prompts: list[str], batch_size: int) -> Tensor:
    chunks = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
    features = [clip.encode_text(clip.tokenizer(chunk).to(clip.device)).float() for chunk in chunks]
    return torch.cat(features)
