"""Write the mini world to disk, in exactly the layout that CoOp's DATASETS.md gives ImageNet and its variants."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dho_plugin.data.mini.pool import block_map
from dho_plugin.data.mini.render import render
from dho_plugin.data.mini.sets import SET_BY_NAME, SETS, ImageSet
from dho_plugin.data.mini.world import CLASSES
from dho_plugin.engine.files import atomic_write_text
from dho_plugin.errors import ConfigError, DataError

VERSION = 1  # of the pixels and the layout; a change of either is another world
MARKER = "mini.json"
BLOCK = 250


def generate(root, *, workers: int = 0, fraction: float = 1.0, sets: Sequence[str] | None = None) -> tuple[str, ...]:
    """Write the mini world below a folder; what is there already is checked and left alone.

    A set appears under its name only when it is whole, so a killed run goes on with the missing sets.

    Args:
        root: folder for `imagenet/`, `imagenetv2/`, ... and the marker `mini.json`; made if missing.
        workers: processes that render; 0 renders in this one. The pixels are the same for any number.
        fraction: share of the images a class, in (0, 1]; at least 20 training images and 1 of each test set stay.
        sets: names of the sets to write; None writes all.

    Returns:
        The names of the sets that this call wrote.

    Raises:
        ConfigError: an unknown set, or a fraction outside (0, 1].
        DataError: the folder holds something else, a set was changed, or the disk is full.
    """
    root, chosen = Path(root), _choose(sets, fraction)
    with _written_below(root):
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root):
            planned = {s.name: len(s.indices(fraction)) for s in SETS}
            _check_marker(root, fraction, planned)
            missing = [s for s in chosen if not _is_complete(root, s, planned[s.name])]
            _write_classnames(root, chosen)
            if missing:
                _write_sets(root, missing, workers, fraction)
    return tuple(s.name for s in missing)


def _choose(sets: Sequence[str] | None, fraction: float) -> list[ImageSet]:
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction is {fraction}; it must lie in (0, 1], 1 for the whole mini world")
    unknown = sorted(set(sets or ()) - set(SET_BY_NAME))
    if unknown:
        raise ConfigError(f"unknown set(s) {', '.join(unknown)}; the mini world has {', '.join(SET_BY_NAME)}")
    return [s for s in SETS if sets is None or s.name in sets]


@contextmanager
def _written_below(root: Path) -> Iterator[None]:
    """Turn failures of writing into an error that says where and what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write the mini world below {root}: {error.strerror or error}. It needs about 250 MB and a folder "
            f"that you may write to; make room or choose another folder, then run the command again: it continues"
        ) from error


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Let a second run wait for the first instead of writing the same files."""
    with open(root / ".mini.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check_marker(root: Path, fraction: float, planned: dict[str, int]) -> None:
    """Compare `mini.json` with what is asked for; write it into a fresh folder, before any set."""
    wanted = {"world": "dho_plugin mini", "version": VERSION, "fraction": fraction, "images": planned}
    marker = root / MARKER
    if marker.exists():
        found = _read_marker(marker)
        if found != wanted:
            differing = [key for key in wanted if found.get(key) != wanted[key]]
            raise DataError(
                f"{marker} describes another mini world: "
                + "; ".join(f"{key} is {found.get(key)!r}, asked for {wanted[key]!r}" for key in differing)
                + f". Delete {root} or choose another folder"
            )
        return
    for image_set in SETS:
        if (root / image_set.folder).exists():
            raise DataError(
                f"{root / image_set.folder} exists, but there is no {marker}: the mini world's generator did not "
                f"make it and will not write into it. Choose another folder"
            )
    atomic_write_text(marker, json.dumps(wanted, indent=2) + "\n")


def _read_marker(marker: Path) -> dict:
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{marker} is not valid JSON ({error}); delete {marker.parent} and generate again") from error
    return found if isinstance(found, dict) else {}


def _is_complete(root: Path, image_set: ImageSet, planned: int) -> bool:
    folder = root / image_set.folder
    if not folder.exists():
        return False
    found = sum(1 for _ in folder.glob("*/*.png"))
    if found != planned:
        raise DataError(
            f"{folder} holds {found} images, the generator wrote {planned}: the folder was changed. "
            f"Delete {folder} and run the command again; it writes the missing set only"
        )
    return True


def _write_classnames(root: Path, sets: list[ImageSet]) -> None:
    """Write `classnames.txt` with ALL classes beside each set, as CoOp's variants have it."""
    text = "".join(f"{c.wnid} {c.name}\n" for c in CLASSES)
    for dataset in sorted({Path(s.folder).parts[0] for s in sets}):
        path = root / dataset / "classnames.txt"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            atomic_write_text(path, text)


def _write_sets(root: Path, sets: list[ImageSet], workers: int, fraction: float) -> None:
    total = sum(len(s.indices(fraction)) for s in sets)
    with block_map(workers) as run, tqdm(total=total, unit="img", mininterval=0.5) as bar:
        for image_set in sets:
            bar.set_description(f"mini world: {image_set.name}")
            _write_set(root, image_set, run, fraction, bar)


def _write_set(root: Path, image_set: ImageSet, run, fraction: float, bar: tqdm) -> None:
    """Write a set beside its place and move it there when it is whole."""
    folder = root / image_set.folder
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for label in image_set.labels:
            (partial / image_set.class_folder(label)).mkdir(parents=True)
        indices = image_set.indices(fraction)
        blocks = np.split(indices, range(BLOCK, len(indices), BLOCK))
        for written in run(_write_block, [partial] * len(blocks), [image_set.name] * len(blocks), blocks):
            bar.update(written)
        os.rename(partial, folder)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_block(folder: Path, name: str, indices: np.ndarray) -> int:
    image_set = SET_BY_NAME[name]
    images = render(image_set.parameters(indices))
    for index, label, image in zip(indices, image_set.label_of(indices), images, strict=True):
        file = f"{CLASSES[label].wnid}_{index // len(image_set.labels) + 1:05d}.png"
        Image.fromarray(image).save(folder / image_set.class_folder(label) / file, compress_level=3)
    return len(indices)
