"""Lists of image files, and the data sets made of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from dho_plugin.errors import DataError


@dataclass(frozen=True, slots=True)
class Datum:
    """One image file.

    Attributes:
        impath: path of the image.
        label: class number.
        domain: domain number.
        classname: name of the class.
        index: position in the full sorted listing of its split, whatever shots are drawn; views are keyed by it.
    """

    impath: str
    label: int
    domain: int = 0
    classname: str = ""
    index: int = -1


@dataclass(frozen=True, slots=True)
class ClassInfo:
    """One class: its key, unique in the data set (a wnid for the ImageNet family), and its name, which need not be."""

    key: str
    name: str


class ImageList(Sequence):
    """Image files as columns of arrays, which reads as a sequence of `Datum`.

    A million `Datum` objects take half a gigabyte, and every loader process that counts references to them copies it;
    the columns take 50 MB and are shared.

    Args:
        folders: absolute folders.
        folder_ids: (n,) number of each image's folder.
        names: (n,) bytes, file name of each image below its folder.
        numbers: (n, 3) int64: label, domain, index (see `Datum`).
        classnames: class name of each label.
    """

    def __init__(
        self,
        folders: Sequence[str],
        folder_ids: np.ndarray,
        names: np.ndarray,
        numbers: np.ndarray,
        classnames: Sequence[str],
    ):
        self.folders, self.classnames = tuple(folders), tuple(classnames)
        self.folder_ids, self.names = np.asarray(folder_ids, dtype=np.int32), np.asarray(names, dtype=np.bytes_)
        self.numbers = np.asarray(numbers, dtype=np.int64).reshape(len(self.names), 3)

    @classmethod
    def of(cls, items: Sequence[Datum]) -> ImageList:
        """Return images as an ImageList, unchanged if they are one already."""
        if isinstance(items, ImageList):
            return items
        paths = [os.path.split(item.impath) for item in items]
        folders = {folder: number for number, folder in enumerate(dict.fromkeys(folder for folder, _ in paths))}
        classnames = [""] * (1 + max((item.label for item in items), default=-1))
        for item in items:
            if item.label >= 0:
                classnames[item.label] = item.classname
        return cls(
            list(folders),
            np.array([folders[folder] for folder, _ in paths], dtype=np.int32),
            np.array([os.fsencode(name) for _, name in paths], dtype=np.bytes_),
            np.array([(item.label, item.domain, item.index) for item in items], dtype=np.int64),
            classnames,
        )

    @property
    def labels(self) -> np.ndarray:
        """(n,) int64, class number of each image."""
        return self.numbers[:, 0]

    def __len__(self) -> int:
        return len(self.names)

    def path(self, position: int) -> str:
        """Return the path of one image."""
        return os.path.join(self.folders[self.folder_ids[position]], os.fsdecode(self.names[position]))

    def paths(self) -> Iterator[str]:
        """Yield the path of every image."""
        return map(self.path, range(len(self)))

    def __getitem__(self, key: int | slice) -> Datum | ImageList:
        if isinstance(key, slice):
            return self.take(np.arange(len(self))[key])
        if not -len(self) <= key < len(self):
            raise IndexError(f"image {key} of {len(self)}")
        label, domain, index = self.numbers[key].tolist()
        name = self.classnames[label] if 0 <= label < len(self.classnames) else ""
        return Datum(self.path(key), label, domain, name, index)

    def __add__(self, other: Sequence[Datum]) -> ImageList:
        """Return both lists behind each other; a label's class name is the first list's, if it has one."""
        other = ImageList.of(other)
        if not len(self) or not len(other):
            return self if len(self) else other
        return ImageList(
            self.folders + other.folders,
            np.concatenate([self.folder_ids, other.folder_ids + len(self.folders)]),
            np.concatenate([self.names, other.names]),
            np.concatenate([self.numbers, other.numbers]),
            [mine or its for mine, its in zip_longest(self.classnames, other.classnames, fillvalue="")],
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(a == b for a, b in zip(self, other, strict=True))
        )

    __hash__ = None

    def __repr__(self) -> str:
        return f"ImageList of {len(self):,} images in {len(self.folders):,} folders"

    def take(self, positions: Sequence[int] | np.ndarray) -> ImageList:
        """Return the images at some positions (or where a boolean mask is true), in that order."""
        chosen = np.asarray(positions)
        chosen = chosen if chosen.dtype == np.bool_ else chosen.astype(np.int64)
        columns = self.folder_ids[chosen], self.names[chosen], self.numbers[chosen]
        return ImageList(self.folders, *columns, self.classnames)

    def relabeled(self, labels: np.ndarray, classnames: Sequence[str]) -> ImageList:
        """Return the same images with other labels, (n,) int64, and the class name of each label."""
        numbers = np.column_stack([np.asarray(labels, dtype=np.int64), self.numbers[:, 1:]])
        return ImageList(self.folders, self.folder_ids, self.names, numbers, classnames)


class DatasetBase:
    """The images and classes of one data set.

    Args:
        train_x: labeled training images.
        train_u: unlabeled training images, disjoint from train_x and val.
        val: validation images.
        test: test images.
        classes: class l of the labels is classes[l].

    Attributes:
        test_name: what results call the test images.
        no_training: why there are no training images, and what to do about it.
        no_validation: why there are no validation images, where the data set has more to say.
        extra_tests: further test sets, each with a name and classes of its own.
    """

    test_name = "test"
    no_training = ""
    no_validation = ""
    extra_tests: Sequence[DatasetBase] = ()

    def __init__(
        self,
        train_x: Sequence[Datum] = (),
        train_u: Sequence[Datum] = (),
        val: Sequence[Datum] = (),
        test: Sequence[Datum] = (),
        *,
        classes: Sequence[ClassInfo],
    ):
        self.train_x, self.train_u = ImageList.of(train_x), ImageList.of(train_u)
        self.val, self.test = ImageList.of(val), ImageList.of(test)
        self.classes = tuple(classes)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def classnames(self) -> list[str]:
        """Class names in label order; two classes may share a name."""
        return [info.name for info in self.classes]

    @property
    def class_keys(self) -> list[str]:
        """Unique class keys in label order."""
        return [info.key for info in self.classes]

    @property
    def lab2cname(self) -> dict[int, str]:
        """Class name of each label."""
        return dict(enumerate(self.classnames))

    def summary(self, name: str) -> str:
        """Return the table of a data set's sizes that the hosts print."""
        parts = {"train_x": self.train_x, "train_u": self.train_u, "val": self.val, "test": self.test}
        rows = [("Dataset", name), ("# classes", f"{self.num_classes:,}")]
        rows += [
            (f"# {part}", f"{len(items):,}") for part, items in parts.items() if part in ("train_x", "test") or items
        ]
        rows += [(f"# {extra.test_name}", f"{len(extra.test):,}") for extra in self.extra_tests]
        return "\n".join(["-" * 20, *(f"{key:<10} {value}" for key, value in rows), "-" * 20])

    def require_training(self) -> None:
        """Check that there is something to train on.

        Raises:
            DataError: there are no labeled training images; the message says why.
        """
        if not self.train_x:
            raise DataError(f"{type(self).__name__} has no training images. {self.no_training}".strip())
