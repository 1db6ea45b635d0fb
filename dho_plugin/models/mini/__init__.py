"""The embedded CLIPs of the mini world: a small student and teacher, trained by `dho_plugin.data.mini.pretrain`."""

import json
from importlib.resources import files

import safetensors.torch
import torch
from open_clip.model import CLIP
from torch import nn

from dho_plugin.engine.views import Preprocess
from dho_plugin.errors import ConfigError
from dho_plugin.models.mini.tokenizer import WordTokenizer

MINI_MODELS = ("mini-student", "mini-teacher")

__all__ = ["MINI_MODELS", "build_mini", "load_mini", "load_weights", "mini_preprocess", "mini_tokenizer"]


class ConvStem(nn.Conv2d):
    """3 x 3 convolutions in the place of a ViT's `conv1`: a plain patch embedding does not learn from so few images.

    A subclass of Conv2d, so that code which looks at `conv1.weight` (its dtype, its width) finds what it expects.

    Args:
        channels: outputs of the convolutions before the last.
        strides: their strides.
        width: outputs of the last convolution, of stride 2.
    """

    def __init__(self, channels: list[int], strides: list[int], width: int):
        super().__init__(channels[-1], width, 3, stride=2, padding=1, bias=False)
        layers, inputs = [], 3
        for outputs, stride in zip(channels, strides, strict=True):
            conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        self.stem = nn.Sequential(*layers)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, H, W) to (B, width, H / 8, W / 8)."""
        return super().forward(self.stem(images.contiguous(memory_format=torch.channels_last)))


def _read(name: str, suffix: str) -> bytes:
    if name not in MINI_MODELS:
        raise ConfigError(f"unknown mini model {name!r}; known: {', '.join(MINI_MODELS)}")
    return (files(__package__) / (name.removeprefix("mini-") + suffix)).read_bytes()


def build_mini(name: str) -> CLIP:
    """Return a mini CLIP with random weights, fp32, in training mode.

    Args:
        name: "mini-student" or "mini-teacher".

    Raises:
        ConfigError: the name is unknown.
    """
    config = json.loads(_read(name, ".json"))
    model = CLIP(**config["model"])
    model.visual.conv1 = ConvStem(**config["stem"], width=config["model"]["vision_cfg"]["width"])
    return model


def load_weights(model: nn.Module, content: bytes) -> None:
    """Load shipped weights, fp16 safetensors, into a model in fp32."""
    weights = safetensors.torch.load(content)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})


def mini_preprocess(name: str) -> Preprocess:
    """Return how a mini CLIP wants its pixels."""
    fields = json.loads(_read(name, ".json"))["preprocess"]
    return Preprocess(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def mini_tokenizer() -> WordTokenizer:
    """Return the tokenizer that both mini CLIPs share."""
    words = (files(__package__) / "vocab.txt").read_text(encoding="utf-8").split()
    return WordTokenizer(words, context_length=16)


def load_mini(name: str) -> tuple[CLIP, WordTokenizer, Preprocess]:
    """Load a mini CLIP with its pretrained weights.

    Args:
        name: "mini-student" or "mini-teacher".

    Returns:
        The model (fp32, eval mode), its tokenizer and its preprocessing.

    Raises:
        ConfigError: the name is unknown.
    """
    model = build_mini(name)
    load_weights(model, _read(name, ".safetensors"))
    return model.eval(), mini_tokenizer(), mini_preprocess(name)
