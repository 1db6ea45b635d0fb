"""CLIP through open_clip: one loader for every name and file; size, normalization and scale come with the weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import open_clip
from open_clip.hf_model import HFTextEncoder
from torch import Tensor, device, nn

from dho_plugin.engine.views import Preprocess
from dho_plugin.errors import CheckpointError, ConfigError
from dho_plugin.models.clip_files import build_named, build_openai, first_line, is_openai, read_state
from dho_plugin.models.image_encoder import ImagePath, compiled, encode_image, image_path
from dho_plugin.models.mini import MINI_MODELS, load_mini
from dho_plugin.models.names import Source, require_tag, resolve, weights_facts

_OPENAI_FACTS = {
    "mean": open_clip.OPENAI_DATASET_MEAN,
    "std": open_clip.OPENAI_DATASET_STD,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}


@dataclass(frozen=True, eq=False)
class LoadedCLIP:
    """A frozen CLIP in fp32 and evaluation mode, with all that belongs to its weights.

    Attributes:
        name: the name it was asked for by.
        model: open_clip's CLIP or CustomTextCLIP.
        tokenizer: list of N strings -> (N, context_length) int64.
        preprocess: size, normalization and resize of its images.
        text_tower: how its text tower is run, MODEL.TEXT_TOWER: auto, plain, truncated or shared.
        image_tower: how its image tower is run, MODEL.IMAGE_TOWER: auto or plain.
        compile: whether it runs under torch.compile, MODEL.COMPILE.
        tome_r: how many tokens each layer of its image tower merges, MODEL.TOME_R.
    """

    name: str
    model: nn.Module
    tokenizer: Callable[..., Tensor]
    preprocess: Preprocess
    text_tower: str = "auto"
    image_tower: str = "auto"
    compile: bool = False
    tome_r: int = 0

    @property
    def scale(self) -> float:
        """Learned factor of the cosine, exp(logit_scale)."""
        return self.model.logit_scale.detach().exp().item()

    @property
    def zeta(self) -> float:
        """Temperature of the cosine (DHO, Eq. 1): 1 / scale, 0.01 for OpenAI's weights."""
        return 1.0 / self.scale

    @property
    def feature_dim(self) -> int:
        """Length D of image and text features."""
        if hasattr(self.model, "text"):
            return self.model.text.output_dim
        projection = self.model.text_projection
        if isinstance(projection, nn.Linear):
            return projection.out_features
        return self.model.positional_embedding.shape[1] if projection is None else projection.shape[1]

    @property
    def visual(self) -> nn.Module:
        """The image encoder."""
        return self.model.visual

    @property
    def device(self) -> device:
        """Where the weights lie."""
        return self.model.logit_scale.device

    @cached_property
    def image_path(self) -> ImagePath:
        """The way through the image tower, and why it is taken."""
        return image_path(self.model, self.image_tower, self.tome_r)

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode normalized images (B, 3, H, W) into features (B, D) that are not normalized."""
        return self._encoder(images)

    @cached_property
    def _encoder(self) -> Callable[[Tensor], Tensor]:
        encode = partial(encode_image, self.model, self.image_path, tome_r=self.tome_r)
        return compiled(encode, self.name) if self.compile else encode

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Encode tokens (N, context_length) int64 into features (N, D) that are not normalized."""
        return self.model.encode_text(tokens, normalize=False)


