"""The cache model of Tip-Adapter as a module, and the files in which it is kept, ours and the released ones."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dho_plugin.core.tip_adapter import tip_logits
from dho_plugin.engine.checkpoint import load_checkpoint, save_checkpoint
from dho_plugin.engine.data import ClassInfo
from dho_plugin.errors import CheckpointError

FILE_NAME = "tip_adapter.pt"  # in a run's folder
MAKE_ONE = "bash scripts/tip_adapter.sh DATASET SHOTS"
_TENSORS = {"adapter_weight": "(N, D)", "cache_keys": "(D, N)", "cache_values": "(N, C)", "clip_weights": "(D, C)"}
_NUMBERS = ("best_alpha", "best_beta")


class CacheAdapter(nn.Module):
    """Keys and values of a cache model, with the alpha and beta at which it answers.

    Args:
        keys: N, the number of labeled images.
        feature_dim: D.
        classes: C.
        alpha: weight of the cache model.
        beta: sharpness of its affinities.
    """

    def __init__(self, keys: int, feature_dim: int, classes: int, alpha: float, beta: float):
        super().__init__()
        self.keys = nn.Parameter(torch.zeros(keys, feature_dim))
        self.register_buffer("first_keys", torch.zeros(keys, feature_dim))
        self.register_buffer("values", torch.zeros(keys, classes, dtype=torch.float16))
        self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.float64))
        self.register_buffer("beta", torch.tensor(beta, dtype=torch.float64))

    def resize(self, keys: int) -> None:
        """Make room for another number of keys; the optimizer keeps hold of the same parameter."""
        for tensor in (self.keys, self.first_keys, self.values):
            tensor.data = tensor.data.new_zeros(keys, tensor.shape[1])

    @torch.no_grad()
    def fill(self, keys: Tensor, labels: Tensor) -> None:
        """Take (N, D) keys and the labels (N,) of their images."""
        self.keys.copy_(keys)
        self.first_keys.copy_(keys)
        self.values.zero_()[torch.arange(len(labels)), labels] = 1

    def forward(self, features: Tensor, text: Tensor, zeta: float, at: tuple[float, float] | None = None) -> Tensor:
        """Return the logits (B, C) of features (B, D), at its own or another (alpha, beta)."""
        alpha, beta = at or (self.alpha, self.beta)  # as tensors: an exported model keeps them
        return tip_logits(features, text, self.keys, self.values, alpha=alpha, beta=beta, zeta=zeta)


class AdapterFile(NamedTuple):
    """What a file of Tip-Adapter holds; N images, C classes, D numbers.

    Attributes:
        path: the file.
        keys: (N, D) float32.
        values: (N, C) float16.
        text: (C, D) float32, the zero-shot classifier.
        alpha: weight of the cache model.
        beta: sharpness of its affinities.
        zeta: CLIP's temperature; None in a released file.
        classes: in the order of the columns; () in a released file, which does not say.
        weights: fingerprint of the image encoder; "" in a released file.
        backbone: its name; "" in a released file.
    """

    path: Path
    keys: Tensor
    values: Tensor
    text: Tensor
    alpha: float
    beta: float
    zeta: float | None = None
    classes: tuple[ClassInfo, ...] = ()
    weights: str = ""
    backbone: str = ""


def write_adapter(path: Path, adapter: CacheAdapter, text: Tensor, **facts) -> None:
    """Write a cache model under the released implementation's names, and what it belongs to beside them.

    Args:
        path: the file.
        adapter: the cache model.
        text: (C, D) unit text features.
        facts: zeta, classes as (key, name) pairs, weights and backbone; see `AdapterFile`.
    """
    state = {
        "adapter_weight": adapter.keys.detach(),
        "best_alpha": adapter.alpha.item(),
        "best_beta": adapter.beta.item(),
        "cache_keys": adapter.first_keys.T.contiguous(),
        "cache_values": adapter.values,
        "clip_weights": text.T.contiguous(),
    }
    save_checkpoint({key: v.cpu() if isinstance(v, Tensor) else v for key, v in state.items()} | facts, path)


def read_adapter(where: str | Path, key: str = "TRAINER.DHO.TEACHER.ADAPTER") -> AdapterFile:
    """Read a file of Tip-Adapter, without building any object that it holds.

    Args:
        where: a run's folder, or a file of ours or of the released implementation.
        key: config key that messages name.

    Raises:
        CheckpointError: it is missing or damaged, or its parts are missing or do not fit together.
    """
    path = Path(where).expanduser()
    if path.is_dir():
        path = path / FILE_NAME
    if not path.is_file():
        raise CheckpointError(
            f"{key}: there is no {path}; a finished run of `{MAKE_ONE}` leaves it in its folder. Name that folder, or "
            "a file of the released implementation"
        )
    state = load_checkpoint(path)
    _check_parts(state, path, key)
    _check_shapes(state, path, key)
    return AdapterFile(
        path,
        state["adapter_weight"].detach().float(),
        state["cache_values"].detach().half(),
        state["clip_weights"].detach().float().T.contiguous(),
        *(float(state[name]) for name in _NUMBERS),
        state.get("zeta"),
        tuple(ClassInfo(*pair) for pair in state.get("classes", ())),
        state.get("weights", ""),
        state.get("backbone", ""),
    )


def _check_parts(state: dict, path: Path, key: str) -> None:
    missing = [name for name in (*_TENSORS, *_NUMBERS) if name not in state]
    wrong = [name for name in _TENSORS if name not in missing and not isinstance(state[name], Tensor)]
    wrong += [name for name in _NUMBERS if name not in missing and not isinstance(state[name], float | int)]
    if missing or wrong:
        raise CheckpointError(
            f"{key}: {path} is no file of Tip-Adapter: {', '.join(missing) or 'nothing'} missing"
            + (f", {', '.join(wrong)} of another kind (tensors and plain numbers are wanted)" if wrong else "")
            + f". It needs {', '.join((*_TENSORS, *_NUMBERS))}; `{MAKE_ONE}` makes one"
        )


def _check_shapes(state: dict, path: Path, key: str) -> None:
    shapes = {name: tuple(state[name].shape) for name in _TENSORS}
    found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    fits = all(len(shape) == 2 for shape in shapes.values())
    if fits:
        (n, d), c = shapes["adapter_weight"], shapes["clip_weights"][1]
        fits = shapes == {
            "adapter_weight": (n, d),
            "cache_keys": (d, n),
            "cache_values": (n, c),
            "clip_weights": (d, c),
        }
    if not fits:
        wanted = ", ".join(f"{name} {shape}" for name, shape in _TENSORS.items())
        raise CheckpointError(
            f"{key}: the parts of {path} do not fit together: {found}; of N labeled images, C classes and D numbers "
            f"they must be {wanted}"
        )
    values = state["cache_values"].float()
    if not ((values == 0) | (values == 1)).all() or not (values.sum(dim=1) == 1).all():
        raise CheckpointError(f"{key}: cache_values of {path} must have one 1 in each row, and zeros beside it")
