"""The mini world's compact student: a ResNet of 0.3 million parameters for 32 pixels, from scratch or pretrained."""

from importlib.resources import files

import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from dho_plugin.engine.views import Preprocess
from dho_plugin.errors import ConfigError
from dho_plugin.models.mini import build_mini, load_weights, mini_preprocess

MINI_BACKBONES = ("mini-resnet", "mini-resnet-pretrained")
CHANNELS, STEM_WIDTH = (16, 32, 64, 128), 8


def build_mini_backbone(name: str) -> tuple[ResNet, Preprocess]:
    """Return a mini ResNet as a backbone: (B, 3, 32, 32) images -> (B, 128) features, `num_features` wide.

    Args:
        name: "mini-resnet", with random weights, or "mini-resnet-pretrained": its features were learned from the mini
            student's image-caption pairs, without any label (`python -m dho_plugin.data.mini.pretrain resnet`).

    Returns:
        The network in fp32 and training mode, and how it wants its pixels.

    Raises:
        ConfigError: the name is unknown.
    """
    if name not in MINI_BACKBONES:
        raise ConfigError(f"unknown mini backbone {name!r}; known: {', '.join(MINI_BACKBONES)}")
    net = build_resnet()
    if name == "mini-resnet-pretrained":
        load_weights(net, (files(__package__) / "resnet.safetensors").read_bytes())
    return net, mini_preprocess("mini-student")


def build_resnet() -> ResNet:
    """Return the mini ResNet with random weights: one block a stage behind three 3 x 3 convolutions."""
    # Blocks that start as the identity (timm's default) take twice the steps in a net of four.
    options = {"stem_type": "deep", "stem_width": STEM_WIDTH, "zero_init_last": False}
    net = ResNet(BasicBlock, (1, 1, 1, 1), channels=CHANNELS, num_classes=0, **options)
    net.maxpool = nn.Identity()  # of 32 pixels it would leave 8
    return net.to(memory_format=torch.channels_last)


class ResNetTower(nn.Module):
    """The mini ResNet as the image tower of a CLIP, for its pretraining: features times a projection.

    Args:
        output_dim: width of the CLIP's embedding.
    """

    def __init__(self, output_dim: int):
        super().__init__()
        self.output_dim, self.trunk = output_dim, build_resnet()
        self.projection = nn.Linear(self.trunk.num_features, output_dim, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, 32, 32) to (B, output_dim)."""
        return self.projection(self.trunk(images.contiguous(memory_format=torch.channels_last)))


def build_resnet_clip() -> nn.Module:
    """Return a mini CLIP with the ResNet in the place of its image transformer, random weights, training mode."""
    model = build_mini("mini-student")
    model.visual = ResNetTower(model.visual.output_dim)
    return model
