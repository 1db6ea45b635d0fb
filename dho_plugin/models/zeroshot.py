"""The zero-shot classifier of a CLIP: text features of the class names."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dho_plugin.core.heads import CosineHead
from dho_plugin.models.buckets import by_length
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.text_paths import class_path
from dho_plugin.models.text_tower import TextTower


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
    _say_what_reads_alike(clip, dict.fromkeys(names), templates[0])
    features = _encode(clip, [template.format(name) for template in templates for name in names], batch_size)
    features = normalize(features, dim=-1) if normalize_each else features
    return normalize(features.view(len(templates), len(names), -1).mean(dim=0), dim=-1)


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


def _say_what_reads_alike(clip: LoadedCLIP, names: Iterable[str], template: str) -> None:
    """Print two names whose prompts are the same tokens, such as long ones that a short context cuts."""
    first: dict[bytes, str] = {}
    for name, tokens in zip(names, clip.tokenizer([template.format(name) for name in names]), strict=True):
        other = first.setdefault(tokens.numpy().tobytes(), name)
        if other != name:
            same = f"the classes {other!r} and {name!r} are the same {len(tokens)} tokens"
            print(f"To {clip.name} {same}: tell them apart earlier in their names, or in DATASET.TEMPLATES")
            return


def _encode(clip: LoadedCLIP, prompts: list[str], batch_size: int) -> Tensor:
    """Return the features (N, D) float32, not normalized, of N prompts, each cut behind its end where that is exact."""
    tokens = clip.tokenizer(prompts)
    if class_path(clip).name == "plain":
        return torch.cat([clip.encode_text(chunk.to(clip.device)).float() for chunk in tokens.split(batch_size)])
    tower = TextTower(clip)
    eot = tower.eot(tokens)
    order, buckets = by_length(eot + 1)
    features = [
        tower(tower.embed(tokens[own, :length].to(clip.device)), eot[own].to(clip.device)).float()
        for length, start, stop in buckets
        for own in order[start:stop].split(batch_size)
    ]
    return torch.cat(features)[order.argsort().to(clip.device)]
