"""Local CLIP files: read as plain tensors, checked against their architecture, never unpickled without restriction."""

import logging
import pickle
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

import open_clip
import safetensors
import safetensors.torch
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import build_model_from_openai_state_dict, convert_to_custom_text_state_dict
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dho_plugin.errors import CheckpointError, ConfigError
from dho_plugin.models.names import HOST_NAMES, Source

logger = logging.getLogger(__name__)

OPENAI_MARKERS = ("input_resolution", "context_length", "vocab_size")
OPENAI_KEYS = ("text_projection", "positional_embedding", "token_embedding.weight", "ln_final.weight", "logit_scale")
_DRAWS = (Tensor.normal_, Tensor.uniform_)
_READ_ERRORS = (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError)
_BUILD_ERRORS = (RuntimeError, KeyError, AssertionError, ZeroDivisionError)


def read_state(path: Path, key: str) -> dict[str, Tensor]:
    """Read a TorchScript archive, a `.pt` or a `.safetensors` file into a plain dict of tensors.

    Args:
        path: the file; a dict under "state_dict" is unwrapped, and the prefix "module." removed.
        key: config prefix for messages.

    Raises:
        CheckpointError: the file is missing, truncated, holds other objects than tensors, or no tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{key}.CKPT: no such file: {path}")
    try:
        state = _read(path)
    except _READ_ERRORS as error:
        # torch's own text advises to unpickle without restriction
        reason = "not plain tensors, or damaged" if "Weights only" in str(error) else first_line(error)
        raise CheckpointError(
            f"{key}.CKPT: cannot read {path} ({reason}). Allowed: OpenAI's TorchScript archive, a file of plain "
            f"tensors saved by torch.save, or .safetensors; fetch it again if it is truncated"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    items = state.items() if isinstance(state, dict) else ()
    tensors = {k.removeprefix("module."): v for k, v in items if isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(f"{key}.CKPT: {path} holds no state dict of tensors")
    return tensors


def is_openai(state: dict[str, Tensor], source: Source) -> bool:
    """Whether the tensors are OpenAI's: marked so in the file, or named so by the configuration."""
    return source.openai or any(marker in state for marker in OPENAI_MARKERS)


def build_openai(state: dict[str, Tensor], path: Path, source: Source) -> nn.Module:
    """Build OpenAI's CLIP of any size: the architecture is read off the tensors, the activation is QuickGELU.

    Raises:
        CheckpointError: the tensors are no OpenAI CLIP, or are another known architecture than the configured one.
    """
    state = {k: v.float() for k, v in state.items() if k not in OPENAI_MARKERS}
    missing = [k for k in OPENAI_KEYS if k not in state]
    if missing or not {"visual.proj", "visual.attnpool.positional_embedding"} & state.keys():
        raise CheckpointError(
            f"{source.key}.CKPT: {path} is no OpenAI CLIP (missing: {', '.join(missing) or 'an image tower'}; it "
            f"begins with {', '.join(list(state)[:3])}). For open_clip's files set {source.key}.NAME to open_clip's "
            f"name, such as ViT-L-14, and {source.key}.TAG to that of the weights"
        )
    _check_architecture(state, path, source)
    try:
        with _NoRandomWeights():
            model = build_model_from_openai_state_dict(dict(state), cast_dtype=None).float()
        model.load_state_dict(state)  # again: the builder rounds every weight to fp16
    except _BUILD_ERRORS as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:4])
        raise CheckpointError(f"{source.key}.CKPT: {path} does not make a CLIP: {reason}") from error
    return model


