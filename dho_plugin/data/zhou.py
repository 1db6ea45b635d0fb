"""Split files in CoOp's format, `split_zhou_<data set>.json`.

They hold {"train": [[path, label, class name], ...], "val": ..., "test": ...}; paths are relative to the image folder.
"""

import json
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dho_plugin.engine.data import ClassInfo, Datum, ImageList
from dho_plugin.engine.files import atomic_write_text, read_json
from dho_plugin.errors import CheckpointError, DataError

FORM = '{"train": [[path, label, class name], ...], "val": [...], "test": [...]}'
ADVICE = "Get the file that CoOp's DATASETS.md links to, or remove this one and it is made again"


class Entry(NamedTuple):
    """One image of a split: its path below the image folder, its label, the name of its class."""

    path: str
    label: int
    name: str


class Split(NamedTuple):
    """The three parts of a data set."""

    train: list[Entry]
    val: list[Entry]
    test: list[Entry]


def read_split(path: Path) -> Split:
    """Read a split file.

    Raises:
        DataError: it cannot be read, has another form, or a path leads out of the image folder.
    """
    try:
        content = read_json(path)
    except CheckpointError as error:
        raise DataError(f"{error}. {ADVICE}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in Split._fields):
        found = f"keys {sorted(content)}" if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path} is not a split ({found}); it must be {FORM}. {ADVICE}")
    return Split(*([_entry(path, part, *item) for item in enumerate(content[part])] for part in Split._fields))


def _entry(path: Path, part: str, position: int, raw: Any) -> Entry:
    if not isinstance(raw, list) or [type(value) for value in raw] != [str, int, str]:
        raise DataError(f"{path}: {part}[{position}] is {raw!r}; it must be [path, label, class name]. {ADVICE}")
    if not raw[0] or raw[0].startswith("/") or ".." in raw[0].split("/") or "\0" in raw[0]:
        raise DataError(
            f"{path}: {part}[{position}] has the path {raw[0]!r}; it must be relative to the image folder and stay in "
            f"it. {ADVICE}"
        )
    return Entry(*raw)


def write_split(path: Path, split: Split) -> None:
    """Write a split file as CoOp does, byte by byte, and say so; where the disk refuses, say that and go on."""
    counts = ", ".join(f"{len(entries)} {part}" for part, entries in split._asdict().items())
    text = json.dumps(split._asdict(), indent=4, separators=(",", ": "))
    try:
        atomic_write_text(path, text)
    except OSError as error:
        print(f"{path} cannot be written ({error}): the split ({counts}) is made again at every start")
    else:
        print(f"{path}: there was none; made as CoOp makes it, from the sorted listing with seed 1 ({counts})")


def class_names(split: Split, source: str) -> list[str]:
    """Return the class names of a split in label order.

    Args:
        split: its labels and names are checked.
        source: file or files that it comes from, for the message.

    Raises:
        DataError: no images, a label with two names, labels with gaps, or a class without a training image.
    """
    names: dict[int, str] = {}
    for entry in (entry for part in split for entry in part):
        if names.setdefault(entry.label, entry.name) != entry.name:
            raise DataError(
                f"{source}: label {entry.label} is named {names[entry.label]!r} and, of {entry.path}, {entry.name!r}; "
                "a label has one name"
            )
    if not names:
        raise DataError(f"{source}: lists no image")
    if names.keys() != set(range(len(names))):
        raise DataError(
            f"{source}: has {len(names)} labels from {min(names)} to {max(names)}; they must be 0, 1, ... without a gap"
        )
    untrained = sorted(names.keys() - {entry.label for entry in split.train})
    if untrained:
        first = untrained[0]
        raise DataError(
            f"{source}: {len(untrained)} of {len(names)} classes have no training image, for example {names[first]!r} "
            f"(label {first}); every class must stand in train"
        )
    return [names[label] for label in range(len(names))]


def class_infos(names: Sequence[str]) -> list[ClassInfo]:
    """Return the classes of some names as they stand in a split file; "_" reads as a space, and keys are unique."""
    counts = Counter(names)
    keys = (name if counts[name] == 1 else f"{name} (label {label})" for label, name in enumerate(names))
    return [ClassInfo(key, name.replace("_", " ")) for key, name in zip(keys, names, strict=True)]


def without_repeats(split: Split, source: str) -> Split:
    """Return a split in which every file stands once, and say which ones stood in it several times.

    Of several places the first one counts in the order test, val, train, so that no test image is trained on.
    """
    seen: set[str] = set()
    repeated: list[str] = []

    def first(entry: Entry) -> bool:
        place = posixpath.normpath(entry.path)
        new = place not in seen
        (seen.add if new else repeated.append)(place)
        return new

    test, val, train = (list(filter(first, part)) for part in (split.test, split.val, split.train))
    if repeated:
        print(
            f"{source}: entries that list a file again: {len(repeated)}, for example {repeated[0]}; the first place "
            "of a file counts, in the order test, val, train"
        )
    return Split(train, val, test)


def require_first_images(split: Split, folder: Path, source: str) -> None:
    """Check that the first image of each class is there, in each part; looking for all of them would take long.

    Raises:
        DataError: some are not; the message names the first.
    """
    firsts: dict[tuple[int, int], str] = {}
    for part, entries in enumerate(split):
        for entry in entries:
            firsts.setdefault((part, entry.label), entry.path)
    _require(folder, firsts.values(), source, os.path.isfile)


def require_images(split: Split, folder: Path, source: str) -> None:
    """Check that all images of a split are there, with one look into each folder.

    Raises:
        DataError: some are not; the message names the first.
    """
    paths = [entry.path for part in split for entry in part]
    there = {
        os.path.join(parent, name)
        for parent in {os.path.dirname(folder / path) for path in paths}
        if os.path.isdir(parent)
        for name in os.listdir(parent)
    }
    _require(folder, paths, source, there.__contains__)


def _require(folder: Path, paths: Iterable[str], source: str, is_there: Callable[[str], bool]) -> None:
    full = [os.path.join(folder, path) for path in paths]
    missing = [path for path in full if not is_there(path)]
    if missing:
        raise DataError(
            f"{missing[0]}: no such file, and {source} lists it ({len(missing)} of the {len(full)} images that were "
            "looked for are missing). Lay the images out as CoOp's DATASETS.md says"
        )


def to_images(entries: Sequence[Entry], folder: Path, classes: Sequence[ClassInfo]) -> ImageList:
    """Return the images of a part in its order; each image's index is its place in it."""
    return ImageList.of(
        [
            Datum(os.path.join(folder, entry.path), entry.label, classname=classes[entry.label].name, index=index)
            for index, entry in enumerate(entries)
        ]
    )
