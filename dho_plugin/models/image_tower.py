"""CLIP's image transformer with learned prompts beside the image's tokens."""

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, cat, nn

from dho_plugin.errors import ConfigError
from dho_plugin.models.blocks import first_token
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.deep_prompts import VisualPrompts, run_blocks
from dho_plugin.models.image_encoder import feature


class PromptedImageTower(nn.Module):
    """The frozen image transformer of a CLIP with visual prompts behind the image's tokens.

    Layer i < depth sees [class token, patches, prompts_i] (VPT-deep, Jia et al., ECCV 2022); layers above the depth go
    on with what the last prompts became. As in MaPLe and PromptSRC the prompts of layer 0 have no positions, and they
    pass the norm before the first block. The feature is read as the CLIP reads it, without looking at the prompts.

    Args:
        clip: a CLIP with a vision transformer; its parameters are shared.
        prompts: the prompts.
        dropout: rate at which values of the prompts are zeroed in training, each image on its own.
    """

    def __init__(self, clip: LoadedCLIP, prompts: VisualPrompts, dropout: float = 0.0):
        super().__init__()
        vision_width(clip)
        if clip.tome_r:
            raise ConfigError(f"MODEL.TOME_R is {clip.tome_r}: beside visual prompts no tokens are merged; set it to 0")
        self.visual, self.prompts, self.dropout = clip.model.visual, prompts, nn.Dropout(dropout)
        self.class_alone = clip.image_path.name == "class token"

    def forward(self, images: Tensor) -> Tensor:
        """Return the features (B, D), not normalized, of images (B, 3, H, W)."""
        visual = self.visual
        x = visual._embeds(images).detach()  # nothing that learns lies below
        n_tokens = x.shape[1]

        def behind_image(x: Tensor, prompts: Tensor) -> Tensor:
            return cat([x[:, :n_tokens], self.dropout(prompts.expand(x.shape[0], -1, -1))], dim=1)

        x = cat([x, visual.ln_pre(behind_image(x, self.prompts.VPT)[:, n_tokens:])], dim=1)
        last = first_token if self.class_alone else None
        x = run_blocks(visual.transformer, x, self.prompts.layers(), behind_image, last=last)
        return feature(visual, x.unsqueeze(1) if self.class_alone else x[:, :n_tokens])


def checkpoint_images(clip: LoadedCLIP, on: bool = True, *, learns: bool = False) -> None:
    """Keep only each layer's input for the backward through an image encoder; the rest is computed once more.

    Args:
        clip: holds the encoder.
        on: whether to do so, or no longer.
        learns: whether the encoder itself learns.

    Raises:
        ConfigError: it learns and has BatchNorm there, whose running statistics would take in every batch twice.
    """
    transformer = isinstance(clip.visual, VisionTransformer)
    within = clip.visual.transformer if transformer else clip.visual
    if on and learns and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in within.modules()):
        raise ConfigError(
            f"MODEL.IMAGE_CHECKPOINTING: {clip.name} has BatchNorm, whose running statistics would take in every batch "
            "twice; TRAIN.ACCUMULATION takes less memory, too, and shows BatchNorm a part of the batch at once"
        )
    if transformer:
        clip.visual.transformer.grad_checkpointing = on
    elif hasattr(clip.visual, "set_grad_checkpointing"):  # a backbone of timm
        clip.visual.set_grad_checkpointing(on)


def channels_last(clip: LoadedCLIP) -> None:
    """Keep the weights of an image encoder's convolutions channels last; images and activations follow them."""
    clip.visual.to(memory_format=torch.channels_last)


def vision_width(clip: LoadedCLIP) -> int:
    """Return the width W of a token of the CLIP's image transformer.

    Raises:
        ConfigError: the image encoder is no vision transformer of open_clip.
    """
    visual = clip.model.visual
    if not isinstance(visual, VisionTransformer):
        raise ConfigError(
            f"MODEL.BACKBONE.NAME: visual prompts need a vision transformer, and {clip.name}'s image encoder is a "
            f"{type(visual).__name__}; choose a CLIP such as ViT-B/16"
        )
    return visual.transformer.width


def vision_layers(clip: LoadedCLIP) -> int:
    """Return the number of layers of the CLIP's image transformer."""
    vision_width(clip)
    return len(clip.model.visual.transformer.resblocks)
