"""Image encoders without a text tower, which learn as compact students: timm's by name, from scratch, hub or file."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import open_clip
import timm
from torch import Tensor, device, nn

from dho_plugin.engine.views import Preprocess
from dho_plugin.errors import CheckpointError, ConfigError
from dho_plugin.models.clip_files import differences, first_line, read_state
from dho_plugin.models.image_encoder import ImagePath
from dho_plugin.models.mini import MINI_MODELS
from dho_plugin.models.mini.resnet import MINI_BACKBONES, build_mini_backbone
from dho_plugin.models.names import HOST_NAMES
from dho_plugin.models.tome import merging_timm, timm_obstacle

HUB_PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Names of ours for weights that timm does not publish: timm's architecture, and its facts about them.
PUBLISHED = {
    "dino_resnet50": (
        "resnet50",
        {
            "url": "https://dl.fbaipublicfiles.com/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth",
            "hf_hub_id": "",
            "tag": "dino",
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
        },
    )
}


@dataclass(frozen=True, eq=False)
class LoadedBackbone:
    """An image encoder in fp32 with what belongs to its weights; the slots are those of `clip.LoadedCLIP`.

    Attributes:
        name: the name it was asked for by.
        model: images (B, 3, S, S) -> features (B, D).
        preprocess: size, normalization and resize of its images.
        feature_dim: D.
        origin: where its weights come from, for the log.
        zeta: temperature of a cosine head on its features; it has none of its own, so it is OpenAI's.
        tome_r: how many tokens each layer merges, MODEL.TOME_R.
    """

    name: str
    model: nn.Module
    preprocess: Preprocess
    feature_dim: int
    origin: str
    zeta: float = 0.01
    tome_r: int = 0

    @property
    def visual(self) -> nn.Module:
        """The image encoder."""
        return self.model

    @property
    def device(self) -> device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    @property
    def image_path(self) -> ImagePath:
        """The way through the encoder, for the log."""
        merges = f", MODEL.TOME_R {self.tome_r}" if self.tome_r else ""
        return ImagePath("token merging" if self.tome_r else "plain", f"{self.name}, {self.origin}{merges}")

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode normalized images (B, 3, S, S) into features (B, D)."""
        return merging_timm(self.model, images, self.tome_r) if self.tome_r else self.model(images)


def is_backbone(name: str, tag: str = "") -> bool:
    """Say whether a name is an encoder without text: timm's and the hub's are, hosts' names and open_clip's are not.

    A few names are timm's and open_clip's; open_clip's is meant where a tag of its weights is given.
    """
    if name in MINI_BACKBONES or name in PUBLISHED or name.startswith(HUB_PREFIXES):
        return True
    return name not in HOST_NAMES and not tag and timm.is_model(name.partition(".")[0])


def close_names(name: str, more: Iterable[str] = ()) -> list[str]:
    """Return up to five names of models that are like one, those of `more` among them."""
    known = [*more, *MINI_BACKBONES, *PUBLISHED, *timm.list_models(), *_clips()]
    return difflib.get_close_matches(name, dict.fromkeys(known), 5)


def _clips() -> list[str]:
    return [*HOST_NAMES, *MINI_MODELS, *open_clip.list_models()]


def require_known(name: str, key: str) -> None:
    """Raise ConfigError unless timm, a hub, open_clip or a host has a model of this name, or it is one of ours.

    Args:
        name: of an image encoder or a CLIP.
        key: config prefix that the message names, such as MODEL.BACKBONE.
    """
    if name in _clips() or is_backbone(name):
        return
    close = close_names(name)
    near = f"; close to it are: {', '.join(close)}" if close else ""
    raise ConfigError(f"{key}.NAME: neither timm nor open_clip has a model {name!r}{near}")


