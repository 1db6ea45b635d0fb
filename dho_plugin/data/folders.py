"""Reading folders of images, one folder a class, and files of class names."""

import os
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from dho_plugin.data.splits import shown
from dho_plugin.engine.data import ClassInfo
from dho_plugin.errors import DataError

HOW_TO = "Set DATA=/where/the/data/lies (--root) and lay it out as CoOp's DATASETS.md says."


def nfc(text: str) -> str:
    """Return a text in Unicode's form NFC: disks of Macs write "é" in two characters, most files in one."""
    return unicodedata.normalize("NFC", text)


def class_folders(folder: Path, contents: str, how_to: str = HOW_TO) -> list[str]:
    """List the class folders of a folder, sorted by name; files and hidden folders are ignored.

    Args:
        folder: where they lie.
        contents: what must lie there, for the message.
        how_to: what to do about it, for the message.

    Raises:
        DataError: the folder is missing or holds no folders.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {contents} must lie there. {how_to}")
    names = folder_names(folder)
    if not names:
        raise DataError(f"{folder}: holds no class folders; {contents} must lie there. {how_to}")
    return names


def folder_names(folder: Path) -> list[str]:
    """Return the sorted names of the folders in a folder, and of links to folders; hidden ones are ignored."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_folder(entry) and not entry.name.startswith("."))


def is_folder(entry: os.DirEntry) -> bool:
    """Return whether an entry is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def read_classnames(*candidates: Path) -> dict[str, str]:
    """Read a file of lines "<folder> <class name>", or with a tab between where folders have spaces in their names.

    Args:
        candidates: paths of which the first that exists is read.

    Returns:
        Class name of each folder, both in NFC.

    Raises:
        DataError: none of the files exists, it is not UTF-8, a line has no name, or a folder has two.
    """
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        looked = " or ".join(map(str, candidates))
        raise DataError(f"{looked}: no such file; it must hold lines like 'n01440764 tench'. {HOW_TO}")
    names: dict[str, str] = {}
    for number, line in enumerate(read_utf8(path).splitlines(), start=1):
        line = nfc(line.strip())
        key, _, name = (part.strip() for part in line.partition("\t" if "\t" in line else " "))
        if key and not name:
            raise DataError(f"{path}, line {number}: {line!r} has no class name; lines look like 'n01440764 tench'")
        if key and names.setdefault(key, name) != name:
            raise DataError(
                f"{path}, line {number}: {key!r} is {name!r} here and {names[key]!r} above; keep one of the lines "
                "(a folder with spaces in its name and its class name have a tab between them)"
            )
    return names


def read_utf8(path: Path) -> str:
    """Read a text file that a user wrote, with or without a byte order mark.

    Raises:
        DataError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error


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
        raise DataError(
            f"{folder}: classnames.txt has no name for {len(unnamed)} of {len(keys)} class folders: "
            f"{shown(unnamed, 5)}. Add lines '<folder> <class name>' to it (a tab between, where a folder's name has "
            "spaces), or remove folders that are no classes."
        )
    return [ClassInfo(key, names[key]) for key in keys]
