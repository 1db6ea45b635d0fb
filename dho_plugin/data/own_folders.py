"""Somebody's own photos in folders: train/<class>/*, unlabeled/*, val/<class>/*, test/<class>/*, further test sets."""

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dho_plugin.data.folders import class_folders, folder_names, is_folder, named_classes, nfc, read_classnames
from dho_plugin.data.listing import IMAGE_ENDINGS, image_names, list_images
from dho_plugin.data.splits import shown
from dho_plugin.engine.data import ClassInfo, ImageList
from dho_plugin.errors import DataError

SPLITS = ("train", "unlabeled", "val", "test")
LABELED_SPLITS = ("train", "val", "test")
HOW_TO = (
    "Photos lie in train/<class>/*.jpg and test/<class>/*.jpg, and as you like in unlabeled/, val/<class>/ and further "
    "test sets named by DATASET.TEST_SETS; or DATASET.CSV names a file with the columns path,label,split."
)
_ALSO_CALLED = {
    "train": ("training",),
    "unlabeled": ("unlabelled",),
    "val": ("valid", "validation"),
    "test": ("tests", "testing"),
}
STRANGE_UP_TO = 100_000  # images; in bigger sets nobody looks for strange files: their folders are not read again


class OwnImages(NamedTuple):
    """What was found: the classes, and the images of each split, their labels being places in the classes.

    Attributes:
        classes: sorted by key.
        parts: the labeled splits that are there, by name: train, val, test and further test sets.
        unlabeled: images of the pool whose class nobody knows; label -1, indices after those of the training images.
    """

    classes: list[ClassInfo]
    parts: dict[str, ImageList]
    unlabeled: ImageList


def read_folders(home: Path, test_sets: Sequence[str]) -> OwnImages:
    """Read photos that lie in folders; what is not used is said on stdout.

    Args:
        home: folder that holds train/, test/ and the others.
        test_sets: names of further test sets, folders beside train/.

    Raises:
        DataError: folders are missing or empty, links lead nowhere, or a class is not one of train/'s.
    """
    _check_splits(home)
    there = [name for name in LABELED_SPLITS if (home / name).is_dir()]
    folders = {name: _folders_by_key(home / name) for name in (*there, *test_sets)}
    if not folders:
        raise DataError(f"{home} holds neither train/ nor test/. {_holds(home)} {HOW_TO}")
    _say_near_misses(home, test_sets)
    trained = folders.get("train", {key: key for found in folders.values() for key in found})
    for name, found in folders.items():
        for key in found.keys() - trained.keys():
            raise DataError(f"{home / name}: {unknown_class(key, trained, 'train/ has no such folder')}")
    classes = own_classes(trained, home / "classnames.txt")
    parts = {name: _list_part(home / name, found, classes) for name, found in folders.items()}
    unlabeled = images_below(home / "unlabeled", len(parts.get("train", ())))
    if sum(map(len, (*parts.values(), unlabeled))) <= STRANGE_UP_TO:
        _say_what_is_left_out(home, folders)
    return OwnImages(classes, parts, unlabeled)


def own_classes(keys: Iterable[str], classnames: Path) -> list[ClassInfo]:
    """Return classes sorted by key, named by classnames.txt where it is there, else by their keys with "_" for spaces.

    Raises:
        DataError: classnames.txt is there and lacks a class.
    """
    keys = sorted(keys)
    if classnames.is_file():
        return named_classes(keys, read_classnames(classnames), classnames.parent)
    return [ClassInfo(key, " ".join(key.replace("_", " ").split()) or key) for key in keys]


def unknown_class(key: str, known: Iterable[str], why: str) -> str:
    """Return what an error says of a class that is not one of the known ones."""
    known = sorted(known)
    near = difflib.get_close_matches(key, known, n=2)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {shown(known)}"
    return f"unknown class {key!r}: {why}; {hint}"


def image_list(
    folders: Sequence[str],
    folder_ids: Sequence[int],
    names: Sequence[str],
    labels: Sequence[int],
    classnames: Sequence[str] = (),
    first_index: int = 0,
) -> ImageList:
    """Return images, (n) names below numbered folders, as a list whose indices count on from `first_index`."""
    count = len(names)
    numbers = np.zeros((count, 3), dtype=np.int64)
    numbers[:, 0], numbers[:, 2] = labels, np.arange(first_index, first_index + count)
    encoded = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
    return ImageList(folders, np.asarray(folder_ids, dtype=np.int32), encoded, numbers, classnames)


def _folders_by_key(folder: Path) -> dict[str, str]:
    """Return the class folders' names by class key (the name in NFC), in the order of the keys."""
    found: dict[str, str] = {}
    if folder.is_dir():
        _check_links(folder, os.listdir(folder))
    for name in class_folders(folder, "a folder a class with its images", HOW_TO):
        if not name.isprintable():  # logs, tables and JSON could not hold it
            raise DataError(f"{folder}: the class folder {name!r} has characters that cannot be printed; rename it")
        if found.setdefault(nfc(name), name) != name:
            raise DataError(f"{folder}: two folders are named {name!r}, their accents coded differently; join them")
    return dict(sorted(found.items()))


