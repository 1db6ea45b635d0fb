"""The ways to the prompts' text features, all exact: which of them a tower and its prompts allow, which is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from open_clip.transformer import CustomResidualAttentionBlock, ResidualAttentionBlock
from torch import Tensor, cat, nn

from dho_plugin.errors import ConfigError
from dho_plugin.models.blocks import is_plain
from dho_plugin.models.buckets import by_length, most_buckets
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.deep_prompts import DeepPrompts
from dho_plugin.models.prompts import PromptLearner
from dho_plugin.models.shared_prefix import SharedPrefix
from dho_plugin.models.text_tower import TextTower, unsuited


class TextPath(NamedTuple):
    """A way to text features, and why it is taken."""

    name: str
    reason: str


class Plain(nn.Module):
    """Features of prompts over the whole context length.

    Args:
        tower: any text tower.
        prompts: any prompts.
    """

    def __init__(self, tower: TextTower, prompts: PromptLearner):
        super().__init__()
        self.tower, self.prompts = tower, prompts

    def forward(self, deep: Sequence[Tensor] = ()) -> Tensor:
        """Return the prompts' features (C, D), not normalized; `deep` as in `TextTower`."""
        return self.tower(self.prompts(), self.prompts.eot, deep)


class Truncated(nn.Module):
    """Features of prompts that are cut behind their end, those of one length together.

    Args:
        tower: a causal text tower: what stands behind the end of a prompt changes nothing.
        prompts: any prompts.
        most: how many buckets of equal length to make at most; None: one for each length.
    """

    def __init__(self, tower: TextTower, prompts: PromptLearner, most: int | None = None):
        super().__init__()
        self.tower, self.prompts = tower, prompts
        order, self.buckets = by_length(prompts.eot + 1, most)
        self.register_buffer("order", order.to(prompts.eot.device), persistent=False)
        self.register_buffer("inverse", self.order.argsort(), persistent=False)

    def forward(self, deep: Sequence[Tensor] = ()) -> Tensor:
        """Return the prompts' features (C, D), not normalized; `deep` as in `TextTower`."""
        prompts, eot, features = self.prompts(), self.prompts.eot, []
        for length, start, stop in self.buckets:
            own = self.order[start:stop]
            features.append(self.tower(prompts[own, :length], eot[own], deep))
        return cat(features)[self.inverse]


def text_features(
    tower: TextTower, prompts: PromptLearner, deep: DeepPrompts | None = None
) -> tuple[nn.Module, TextPath]:
    """Return the module that encodes prompts in the way that MODEL.TEXT_TOWER asks for, and that way.

    Raises:
        ConfigError: MODEL.TEXT_TOWER names a way that would change the features.
    """
    path, most = choose_path(tower, prompts, deep), most_buckets(prompts.eot.device)
    if path.name == "plain":
        return Plain(tower, prompts), path
    return (SharedPrefix if path.name == "shared" else Truncated)(tower, prompts, most), path


def choose_path(tower: TextTower, prompts: PromptLearner, deep: DeepPrompts | None = None) -> TextPath:
    """Return the cheapest exact path to the features of learned prompts, or the one that MODEL.TEXT_TOWER names.

    Raises:
        ConfigError: the one it names would change the features.
    """
    not_causal = uncut(tower)
    not_shared = not_causal or unpacked(tower) or unshared(prompts, deep)
    if not not_shared:
        possible = TextPath("shared", "causal attention, and one context in front of all class names")
    elif not not_causal:
        possible = TextPath("truncated", f"causal attention; {not_shared}")
    else:
        possible = TextPath("plain", not_causal)
    return _requested(tower.requested_path, possible, {"shared": not_shared, "truncated": not_causal})


def class_path(clip: LoadedCLIP) -> TextPath:
    """Return the cheapest exact path to the features of class names in templates; "shared" is for learned prompts.

    Raises:
        ConfigError: MODEL.TEXT_TOWER names one that would change the features.
    """
    obstacle = unsuited(clip) or uncut(TextTower(clip))
    possible = TextPath("plain", obstacle) if obstacle else TextPath("truncated", "causal attention")
    requested = "truncated" if clip.text_tower == "shared" else clip.text_tower
    return _requested(requested, possible, {"truncated": obstacle})


def uncut(tower: TextTower) -> str:
    """Return why tokens behind the end of a prompt may change its feature, or "": decided from the mask itself."""
    mask = tower.attn_mask
    if mask is None or not torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1)):
        return "its attention is not causal"
    kinds = {type(block) for block in tower.transformer.resblocks}
    if kinds - {ResidualAttentionBlock, CustomResidualAttentionBlock}:
        return "its blocks are not open_clip's"
    return ""


def unpacked(tower: TextTower) -> str:
    """Return why the attention of a tower's blocks cannot be computed apart from the block, or ""."""
    return "" if all(map(is_plain, tower.transformer.resblocks)) else "its attention is not plain multi-head attention"


def unshared(prompts: PromptLearner, deep: DeepPrompts | None = None) -> str:
    """Return why prompts do not begin alike up to the end of their context, or ""."""
    if prompts.ctx.dim() == 3:
        return "each class has a context of its own (CSC)"
    if prompts.order is not None:
        return "class names stand before the end of the context (CLASS_TOKEN_POSITION)"
    if deep is not None and any(len(own) > prompts.n_ctx for own in deep.layers()):
        return "deep prompts reach behind the context"
    return ""


def _requested(requested: str, possible: TextPath, obstacles: dict[str, str]) -> TextPath:
    if requested == "auto":
        return possible
    if obstacle := obstacles.get(requested):
        raise ConfigError(
            f"MODEL.TEXT_TOWER is {requested!r}, which would change the text features here: {obstacle}; "
            f"choose auto (which takes {possible.name}) or plain"
        )
    return TextPath(requested, "MODEL.TEXT_TOWER asks for it")
