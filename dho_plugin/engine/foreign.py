"""Checkpoints of Dassl's hosts: they hold objects beside the weights, which are passed over, never built."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dho_plugin.errors import CheckpointError

KEPT = "state_dict"


class ForeignObject:
    """Stands in for every object that is no tensor and no plain value: any arguments, any state, no effect."""

    __slots__ = ()

    def __new__(cls, *_):
        """Take any arguments."""
        return super().__new__(cls)

    def __init__(self, *_):
        """Keep nothing of them."""

    def __setstate__(self, _) -> None:
        """Keep nothing of the state."""


def read_foreign(path: Path) -> Any:
    """Read a checkpoint whose scheduler (or whatever else) is a pickled object, without building that object.

    Dassl stores `state_dict, epoch, optimizer, scheduler, val_result`, and its warm-up scheduler's state holds the
    scheduler that follows and the optimizer as objects. torch's own restricted reader does the reading; under every
    name that it does not know it is handed a `ForeignObject`, so no module is imported and no foreign code is called.

    Args:
        path: a file in torch's zip format (torch 1.6 or newer).

    Returns:
        What is stored; of a dict, parts that hold such objects are left out, and a printed line names them.

    Raises:
        CheckpointError: the weights themselves hold such objects.
        Exception: what torch raises where the file is damaged, older, or needs more than stand-ins.
    """
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    with torch.serialization.safe_globals([(_stand_in(name), name) for name in names]):
        state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        return state
    foreign = [key for key, value in dict.items(state) if _is_foreign((key, value))]
    if KEPT in foreign or not all(isinstance(key, str) for key in foreign):
        raise CheckpointError(
            f"{path}: its {KEPT} holds objects ({_shown(names)}), where only tensors are allowed: it is no checkpoint "
            "of a prompt-tuning trainer. Save the model's state_dict() in it, not the model"
        )
    if foreign:
        print(f"{path}: {', '.join(foreign)} left out: holds objects ({_shown(names)}), which are never opened here")
    return {key: value for key, value in dict.items(state) if key not in foreign}


def _stand_in(name: str):
    # torch fills nothing but plain dicts, and an optimizer's momentum lies in a defaultdict
    return _plain_dict if name == "collections.defaultdict" else ForeignObject


def _plain_dict(*_) -> dict:
    return OrderedDict()


def _is_foreign(value: Any) -> bool:
    return any(isinstance(item, ForeignObject) or item is ForeignObject or item is _plain_dict for item in _walk(value))


def _walk(value: Any) -> Iterator[Any]:
    """Yield a value and all that its containers hold; a hostile file may nest them deeply, or in circles."""
    waiting, seen = [value], set()
    while waiting:
        item = waiting.pop()
        yield item
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, dict):
            waiting += [*dict.keys(item), *dict.values(item)]
        elif isinstance(item, list | tuple | set):
            waiting += item


def _shown(names: list[str]) -> str:
    telling = sorted(name for name in names if name.split(".")[0] not in ("builtins", "collections")) or sorted(names)
    return ", ".join(telling[:3]) + (", ..." if len(telling) > 3 else "")
