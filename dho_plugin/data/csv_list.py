"""Somebody's own photos in a CSV file with the columns path, label and split."""

import csv
import errno
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from dho_plugin.data.folders import nfc, read_classnames, read_utf8
from dho_plugin.data.listing import IMAGE_ENDINGS
from dho_plugin.data.own_folders import LABELED_SPLITS, SPLITS, OwnImages, image_list, own_classes, unknown_class
from dho_plugin.data.splits import shown
from dho_plugin.engine.data import ClassInfo, ImageList
from dho_plugin.errors import DataError

COLUMNS = ("path", "label", "split")
_END = "\x03 end of the file"  # read as a record of its own, unless a quote is open
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


class Line(NamedTuple):
    """One record: the number of its first line in the file, and what it says; the label is the class key in NFC."""

    number: int
    path: str
    label: str
    split: str


def read_csv(path: Path, test_sets: Sequence[str]) -> OwnImages:
    """Read a list of photos; their order and so the shots are those of the same photos in folders, not the file's.

    Args:
        path: the CSV file; paths in it are absolute or relative to its folder, and classnames.txt may lie beside it.
        test_sets: names of further test sets, as they stand in the column split.

    Raises:
        DataError: names the line: columns, class, split or path that cannot be, a file that is not there or twice.
    """
    lines = _find_files(path, list(_read_lines(path, (*SPLITS, *test_sets))))
    there = {line.split for line in lines}
    missing = [name for name in test_sets if name not in there]
    if missing or there <= {"unlabeled"}:
        lacking = " and ".join(missing or ["train", "test"])
        raise DataError(f"{path}: no line's split is {lacking}; DATASET.TEST_SETS names further test sets")
    classes = own_classes(_trained_keys(path, lines), path.parent / "classnames.txt")
    names = [name for name in (*LABELED_SPLITS, *test_sets) if name in there]
    parts = {name: _images([line for line in lines if line.split == name], classes) for name in names}
    unlabeled = [line._replace(label="") for line in lines if line.split == "unlabeled"]
    return OwnImages(classes, parts, _images(unlabeled, classes, len(parts.get("train", ()))))


