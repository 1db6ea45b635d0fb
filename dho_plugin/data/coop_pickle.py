"""CoOp's stored shots, read without running anything that the file asks for."""

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NamedTuple

from dho_plugin.errors import DataError

_ALLOWED = ("dassl.data.datasets.base_dataset", "Datum")
# All that pickling a dict of lists of plain records takes. Not among it: calls, and tuples, whose hashing may overflow.
_OPERATIONS = (
    "PROTO FRAME STOP MARK EMPTY_DICT EMPTY_LIST EMPTY_TUPLE APPEND APPENDS SETITEM SETITEMS MEMOIZE BINPUT "
    "LONG_BINPUT BINGET LONG_BINGET BINUNICODE SHORT_BINUNICODE BININT BININT1 BININT2 GLOBAL STACK_GLOBAL NEWOBJ BUILD"
)
_FIELDS = {"_impath": str, "_label": int, "_domain": int, "_classname": str}


class Named(NamedTuple):
    """One image as a file of shots names it: its path, here or on another machine, and its label."""

    path: str
    label: int


class _StoredDatum:
    """Stands in for Dassl's Datum: it takes no arguments, keeps the state it is given, and does nothing."""

    __slots__ = ("state",)

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _RefusedError(Exception):
    """The file asks for something that no file of shots needs."""


class _ShotsUnpickler(pickle.Unpickler):
    """Knows one name, Dassl's Datum; every other one is refused before it is looked up or imported."""

    def find_class(self, module: str, name: str) -> type:
        if (module, name) != _ALLOWED:
            raise _RefusedError(f"it asks for {module}.{name}")
        return _StoredDatum


def read_shots_pickle(path: Path) -> dict[str, list[Named]]:
    """Read CoOp's `split_fewshot/shot_K-seed_S.pkl`: lists of plain Datum records under "train" and maybe "val".

    Args:
        path: the file; it may come from anybody.

    Returns:
        The records of each part that the file has, in its order.

    Raises:
        DataError: it holds anything else, or is damaged; nothing in it was run.
    """
    try:
        data = path.read_bytes()
        _check_operations(data)
        return _parts(_ShotsUnpickler(io.BytesIO(data)).load())
    except Exception as error:  # a damaged or hostile pickle may raise anything
        reason = str(error) if isinstance(error, _RefusedError) else f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path} is refused: {reason}. Only lists of Dassl's plain Datum records are read from a pickle, and "
            "nothing in this one was run. Delete it, or set DATASET.SHOTS_FROM draw"
        ) from error


def _check_operations(data: bytes) -> None:
    """Read the file as a list of operations, and refuse those that a list of records does not take."""
    allowed, asked, words = set(_OPERATIONS.split()), "none", ("", "")
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in ("GLOBAL", "STACK_GLOBAL"):
            asked = ".".join(argument.split(" ") if argument else words)
        elif isinstance(argument, str):
            words = (words[1], argument)
        if operation.name not in allowed:
            raise _RefusedError(f"it uses the operation {operation.name} (last class asked for: {asked})")
        if operation.name == "LONG_BINPUT" and argument > len(data):
            raise _RefusedError(f"it asks for {argument:,} places of memory")


def _parts(content: Any) -> dict[str, list[Named]]:
    if type(content) is not dict or "train" not in content:
        raise _RefusedError(f"it holds a {type(content).__name__}, not a dict with the shots under 'train'")
    return {part: _records(part, content[part]) for part in ("train", "val") if part in content}


def _records(part: str, items: Any) -> list[Named]:
    if type(items) is not list:
        raise _RefusedError(f"{part!r} is a {type(items).__name__}, not a list")
    return [_record(f"{part}[{place}]", item) for place, item in enumerate(items)]


def _record(where: str, item: Any) -> Named:
    state = getattr(item, "state", None) if type(item) is _StoredDatum else None
    if type(state) is not dict:
        raise _RefusedError(f"{where} is no Datum record")
    wrong = [field for field, kind in _FIELDS.items() if type(state.get(field)) is not kind]
    if wrong or len(state) != len(_FIELDS):
        raise _RefusedError(f"{where} has not just the fields {', '.join(_FIELDS)}, each a plain str or int")
    return Named(state["_impath"], state["_label"])
