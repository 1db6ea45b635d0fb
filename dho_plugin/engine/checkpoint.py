"""Checkpoints: plain tensors and containers, written atomically, read without unrestricted unpickling."""

import pickle
import re
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from dho_plugin.engine.files import atomic_write
from dho_plugin.engine.foreign import read_foreign
from dho_plugin.errors import CheckpointError

BEST_NAME = "model-best.pth.tar"
_EPOCH_NAME = re.compile(r"model\.pth\.tar-(\d+)")
_PLAIN = (str, int, float, bool, type(None))
# Damaged bytes may say anything, and torch's reader takes them at their word.
_READ_ERRORS = (
    *(OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(ArithmeticError, MemoryError, pickle.UnpicklingError),
)


def save_checkpoint(state: dict[str, Any], path: str | Path) -> None:
    """Write a checkpoint atomically; if that fails, the file that was there before is untouched.

    Args:
        state: nested dicts, lists and tuples of tensors, numbers, strings and None, such as
            `state_dict, epoch, optimizer, scheduler, val_result`.
        path: target file; missing parent folders are made.

    Raises:
        CheckpointError: `state` holds something else, or the file cannot be written, for example on a full disk.
    """
    _check_plain(state, "state")
    path = Path(path)
    try:
        atomic_write(path, lambda file: torch.save(state, file))
    except (OSError, RuntimeError) as error:  # torch hides a full disk behind a RuntimeError
        raise CheckpointError(
            f"cannot write the checkpoint {path}: {_cause(error)}. Free space there: {_free_space(path)}. An earlier "
            "checkpoint of that name is untouched: make room or choose another --output-dir, and run again to resume."
        ) from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; of other objects than tensors and plain values, none is opened.

    Args:
        path: file written by `save_checkpoint`, by a Dassl host, or any torch file of a dict.

    Returns:
        The stored dict; parts that hold other objects, such as a Dassl host's `scheduler`, are left out, and a printed
        line names them.

    Raises:
        CheckpointError: the file is missing, damaged, not a dict, or its weights are not plain tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}. {_list_available(path.parent)}")
    try:
        state = _read(path)
    except _READ_ERRORS as error:
        raise CheckpointError(_explain(path, error)) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a checkpoint's dict: is it the right file?")
    return state


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path):
            raise
        return read_foreign(path)


def model_path(directory: str | Path, name: str, epoch: int | None = None) -> Path:
    """Path of a model's checkpoint in Dassl's layout.

    Args:
        directory: the run's output folder.
        name: the model's registered name.
        epoch: epochs done; None for the best one.

    Returns:
        `<directory>/<name>/model.pth.tar-<epoch>` or `<directory>/<name>/model-best.pth.tar`.
    """
    return Path(directory) / name / (BEST_NAME if epoch is None else f"model.pth.tar-{epoch}")


def saved_epochs(folder: Path) -> list[int]:
    """Return the epochs whose checkpoints lie in a model's folder, ascending."""
    if not folder.is_dir():
        return []
    matches = (_EPOCH_NAME.fullmatch(file.name) for file in folder.iterdir() if file.is_file())
    return sorted(int(match[1]) for match in matches if match)


def _check_plain(value: Any, where: str) -> None:
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in (str, int):
                raise CheckpointError(f"{where} has the key {key!r}; a checkpoint's keys are strings or whole numbers.")
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif not isinstance(value, torch.Tensor) and type(value) not in _PLAIN:
        raise CheckpointError(
            f"{where} is a {type(value).__name__}, which load_checkpoint would refuse: store tensors, numbers, "
            "strings, None, and dicts, lists and tuples of them."
        )


def _explain(path: Path, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and zipfile.is_zipfile(path):
        return (
            f"{path} cannot be read without running code that it brings along, so it is refused. Objects beside the "
            "weights, such as the scheduler in a Dassl host's file, are passed over, but this file asks for more. If "
            "you trust its origin, load it once with torch.load(path, weights_only=False) and save {'state_dict': ..., "
            f"'epoch': ...}} from it with torch.save. Reason: {_first_line(error)}"
        )
    return (
        f"{path} is damaged or not a torch checkpoint ({_first_line(error)}). Delete it, then resume from an earlier "
        f"epoch or train again; a file of objects from before torch 1.6 has to be saved anew by a newer torch. "
        f"{_list_available(path.parent)}"
    )


def _list_available(folder: Path) -> str:
    epochs = ", ".join(map(str, saved_epochs(folder)))
    return f"Epochs stored in {folder}: {epochs or 'none'}."


def _cause(error: BaseException) -> BaseException:
    return error if isinstance(error, OSError) or error.__context__ is None else _cause(error.__context__)


def _free_space(path: Path) -> str:
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    return f"{shutil.disk_usage(folder).free / 2**20:.0f} MB"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}"