def load_backbone(
    name: str,
    *,
    pretrained: bool = True,
    ckpt: str = "",
    size: int = 0,
    key: str = "MODEL.BACKBONE",
    weights: bool = True,
) -> LoadedBackbone:
    """Load an image encoder, all of whose weights are to learn.

    Args:
        name: timm's name, with or without a tag (`resnet18.tv_in1k`), `hf-hub:...`, `dino_resnet50` (DINO's own file
            is downloaded), or a mini backbone's.
        pretrained: weights from the hub; False starts from timm's random initialization. `ckpt` goes first.
        ckpt: local file of plain tensors with the architecture's own keys, such as DINO's `dino_resnet50_pretrain.pth`;
            its classifier, if it has one, is left out. Beside a name with a tag it is taken for that tag's weights.
        size: side of the square input; 0 takes what belongs to the weights, or the architecture.
        key: config prefix that messages name.
        weights: False leaves the weights as they are drawn, for others to be loaded; the preprocessing is the same.

    Returns:
        The encoder on the CPU, in training mode.

    Raises:
        ConfigError: the name is unknown.
        CheckpointError: weights are missing, damaged or of another architecture, or cannot be downloaded.
    """
    if name in MINI_BACKBONES:
        return _mini(name, ckpt, size, key)
    model = _create(name, pretrained and not ckpt and weights, key)
    origin = "from scratch"
    if ckpt and weights:
        _load_file(model, Path(ckpt).expanduser(), name, key)
        origin = f"from {ckpt}"
    elif pretrained:
        origin = f"pretrained ({model.pretrained_cfg.get('tag') or name})"
    preprocess = _preprocess(model, size, published=pretrained and (not ckpt or "." in name))
    return LoadedBackbone(name, model.float().train(), preprocess, feature_dim(model), origin)


def merging(loaded: LoadedBackbone, r: int) -> LoadedBackbone:
    """Return the encoder with r tokens merged in each of its layers but the last, MODEL.TOME_R; with r = 0 as it is.

    Raises:
        ConfigError: it is no transformer of timm that tokens can be merged in.
    """
    if r and (obstacle := timm_obstacle(loaded.model)):
        raise ConfigError(f"MODEL.TOME_R is {r}: tokens cannot be merged in {loaded.name}: {obstacle}; set it to 0")
    return replace(loaded, tome_r=r)


def feature_dim(model: nn.Module) -> int:
    """Return the width D of the features that a timm model without classifier gives."""
    return getattr(model, "head_hidden_size", None) or model.num_features


def _mini(name: str, ckpt: str, size: int, key: str) -> LoadedBackbone:
    if ckpt or size:
        raise ConfigError(f"{key}.CKPT and {key}.SIZE must be empty and 0: {name} ships with what it needs")
    model, preprocess = build_mini_backbone(name)
    return LoadedBackbone(name, model.float().train(), preprocess, model.num_features, "of the mini world")


def _create(name: str, pretrained: bool, key: str) -> nn.Module:
    arch, facts = PUBLISHED.get(name, (name, None))
    try:
        return timm.create_model(arch, pretrained=pretrained, num_classes=0, pretrained_cfg_overlay=facts)
    except Exception as error:  # a hub's client, a damaged download, or a name that timm does not build
        if not pretrained:
            raise ConfigError(f"{key}.NAME: timm cannot build {name!r} ({first_line(error)})") from error
        raise CheckpointError(
            f"cannot get the weights of {name} from the hub ({first_line(error)}). Without a network, fetch the file "
            f"elsewhere and set {key}.CKPT to its path, or set {key}.PRETRAINED False to train from scratch"
        ) from error


def _load_file(model: nn.Module, path: Path, name: str, key: str) -> None:
    expected, state = model.state_dict(), read_state(path, key)
    classifier = model.pretrained_cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ((classifier,) if isinstance(classifier, str) else classifier))
    state = {k: v for k, v in state.items() if k in expected or not k.startswith((*heads, "fc.", "head."))}
    counts = {k: v for k, v in expected.items() if k.endswith("num_batches_tracked") and k not in state}
    state = {**state, **counts}  # files from before PyTorch 0.4.1 lack them, and nothing reads them
    if problem := differences(state, expected):
        raise CheckpointError(
            f"{key}.CKPT: {path} does not fit {name}: {problem}. Set {key}.NAME to the file's architecture"
        )
    model.load_state_dict(state)


def _preprocess(model: nn.Module, size: int, *, published: bool) -> Preprocess:
    """Return timm's facts about the weights; random ones and a file's get ImageNet's mean and deviation."""
    facts = timm.data.resolve_data_config(model=model)
    if size and hasattr(model, "set_input_size"):
        model.set_input_size(img_size=size)  # a transformer's positions
    mean, std = (facts["mean"], facts["std"]) if published else (IMAGENET_MEAN, IMAGENET_STD)
    interpolation = "bilinear" if published and facts["interpolation"] == "bilinear" else "bicubic"
    crop = facts["crop_pct"] if published else 1.0
    mode = "squash" if published and facts["crop_mode"] == "squash" else "shortest"
    return Preprocess(size or facts["input_size"][-1], tuple(mean), tuple(std), interpolation, mode, crop)
