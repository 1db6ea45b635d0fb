"""Reading folders of images, one folder a class, and files of class names."""

import os
from collections.abc import Iterable
from pathlib import Path

from dho_plugin.engine.data import ClassInfo
from dho_plugin.errors import DataError

HOW_TO = "Set DATA=/where/the/data/lies (--root) and lay it out as CoOp's DATASETS.md says."


def class_folders(folder: Path, contents: str) -> list[str]:
    """List the class folders of a folder, sorted by name; files and hidden folders are ignored.

    Args:
        folder: where they lie.
        contents: what must lie there, for the message.

    Raises:
        DataError: the folder is missing or holds no folders.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {contents} must lie there. {HOW_TO}")
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DataError(f"{folder}: holds no class folders; {contents} must lie there. {HOW_TO}")
    return names


def read_classnames(*candidates: Path) -> dict[str, str]:
    """Read a file of lines "<folder> <class name>".

    Args:
        candidates: paths of which the first that exists is read.

    Returns:
        Class name of each folder.

    Raises:
        DataError: none of the files exists, or a line has no name.
    """
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        looked = " or ".join(map(str, candidates))
        raise DataError(f"{looked}: no such file; it must hold lines like 'n01440764 tench'. {HOW_TO}")
    names: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        key, _, name = line.strip().partition(" ")
        if key and not name:
            raise DataError(f"{path}, line {number}: {line!r} has no class name; lines look like 'n01440764 tench'")
        if key:
            names[key] = name
    return names


def named_classes(keys: Iterable[str], names: dict[str, str], folder: Path) -> list[ClassInfo]:
    """Give every class folder its name.

    Args:
        keys: names of the class folders, in label order.
        names: class name of each folder, as `read_classnames` gives it.
        folder: where the class folders lie, for the message.

    Raises:
        DataError: folders without a name.
    """
    keys = list(keys)
    unnamed = [key for key in keys if key not in names]
    if unnamed:
        shown = ", ".join(unnamed[:5]) + (", ..." if len(unnamed) > 5 else "")
        raise DataError(
            f"{folder}: classnames.txt has no name for {len(unnamed)} of {len(keys)} class folders: {shown}. "
            "Add lines '<folder> <class name>' to it, or remove folders that are no classes."
        )
    return [ClassInfo(key, names[key]) for key in keys]
