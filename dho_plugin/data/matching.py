"""Finding images of a listing by paths that a file names, written on this machine or on another one."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dho_plugin.data.splits import shown
from dho_plugin.engine.data import ImageList
from dho_plugin.errors import DataError

_EXAMPLES = 3
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]")  # C:\data


def relative_path(images: ImageList, position: int, image_dir: Path) -> str:
    """Return an image's path below `image_dir`, with slashes; whole where it lies elsewhere."""
    return images.path(position).removeprefix(os.path.join(image_dir, "")).replace(os.sep, "/")


def find(images: ImageList, paths: Sequence[str], image_dir: Path) -> np.ndarray:
    """Find images by the ends of paths: `/elsewhere/data/images/train/n01/x.JPEG` is `n01/x.JPEG` below `image_dir`.

    Of a million images only those whose file name is asked for are looked at.

    Args:
        images: the listing.
        paths: relative paths, or absolute ones of any machine.
        image_dir: folder below which the listing's images lie.

    Returns:
        int64 (len(paths),), position of each, by the longest end; -1 where no image's relative path is an end of it.
    """
    parts = [_parts(path) for path in paths]
    wanted = {_encoded(part[-1]) for part in parts}
    names = (name.rpartition(b"/")[2] for name in images.names.tolist())
    known = {relative_path(images, i, image_dir): i for i, name in enumerate(names) if name in wanted}
    return np.array([_longest_end(part, known) for part in parts], dtype=np.int64)


def locate(images: ImageList, paths: Sequence[str], image_dir: Path, source: Path, remedy: str) -> np.ndarray:
    """Find the images that a file names; each must be there, once.

    Args:
        images: the listing.
        paths: what the file names.
        image_dir: folder below which the listing's images lie.
        source: the file, for the message.
        remedy: what to do, for the message.

    Returns:
        int64 (len(paths),), positions in the order of `paths`.

    Raises:
        DataError: paths that are no image of the listing, or that name an image twice.
    """
    positions = find(images, paths, image_dir)
    missing = [path for path, position in zip(paths, positions, strict=True) if position < 0]
    if missing:
        raise DataError(
            f"{source} names {len(missing)} of {len(paths)} images that are not among the {len(images)} listed below "
            f"{image_dir}: {_examples(missing)}. {remedy}"
        )
    twice = [images.path(position) for position, count in Counter(positions.tolist()).items() if count > 1]
    if twice:
        raise DataError(f"{source} names {len(twice)} images more than once: {_examples(twice)}. {remedy}")
    return positions


def _examples(paths: Sequence[str]) -> str:
    return shown([repr(path) for path in paths], _EXAMPLES)  # a name that is not text cannot be printed as it is


def _parts(path: str) -> list[str]:
    return (path.replace("\\", "/") if _WINDOWS.match(path) else path).split("/")


def _encoded(name: str) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        return b""  # no file can have such a name


def _longest_end(parts: list[str], known: dict[str, int]) -> int:
    ends = ("/".join(parts[start:]) for start in range(len(parts)))
    return next((known[end] for end in ends if end in known), -1)