def load_clip(
    name: str,
    *,
    tag: str = "",
    ckpt: str = "",
    key: str = "MODEL.BACKBONE",
    text_tower: str = "auto",
    image_tower: str = "auto",
    compile: bool = False,
    tome_r: int = 0,
) -> LoadedCLIP:
    """Load a CLIP by a host's or open_clip's name, from a local file or by its tag, frozen in fp32.

    A host's name (`ViT-B/16`) means OpenAI's weights: with `ckpt` their architecture is read off the tensors. With
    open_clip's name or a tag the architecture comes from the name.

    Args:
        name: `RN50` ... `ViT-L/14@336px`, open_clip's own names, `mini-student` or `mini-teacher`.
        tag: open_clip's tag of the weights, such as `dfn5b`; with `ckpt` it says whose weights the file holds.
        ckpt: local file: OpenAI's TorchScript archive or state dict, open_clip's `.pt` or `.safetensors`.
        key: config prefix that messages name.
        text_tower: how its text tower is to run: auto, plain, truncated or shared.
        image_tower: how its image tower is to run: auto or plain.
        compile: whether it is to run under torch.compile.
        tome_r: how many tokens each layer of its image tower is to merge.

    Returns:
        The loaded CLIP on the CPU.

    Raises:
        ConfigError: unknown name or tag, or a combination that does not say which weights are meant.
        CheckpointError: weights are missing, damaged, of another architecture, or cannot be downloaded.
    """
    if name in MINI_MODELS:
        model, tokenizer, preprocess = _mini(name, tag, ckpt, key)
    else:
        source = resolve(name, tag, key)
        model = _from_file(Path(ckpt).expanduser(), source) if ckpt else _from_hub(source)
        tokenizer, preprocess = _tokenizer(model, source), _preprocess(model)
    model = model.float().eval().requires_grad_(False)
    return LoadedCLIP(name, model, tokenizer, preprocess, text_tower, image_tower, compile, tome_r)


def _mini(name: str, tag: str, ckpt: str, key: str) -> tuple[nn.Module, Callable[..., Tensor], Preprocess]:
    if tag or ckpt:
        raise ConfigError(f"{key}.TAG and {key}.CKPT must be empty: {name} ships with its weights")
    return load_mini(name)


def _from_file(path: Path, source: Source) -> nn.Module:
    state = read_state(path, source.key)
    if is_openai(state, source):
        model, facts = build_openai(state, path, source), _OPENAI_FACTS
    else:
        facts = weights_facts(source)
        model = build_named(state, path, source, facts["quick_gelu"])
    base = open_clip.transform.PreprocessCfg(size=model.visual.image_size)
    open_clip.set_model_preprocess_cfg(model, open_clip.transform.merge_preprocess_dict(base, facts))
    return model


def _from_hub(source: Source) -> nn.Module:
    require_tag(source)
    quick_gelu = weights_facts(source)["quick_gelu"]
    try:
        return open_clip.create_model(source.arch, pretrained=source.tag, force_quick_gelu=quick_gelu)
    except Exception as error:  # whatever the network, the hub's client or a damaged download raises
        raise CheckpointError(
            f"cannot get the weights {source.tag!r} of {source.arch} from the hub ({first_line(error)}). Without a "
            f"network, fetch the file elsewhere and set {source.key}.CKPT to its path"
        ) from error


def _tokenizer(model: nn.Module, source: Source) -> Callable[..., Tensor]:
    sizes = open_clip.get_model_tokenize_cfg(model)
    # Of another library's tower it is the number of its positions, not of the tokens that it was trained with.
    length = None if isinstance(getattr(model, "text", None), HFTextEncoder) else sizes.get("context_length")
    try:
        tokenizer = _named_tokenizer(source.arch, length)
    except Exception as error:  # as above: some tokenizers are files on the hub
        raise ConfigError(
            f"{source.key}.NAME: the tokenizer of {source.arch} is not available ({first_line(error)}); it needs the "
            f"package transformers, and a network or the hub's cache"
        ) from error
    if isinstance(tokenizer, open_clip.SimpleTokenizer) and tokenizer.vocab_size != sizes["vocab_size"]:
        raise CheckpointError(
            f"{source.key}: the weights embed {sizes['vocab_size']} tokens, CLIP's tokenizer has {tokenizer.vocab_size}"
        )
    return tokenizer


@cache  # reading its merges takes half a second, and a teacher and its student have the same
def _named_tokenizer(arch: str, context_length: int | None) -> Callable[..., Tensor]:
    return open_clip.get_tokenizer(arch, context_length=context_length)


def _preprocess(model: nn.Module) -> Preprocess:
    cfg = open_clip.get_model_preprocess_cfg(model)
    height, width = open_clip.utils.to_2tuple(cfg["size"])
    if height != width:
        raise ConfigError(f"images of {height} x {width} are not supported: only square inputs are")
    return Preprocess(width, tuple(cfg["mean"]), tuple(cfg["std"]), cfg["interpolation"], cfg["resize_mode"])
