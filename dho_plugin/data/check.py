"""Looking for data sets as a run would: what is there, beside the counts of the paper's Table 10, what is missing."""

from __future__ import annotations

import difflib
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

import dho_plugin.data.fine_grained
import dho_plugin.data.imagenet
import dho_plugin.data.own  # noqa: F401  (each registers its data sets)
from dho_plugin.data.folders import HOW_TO, folder_names
from dho_plugin.data.imagenet import data_root
from dho_plugin.data.sources import BY_NAME, COLUMNS, SOURCES, as_printed
from dho_plugin.data.verify import printable
from dho_plugin.engine.config import get_cfg_default
from dho_plugin.engine.data import DatasetBase, ImageList
from dho_plugin.engine.registry import DATASET_REGISTRY
from dho_plugin.errors import DataError, DHOError

FOUND, MISSING, INCOMPLETE, BROKEN = "found", "missing", "incomplete", "error"
LEGEND = """Beside each count that of the paper's Table 10: = the same, != another one, (in brackets) none is here.
The mini world and selections of your own differ from it by design; a published set should not.
"""


class UnsoundDataError(DataError):
    """Data sets are there and cannot be used as they are, or sets that were asked for are missing."""

    exit_code = 1


@dataclass
class Check:
    """What was found of one data set.

    Attributes:
        name: under which it is registered.
        folder: its own folder.
        state: found | missing (no such folder) | incomplete (files are missing) | error (its reader refuses it).
        message: why it is not found.
        counts: numbers of classes and of images of each part.
        parts: the images of each part, by its name.
        notes: what else the reader had to say.
    """

    name: str
    folder: Path
    state: str
    message: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    parts: dict[str, ImageList] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def published(self) -> dict[str, str]:
        """Table 10's counts; none for anybody's own images."""
        source = BY_NAME.get(self.name)
        return dict(zip(COLUMNS, source.published, strict=True)) if source else {}

    @property
    def differing(self) -> list[str]:
        """The counts that are not Table 10's."""
        return [
            column
            for column, printed in self.published.items()
            if self.counts and as_printed(self.counts[column], printed) != printed
        ]

    def as_plain(self) -> dict[str, Any]:
        """Return all of it but the images, ready for JSON."""
        said = {
            "state": self.state,
            "folder": printable(str(self.folder)),
            "message": self.message,
            "notes": self.notes,
        }
        return {**said, "counts": self.counts, "table10": self.published, "differing": self.differing}


def look_for(name: str, root: Path, prefix: str = "", csv: str = "", test_sets: Sequence[str] = ()) -> Check:
    """Read a data set with its own reader, with all training images labeled, and say what there is.

    Nothing is written: a split that a run would make and store is made only.

    Args:
        name: under which it is registered.
        root: `DATASET.ROOT`.
        prefix: `DATASET.PREFIX`.
        csv: `DATASET.CSV`, for anybody's own images.
        test_sets: `DATASET.TEST_SETS`, for them too.
    """
    cfg = get_cfg_default()
    cfg.SEED, dataset = 1, cfg.DATASET
    dataset.ROOT, dataset.PREFIX, dataset.CSV, dataset.TEST_SETS = str(root), prefix, csv, tuple(test_sets)
    dataset.SHOTS_FROM = "draw"
    folder = data_root(cfg)
    folder = folder / BY_NAME[name].folder if name in BY_NAME else folder
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            data = _reader(name)(cfg)
    except (DHOError, OSError) as error:
        state, hint = (BROKEN, "") if folder.exists() else (MISSING, _misnamed(folder))
        message = " ".join([*str(error).replace(HOW_TO, "").split(), *hint.split()])
        return Check(name, folder, state, printable(message))
    return _counted(name, folder, data, printable(said.getvalue()).splitlines())


def _reader(name: str) -> type[DatasetBase]:
    """Return the class that reads a data set, without its habit of storing a split that it had to make."""
    reader = DATASET_REGISTRY.get(name)
    return type(name, (reader,), {"store_split": _announce_split}) if hasattr(reader, "store_split") else reader


def _announce_split(self, path: Path, split) -> None:
    print(f"{path}: there is none; a run makes it as CoOp makes it, so these counts are its counts")


def _counted(name: str, folder: Path, data: DatasetBase, notes: list[str]) -> Check:
    parts = {"train": data.train_x, "unlabeled": data.train_u, "val": data.val, "test": data.test}
    parts |= {f"test set {more.test_name}": more.test for more in data.extra_tests}
    check = Check(name, folder, FOUND, parts=parts, notes=notes)
    check.counts = {"classes": data.num_classes, **{part: len(images) for part, images in parts.items()}}
    check.notes += [
        f"{part}: {len(images):,} images" for part, images in parts.items() if part not in COLUMNS and images
    ]
    missing = [path for images in parts.values() for path in _missing_files(images)]
    if missing:
        check.state = INCOMPLETE
        total, first = sum(map(len, parts.values())), printable(missing[0])
        check.message = f"{len(missing):,} of {total:,} images are not there, for example {first}"
    return check


def _missing_files(images: ImageList) -> Iterator[str]:
    """Yield the listed images that are not there, with one look into each folder."""
    order = np.argsort(images.folder_ids, kind="stable")
    bounds = np.flatnonzero(np.diff(images.folder_ids[order])) + 1
    for places in np.split(order, bounds) if len(order) else ():
        folder = os.fsencode(images.folders[images.folder_ids[places[0]]])
        there = set(os.listdir(folder)) if os.path.isdir(folder) else ()
        absent = [place for place in places if images.names[place].item() not in there]
        yield from (path for path in map(images.path, absent) if not os.path.lexists(path))


def _misnamed(folder: Path) -> str:
    """Say which folder there may be the one that was looked for."""
    if folder.is_symlink():
        return f"{folder} is a link to {os.readlink(folder)}, which is not there."
    if not folder.parent.is_dir():
        return ""
    others = {*folder_names(folder.parent)} - {source.folder for source in SOURCES}
    plain = {name.lower().replace("_", "").replace("-", ""): name for name in others}
    near = difflib.get_close_matches(folder.name.lower().replace("_", "").replace("-", ""), plain, n=1, cutoff=0.8)
    return f"Is it {folder.parent / plain[near[0]]}? Rename or link it to {folder.name}." if near else ""


def table(checks: Sequence[Check]) -> str:
    """Write what was found as a table, each count beside Table 10's."""
    rows = [[check.name, check.state, *(_cell(check, column) for column in COLUMNS)] for check in checks]
    aligned = ("left", "left", *("right" for _ in COLUMNS))
    lines = tabulate(rows, headers=["set", "state", *COLUMNS], disable_numparse=True, colalign=aligned)
    return f"{LEGEND}\n{lines}" if any(check.published for check in checks) else lines


def _cell(check: Check, column: str) -> str:
    printed = check.published.get(column, "-")
    if not check.counts:
        return "-" if printed == "-" else f"({printed})"
    count = f"{check.counts[column]:,}" if check.counts[column] else "-"
    if not check.published or count == printed == "-":
        return count
    return f"{count} {'!=' if column in check.differing else '='} {printed}"


def remarks(check: Check) -> list[str]:
    """Return what else is to be said of a data set, and where to get it if it is not there."""
    lines = [f"{check.name}: {check.state}. {check.message}"] if check.message else []
    lines += [f"{check.name}: {note}" for note in check.notes]
    if check.state != FOUND and check.name in BY_NAME:
        lines += [f"    get it: {place}" for place in BY_NAME[check.name].where]
    return lines