def _holds(home: Path) -> str:
    if not home.is_dir():
        return "There is no such folder."
    names = folder_names(home)
    return f"Its folders: {shown(names)}." if names else "It has no folders."


def _check_splits(home: Path) -> None:
    """Check that nothing has the name of a split and is no folder."""
    _check_links(home, SPLITS)
    for name in SPLITS:
        if (home / name).exists() and not (home / name).is_dir():
            raise DataError(f"{home / name} is no folder; the photos of {name} lie in a folder of that name: rename it")


def _check_links(folder: str | Path, names: Iterable[str]) -> None:
    """Check that no link that may be to a folder leads nowhere: a class, or a part of the pool, would go unnoticed."""
    for name in names:
        if name.startswith(".") or name.lower().endswith(IMAGE_ENDINGS):
            continue
        path = os.path.join(folder, name)
        if os.path.islink(path) and not os.path.exists(path):
            raise DataError(
                f"{path} is a broken link: {os.readlink(path)} is not there; connect the disk that it leads to, or "
                "remove the link"
            )


def _say_near_misses(home: Path, test_sets: Sequence[str]) -> None:
    """Say on stdout which folders look like a split that is not there, such as Train/ or validation/."""
    names = [name for name in folder_names(home) if name not in (*SPLITS, *test_sets)]
    for split in SPLITS:
        near = [name for name in names if name.lower() in (split, *_ALSO_CALLED[split])]
        if near and not (home / split).is_dir():
            print(f"{home}: not used: {near[0]}/; if it is meant as {split}/, rename it to {split}")


def _list_part(folder: Path, found: Mapping[str, str], classes: Sequence[ClassInfo]) -> ImageList:
    place = {info.key: number for number, info in enumerate(classes)}
    try:
        images = list_images(folder, list(found.values()), [classes[place[key]] for key in found])
    except DataError as error:
        raise DataError(f"{error}{_too_deep(folder, found.values())}") from error
    labels = np.array([place[key] for key in found], dtype=np.int64)
    return images.relabeled(labels[images.labels], [info.name for info in classes])


def _too_deep(folder: Path, names: Iterable[str]) -> str:
    """Return what an error adds where the images of the first class folder without any lie in folders below it."""
    empty = next((name for name in names if not image_names(folder / name)), None)
    below = _folders_below(folder / empty) if empty else ()
    deep = next((path for path in below if image_names(path)), None)
    return f"; there are images in {deep}, but only those directly in the class's folder count" if deep else ""


def images_below(folder: Path, first_index: int = 0) -> ImageList:
    """Return the images of a folder and of all folders below it, without labels."""
    folders = sorted(_folders_below(folder))
    names = [image_names(path) for path in folders]
    folder_ids = np.repeat(np.arange(len(folders)), [len(found) for found in names])
    files = [name for found in names for name in found]
    return image_list(folders, folder_ids, files, np.full(len(files), -1), first_index=first_index)


def _folders_below(folder: Path) -> Iterator[str]:
    """Yield a folder and all folders below, links followed, each once."""
    seen = set()
    for here, below, files in os.walk(folder, followlinks=True):
        _check_links(here, files)
        below[:] = sorted(name for name in below if not name.startswith("."))  # of two links the same one counts
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield here


def _say_what_is_left_out(home: Path, folders: Mapping[str, Mapping[str, str]]) -> None:
    """Say on stdout what lies about in the folders and is no image, or lies where no image is looked for."""
    endings: Counter[str] = Counter()
    for part, found in folders.items():
        images, files, _ = _sort_entries(home / part)
        _say(home / part, images, "image(s) beside the class folders", "put them into a class's folder or unlabeled/")
        endings.update(files)
        for name in found.values():
            _, files, inner = _sort_entries(home / part / name)
            _say(home / part / name, inner, "folder(s) in a class's folder", "put their images directly into it")
            endings.update(files)
    for path in _folders_below(home / "unlabeled"):
        endings.update(_sort_entries(path)[1])
    if endings:
        counts = shown([f"{ending} {count}" for ending, count in endings.most_common()])
        print(f"{home}: not used: files that are no images by their endings ({counts})")


def _say(folder: Path, names: Sequence[str], what: str, advice: str) -> None:
    if names:
        print(f"{folder}: not used: {len(names)} {what}, such as {names[0]}; {advice}")


def _sort_entries(folder: str | Path) -> tuple[list[str], list[str], list[str]]:
    """Return what lies in a folder: its images, the endings of its other files, its folders; no hidden ones."""
    images = image_names(folder)
    with os.scandir(folder) as entries:
        taken = set(images)
        others = [entry for entry in entries if entry.name not in taken and not entry.name.startswith(".")]
    files = [os.path.splitext(entry.name)[1].lower() or "no ending" for entry in others if not is_folder(entry)]
    return images, files, sorted(entry.name for entry in others if is_folder(entry))
