"""The zero-shot classifier of a CLIP: text features of the class names."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dho_plugin.models.clip import LoadedCLIP


@torch.no_grad()
def class_features(
    clip: LoadedCLIP, classnames: Sequence[str], templates: Sequence[str], batch_size: int = 256
) -> Tensor:
    """Return the normalized text feature of each class, averaged over templates: f_T(t_c) of DHO, Eq. 1.

    Each template's feature is normalized, the mean over templates is normalized again, as in Tip-Adapter.

    Args:
        clip: any CLIP; it is called where its weights lie.
        classnames: C names; "_" reads as a space.
        templates: strings with one "{}" each.
        batch_size: prompts that are encoded at once.

    Returns:
        (C, D) float32 of unit length, on the CLIP's device.
    """
    names = [name.replace("_", " ") for name in classnames]
    total = sum(_encode(clip, [template.format(name) for name in names], batch_size) for template in templates)
    return normalize(total / len(templates), dim=-1)


def _encode(clip: LoadedCLIP, prompts: list[str], batch_size: int) -> Tensor:
    chunks = [prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size)]
    features = [clip.encode_text(clip.tokenizer(chunk).to(clip.device)).float() for chunk in chunks]
    return normalize(torch.cat(features), dim=-1)