def _read_lines(path: Path, splits: Sequence[str]) -> Iterator[Line]:
    """Yield the lines, each checked by itself."""
    if not path.is_file():
        raise DataError(f"DATASET.CSV: there is no file {path}; it is a path below the data set's folder, or absolute")
    known = {name: name for name in splits}
    for name in splits:
        known.setdefault(name.lower(), name)
    records = _records(path)
    places = _columns(path, *next(records, (1, [])))
    for number, fields in records:
        try:
            yield _line(path, number, fields, places, known)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the records that are not blank, each with the number of its first line: a quote may hold line breaks."""
    lines = chain(io.StringIO(read_utf8(path), newline=""), [_END])
    reader, number = csv.reader(lines, skipinitialspace=True), 1
    try:
        for fields in reader:
            if fields == [_END]:
                return
            if fields and fields[-1].endswith(_END):
                raise DataError(f"{path}, line {number}: a quote is opened and not closed: {','.join(fields)!r:.80}")
            if any(field.strip() for field in fields):
                yield number, fields
            number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}, line {number}: not readable as CSV ({error})") from error


def _columns(path: Path, number: int, header: Sequence[str]) -> list[int]:
    names, found = [name.strip().lower() for name in header], ", ".join(header) or "missing"
    if any(names.count(column) != 1 for column in COLUMNS):
        raise DataError(
            f"{path}, line {number}: the columns are {found:.200}; path, label and split must be among them, once "
            "each, with commas between"
        )
    return [names.index(column) for column in COLUMNS]


def _line(path: Path, number: int, fields: Sequence[str], places: Sequence[int], splits: Mapping[str, str]) -> Line:
    """Return a record as a line; errors do not name where it stands.

    Args:
        path: the CSV file.
        number: the record's first line.
        fields: what stands in the record.
        places: where COLUMNS stand in it.
        splits: the splits as they may be written, and as they are called.
    """
    used = [fields[place].strip() for place in places if place < len(fields)]
    if any("\n" in field or "\r" in field for field in used):
        raise DataError(f"a line break in {','.join(fields)!r:.80}; does a quote stand where none should?")
    if len(used) < len(places):
        raise DataError(f"{len(fields)} columns, fewer than the first line has: {','.join(fields)!r:.80}")
    image, label, written = used
    split = splits.get(written) or splits.get(written.lower())
    if split is None:
        there = ", ".join(dict.fromkeys(splits.values()))
        raise DataError(f"unknown split {written!r:.80}; there are {there}; DATASET.TEST_SETS names further test sets")
    if not image:
        raise DataError("the path is empty")
    if split != "unlabeled":
        _check_label(image, label)
    return Line(number, os.path.normpath(os.path.join(path.parent, image)), nfc(label), split)


def _check_label(image: str, label: str) -> None:
    if not label:
        raise DataError(f"{image} has no label; only lines of split unlabeled go without")
    if not label.isprintable():  # logs, tables and JSON could not hold it
        raise DataError(f"the label {label!r:.80} has characters that cannot be printed; rename the class")


class _Disk:
    """Finds files by the listings of their folders: one question a folder, however many files; NFC and NFD are one."""

    def __init__(self):
        self._folders: dict[str, tuple[str, dict[str, str]]] = {}

    def find(self, path: str) -> str | None:
        """Return the path under which a file lies on disk, or None if it does not."""
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = self._read(folder)
        actual, names = self._folders[folder]
        found = names.get(name) or names.get(nfc(name))
        return found and os.path.join(actual, found)

    def _read(self, folder: str) -> tuple[str, dict[str, str]]:
        try:
            names = os.listdir(folder)
        except (OSError, ValueError) as error:  # ValueError: the byte 0 is in no path
            if isinstance(error, OSError) and error.errno not in _NOT_THERE:
                raise
            other = self.find(folder) if os.path.dirname(folder) != folder else None
            return self._read(other) if other and other != folder else (folder, {})
        return folder, {**{nfc(name): name for name in names}, **{name: name for name in names}}


def _find_files(path: Path, lines: Sequence[Line]) -> list[Line]:
    """Return the lines with the paths under which their files lie on disk."""
    disk, first = _Disk(), dict[str, int]()
    found = [line._replace(path=disk.find(line.path) or "") for line in lines]
    missing = [line for line, there in zip(lines, found, strict=True) if not there.path]
    slash = ", and / stands between folders, not \\" if any("\\" in line.path for line in missing) else ""
    _require_none(path, missing, len(lines), "do not exist", f"Paths are absolute or relative to {path.parent}{slash}")
    others = [line for line in found if not line.path.lower().endswith(IMAGE_ENDINGS)]
    _require_none(path, others, len(lines), "are no images by their endings", f"Images are {', '.join(IMAGE_ENDINGS)}")
    for line in found:
        if first.setdefault(line.path, line.number) != line.number:
            raise DataError(
                f"{path}, line {line.number}: {line.path} stands already in line {first[line.path]}; an image has one "
                "line"
            )
    return found


def _require_none(path: Path, wrong: Sequence[Line], total: int, what: str, advice: str) -> None:
    if wrong:
        which = shown([f"line {line.number}: {line.path}" for line in wrong], 5)
        raise DataError(f"{path}: {len(wrong)} of {total} files {what}: {which}. {advice}")


def _trained_keys(path: Path, lines: Sequence[Line]) -> set[str]:
    """Return the class keys of the training lines (without any, of all), after a check of every line's."""
    labeled = [line for line in lines if line.split != "unlabeled"]
    trained = {line.label for line in labeled if line.split == "train"} or {line.label for line in labeled}
    listed = path.parent / "classnames.txt"
    named = read_classnames(listed) if listed.is_file() else trained
    for line in labeled:
        for known, why in ((trained, "no line of split train has it"), (named, "classnames.txt lacks it")):
            if line.label not in known:
                raise DataError(f"{path}, line {line.number}: {unknown_class(line.label, known, why)}")
    return trained


def _images(lines: Sequence[Line], classes: Sequence[ClassInfo], first_index: int = 0) -> ImageList:
    """Return lines as images, sorted by class, folder and file name; a label "" is -1."""
    label = {"": -1, **{info.key: number for number, info in enumerate(classes)}}
    columns = sorted((label[line.label], *os.path.split(line.path)) for line in lines)
    folders = {folder: number for number, folder in enumerate(dict.fromkeys(folder for _, folder, _ in columns))}
    return image_list(
        list(folders),
        [folders[folder] for _, folder, _ in columns],
        [name for _, _, name in columns],
        [label for label, _, _ in columns],
        [info.name for info in classes],
        first_index,
    )