def build_named(state: dict[str, Tensor], path: Path, source: Source, quick_gelu: bool) -> nn.Module:
    """Build open_clip's architecture by name and load the tensors into it, every one of the same shape.

    Raises:
        ConfigError: a part of this architecture is not available here.
        CheckpointError: keys or shapes differ; the first few are named.
    """
    try:
        with _no_random_weights_warning(), _NoRandomWeights():
            model = open_clip.create_model(source.arch, force_quick_gelu=quick_gelu, pretrained_text=False)
    except Exception as error:  # a tower of another library: a missing package or, for its configuration, the hub
        raise ConfigError(f"{source.key}.NAME: cannot build {source.arch} ({first_line(error)})") from error
    state = _adapted(state, model)
    if problem := differences(state, model.state_dict()):
        raise CheckpointError(
            f"{source.key}.CKPT: {path} does not fit {source.arch}: {problem}. Set {source.key}.NAME to the file's "
            f"architecture"
        )
    model.load_state_dict(state)
    return model


def first_line(error: Exception) -> str:
    """Return an exception's first line of text, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _read(path: Path):
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path, device="cpu")
    if _is_torchscript(path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, but OpenAI publishes no other format
            return torch.jit.load(str(path), map_location="cpu").state_dict()
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _check_architecture(state: dict[str, Tensor], path: Path, source: Source) -> None:
    found, wanted = _signature(state), _configured_signature(source.arch)
    if found == wanted:
        return
    known = {_configured_signature(arch): host for host, arch in HOST_NAMES.items()}
    if found in known or not source.openai:
        raise CheckpointError(
            f"{source.key}.CKPT: {path} holds OpenAI's {known.get(found, f'format, of size {found}')}, but "
            f"{source.key}.NAME says {source.arch}: {found} in the file, {wanted} by name (image positions, width, "
            f"embedding)"
        )
    logger.warning("%s has its own size %s instead of %s: it is read off the tensors", path, found, source.arch)


def _signature(state: dict[str, Tensor]) -> tuple[int, int, int]:
    vit = "visual.positional_embedding"
    positions = state[vit if vit in state else "visual.attnpool.positional_embedding"]
    return (*positions.shape, state["text_projection"].shape[-1])


def _configured_signature(arch: str) -> tuple[int, int, int]:
    config = open_clip.get_model_config(arch)
    vision = config["vision_cfg"]
    if "patch_size" not in vision and not isinstance(vision.get("layers"), list):
        return (0, 0, config["embed_dim"])  # no tower of OpenAI's
    # OpenAI's ResNets pool a map 32 times smaller and 32 times wider than the stem.
    resnet = isinstance(vision["layers"], list)
    grid = vision["image_size"] // (32 if resnet else vision["patch_size"])
    return (grid**2 + 1, vision["width"] * (32 if resnet else 1), config["embed_dim"])


def _adapted(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    state = convert_state_dict(model, {k: v for k, v in state.items() if k not in OPENAI_MARKERS})
    if not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    state.pop("text.transformer.embeddings.position_ids", None)  # older transformers saved it
    for name in ("logit_scale", "logit_bias"):  # scalar in some files, one element in others
        if name in state and getattr(model, name, None) is not None:
            state[name] = state[name].reshape(getattr(model, name).shape)
    return state


def differences(state: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    """Return in which tensors a file and a model differ, the first four of them; "" where they fit."""
    shapes = [
        f"{k} is {tuple(state[k].shape)}, not {tuple(v.shape)}"
        for k, v in expected.items()
        if k in state and state[k].shape != v.shape
    ]
    missing = [f"{k} is missing" for k in expected if k not in state]
    found = shapes + missing + [f"{k} is unknown" for k in state if k not in expected]
    return "; ".join(found[:4]) + (f"; and {len(found) - 4} more" if len(found) > 4 else "")


class _NoRandomWeights(TorchFunctionMode):
    """Make new weights 0, as a file's take their place: drawing them is most of the building."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in _DRAWS or getattr(function, "__module__", "") == nn.init.__name__:
            return (args[0] if args else kwargs["tensor"]).detach().zero_()
        return function(*args, **kwargs)


@contextmanager
def _no_random_weights_warning():
    def keep(record: logging.LogRecord) -> bool:
        return "No pretrained weights loaded" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)
