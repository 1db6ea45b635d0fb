"""Frozen image features, the cheapest exact way: of the last layer only the token that becomes the feature."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import open_clip
import torch
from open_clip.transformer import Transformer, VisionTransformer
from torch import Tensor, nn

from dho_plugin.errors import ConfigError
from dho_plugin.models.blocks import first_token, is_plain
from dho_plugin.models.deep_prompts import run_blocks
from dho_plugin.models.tome import merging_tower

_NOT_PLAIN = "its attention is not plain multi-head attention"


class ImagePath(NamedTuple):
    """A way to image features, and why it is taken."""

    name: str
    reason: str


def image_path(model: nn.Module, requested: str = "auto", tome_r: int = 0) -> ImagePath:
    """Return the way through the image tower of open_clip's `model` that MODEL.IMAGE_TOWER and MODEL.TOME_R ask for.

    It is "class token", whose last layer works for the class token alone, "plain", the model's own, or "token merging".

    Raises:
        ConfigError: tokens are to be merged that another encoder does not have, or does not keep.
    """
    if tome_r:
        obstacle = _whole(model) or ("" if all(map(is_plain, model.visual.transformer.resblocks)) else _NOT_PLAIN)
        if obstacle:
            raise ConfigError(f"MODEL.TOME_R is {tome_r}: {obstacle}, so there is nothing to merge; set it to 0")
        return ImagePath("token merging", f"MODEL.TOME_R {tome_r}: so many fewer tokens behind each layer")
    if requested == "plain":
        return ImagePath("plain", "MODEL.IMAGE_TOWER asks for it")
    obstacle = _whole(model)
    return (
        ImagePath("plain", obstacle) if obstacle else ImagePath("class token", "only it is read behind the last layer")
    )


def encode_image(model: nn.Module, path: ImagePath, images: Tensor, tome_r: int = 0) -> Tensor:
    """Encode normalized images (B, 3, H, W) into features (B, D), not normalized, in a way of `image_path`."""
    if path.name == "plain":
        return model.encode_image(images, normalize=False)  # CoCa's would be, of itself
    visual = model.visual
    if tome_r:
        return feature(visual, merging_tower(visual.transformer, visual._embeds(images), tome_r).unsqueeze(1))
    return feature(visual, run_blocks(visual.transformer, visual._embeds(images), last=first_token).unsqueeze(1))


def compiled(encode: Callable[[Tensor], Tensor], name: str) -> Callable[[Tensor], Tensor]:
    """Return an encoder under torch.compile; where that fails, the encoder `name` says so and runs as it is."""
    from torch._dynamo.exc import TorchDynamoException  # it imports a compiler

    way = torch.compile(encode)

    def run(images: Tensor) -> Tensor:
        nonlocal way
        try:
            return way(images)
        except TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            print(f"MODEL.COMPILE: {name}'s image encoder cannot be compiled here and runs as it is: {reason}")
            way = encode
            return encode(images)

    return run


def feature(visual: VisionTransformer, tokens: Tensor) -> Tensor:
    """Return the features (B, D) of the tokens (B, L, W) behind the last layer; they may be the class token alone."""
    pooled, _ = visual._pool(tokens)
    return pooled if visual.proj is None else pooled @ visual.proj


def _whole(model: nn.Module) -> str:
    """Return why the last layer is wanted for all tokens, or in a way that nobody knows, or ""."""
    visual, own = model.visual, (open_clip.CLIP.encode_image, open_clip.CustomTextCLIP.encode_image)
    if type(visual) is not VisionTransformer or type(visual.transformer) is not Transformer:
        return f"its image encoder is a {type(visual).__name__}"
    if getattr(model.encode_image, "__func__", None) not in own:
        return f"{type(model).__name__} encodes images in a way of its own"
    if visual.output_tokens:
        return "all its tokens are wanted"
    if visual.attn_pool is not None:
        return "its feature is pooled by attention"
    if visual.pool_type != "tok":
        return f"its feature is pooled by {visual.pool_type!r}"
    if not visual.transformer.batch_first or not is_plain(visual.transformer.resblocks[-1]):
        return _NOT_PLAIN
    return ""
