"""Listing big image trees once: the listing is stored, and only folders that changed since are read again."""

from __future__ import annotations

import hashlib
import io
import os
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from dho_plugin.engine.data import ClassInfo, ImageList
from dho_plugin.engine.files import atomic_write, cache_folder
from dho_plugin.errors import DataError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
STORE_FROM = 10_000  # files; smaller trees are listed faster than a stored listing is checked
SETTLED = 2_000_000_000  # ns; a folder that changed so shortly ago may change again without another time stamp
THREADS = 8  # a network disk answers several questions at once


class Listed(NamedTuple):
    """The images of one folder.

    Attributes:
        stamp: (2,) int64, inode and time of the last change in ns; the time is -1 where it cannot be relied on.
        files: (n,) bytes, sorted file names.
    """

    stamp: np.ndarray
    files: np.ndarray


def list_images(folder: Path, names: Sequence[str], classes: Sequence[ClassInfo]) -> ImageList:
    """List all images of some class folders; each image's index is its place in this list.

    A listing of at least STORE_FROM files is kept in the cache folder (`DHO_CACHE`). It is trusted folder by folder: a
    folder whose inode and time of change are the stored ones is not read again.

    Args:
        folder: where the class folders lie.
        names: names of the class folders, in label order.
        classes: their classes, in the same order.

    Returns:
        The images in label order, sorted by file name within a class.

    Raises:
        DataError: a class folder is missing or holds no image.
    """
    stored = _load(folder)
    listed = _list_folders(folder, names, stored)
    changed = any(stored.get(name) is not found for name, found in zip(names, listed, strict=True))
    counts = np.array([len(found.files) for found in listed], dtype=np.int64)
    if changed and counts.sum() >= STORE_FROM:
        _store(folder, {**stored, **dict(zip(names, listed, strict=True))})
    labels = np.repeat(np.arange(len(names)), counts)
    numbers = np.column_stack([labels, np.zeros_like(labels), np.arange(len(labels))])
    files = np.concatenate([found.files for found in listed]) if listed else np.array([], dtype=np.bytes_)
    folders = [os.path.join(folder, name) for name in names]
    return ImageList(folders, labels, files, numbers, [info.name for info in classes])


def image_names(folder: str | Path) -> list[str]:
    """Return the sorted names of the image files directly in a folder; hidden files are ignored."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.name.lower().endswith(IMAGE_ENDINGS) and not e.name.startswith("."))


def _list_folders(folder: Path, names: Sequence[str], stored: dict[str, Listed]) -> list[Listed]:
    def one(name: str) -> Listed:
        return _list_folder(os.path.join(folder, name), stored.get(name))

    with ThreadPoolExecutor(THREADS) as pool:
        return list(tqdm(pool.map(one, names), f"listing {folder}", len(names), unit="folder", delay=2, disable=None))


def _list_folder(folder: str, known: Listed | None) -> Listed:
    """Return the stored images of a folder if it has not changed, else those that are there now."""
    try:
        before = os.stat(folder)  # before the names: what comes later shows in the time of change
        stamp = np.array([before.st_ino & (2**63 - 1), before.st_mtime_ns], dtype=np.int64)  # some are of 64 bits
        if known is not None and (known.stamp == stamp).all():
            return known
        names = image_names(folder)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{folder}: no such class folder ({error.strerror})") from error
    if not names:
        raise DataError(
            f"{folder}: class folder without an image ({', '.join(IMAGE_ENDINGS)}); put the class's images there, "
            "or remove the folder from every split"
        )
    if not 0 < before.st_mtime_ns <= time.time_ns() - SETTLED:  # 0: mounted object stores keep no time of change
        stamp[1] = -1
    return Listed(stamp, np.array([os.fsencode(name) for name in names], dtype=np.bytes_))


def _place(folder: Path) -> Path:
    digest = hashlib.blake2b(os.fsencode(os.path.abspath(folder)), digest_size=16).hexdigest()
    return cache_folder() / "listings" / f"{digest}.npz"


def _load(folder: Path) -> dict[str, Listed]:
    """Read the stored listing; without one, or with a damaged one, nothing is known."""
    try:
        with np.load(_place(folder), allow_pickle=False) as file:
            names, stamps, counts, files = (file[key] for key in ("folders", "stamps", "counts", "files"))
            parts = np.split(files, np.cumsum(counts)[:-1])
            listed = map(Listed, stamps, parts)
            return {os.fsdecode(name): found for name, found in zip(names, listed, strict=True)}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"{_place(folder)}: the stored listing cannot be read ({error}); {folder} is listed anew")
        return {}


def _store(folder: Path, listed: dict[str, Listed]) -> None:
    buffer = io.BytesIO()
    np.savez(
        buffer,
        folders=np.array([os.fsencode(name) for name in listed], dtype=np.bytes_),
        stamps=np.stack([found.stamp for found in listed.values()]),
        counts=np.array([len(found.files) for found in listed.values()], dtype=np.int64),
        files=np.concatenate([found.files for found in listed.values()]),
    )
    try:
        atomic_write(_place(folder), lambda file: file.write(buffer.getbuffer()))
    except OSError as error:
        print(f"the listing of {folder} cannot be stored ({error}): the next start lists it again; DHO_CACHE moves it")
