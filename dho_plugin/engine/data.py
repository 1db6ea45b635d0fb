"""Images as the models see them: lists of files, reading, and the two datasets (training views, evaluation)."""

import logging
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from dho_plugin.engine.views import Preprocess, ViewSpec, apply_view, eval_transform
from dho_plugin.errors import ConfigError, DataError

log = logging.getLogger(__name__)

UNREADABLE_CHOICES = ("error", "skip")
# What Pillow's decoders raise on damaged files.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)


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
    """

    test_name = "test"
    no_training = ""

    def __init__(
        self,
        train_x: Sequence[Datum] = (),
        train_u: Sequence[Datum] = (),
        val: Sequence[Datum] = (),
        test: Sequence[Datum] = (),
        *,
        classes: Sequence[ClassInfo],
    ):
        self.train_x, self.train_u = list(train_x), list(train_u)
        self.val, self.test = list(val), list(test)
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

    def require_training(self) -> None:
        """Check that there is something to train on.

        Raises:
            DataError: there are no labeled training images; the message says why.
        """
        if not self.train_x:
            raise DataError(f"{type(self).__name__} has no training images. {self.no_training}".strip())


class UnreadableImageError(DataError):
    """An image file cannot be decoded."""

    def __init__(self, message: str):
        # DataLoader rebuilds a worker's exception with the worker's whole traceback as its message.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())


def read_image(path: str) -> Image.Image:
    """Decode an image file of any colour mode as RGB, 8 bits a channel.

    Args:
        path: path of the file.

    Returns:
        The image; transparency is dropped, 16-bit gray values are scaled.

    Raises:
        UnreadableImageError: the file is missing, damaged, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            return _to_rgb(image)
    except _DECODE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(
            f"{path}: cannot be read as an image ({reason}). Replace or remove the file, "
            "or set DATASET.UNREADABLE skip to go on without it."
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # convert("RGB") would clip 16-bit values at 255
        gray = np.asarray(image).clip(0, 65535) // 257
        image = Image.fromarray(gray.astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


class _ImageTable(Dataset):
    """Columns of arrays in place of a list of objects.

    Worker processes share their memory: counting references to a million objects would copy it into each of them.
    """

    def __init__(self, items: Sequence[Datum], unreadable: str):
        if unreadable not in UNREADABLE_CHOICES:
            raise ConfigError(f"DATASET.UNREADABLE: {unreadable!r} is not one of {', '.join(UNREADABLE_CHOICES)}")
        self.skip = unreadable == "skip"
        self.paths = np.array([os.fsencode(item.impath) for item in items], dtype=np.bytes_)
        numbers = [(item.label, item.domain, item.index) for item in items]
        self.numbers = np.array(numbers, dtype=np.int64).reshape(len(items), 3)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, position: int) -> str:
        return os.fsdecode(self.paths[position])

    def row(self, position: int, **images: torch.Tensor) -> dict:
        label, domain, index = self.numbers[position].tolist()
        return {"label": label, "domain": domain, "impath": self.path(position), "index": index, **images}


class ViewDataset(_ImageTable):
    """Training images: `dataset[position, view]` is view number `view` of the image at `position`.

    Each image is decoded once for both models. A row has Dassl's keys: `img` (3, S, S) float32, `label`, `domain`,
    `impath`, `index`, and `img_teacher` (3, S', S') where there is a teacher.

    Args:
        items: the images; each needs its index.
        student: preprocessing of the student.
        teacher: preprocessing of a teacher that looks at the same view, or None.
        views: the views to draw.
        unreadable: "error" stops at a damaged file, "skip" takes the next readable one in its place.

    Raises:
        DataError: there are no images, or one has no index.
        ConfigError: `unreadable` is neither of the two.
    """

    def __init__(
        self,
        items: Sequence[Datum],
        student: Preprocess,
        teacher: Preprocess | None = None,
        *,
        views: ViewSpec,
        unreadable: Literal["error", "skip"] = "error",
    ):
        super().__init__(items, unreadable)
        if not items:
            raise DataError("there are no images to train on")
        if (self.numbers[:, 2] < 0).any():
            raise DataError("training images need Datum.index >= 0: their views are keyed by it")
        self.student, self.teacher, self.views = student, teacher, views
        # Shared between the workers, so that each damaged file is reported once.
        self.damaged = torch.zeros(len(items), dtype=torch.bool).share_memory_()

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, view = key
        position, image = self._readable(position)
        where = self.views.draw(int(self.numbers[position, 2]), view, *image.size)
        images = {"img": apply_view(image, where, self.student)}
        if self.teacher is not None:
            images["img_teacher"] = apply_view(image, where, self.teacher)
        return self.row(position, **images)

    def _readable(self, start: int) -> tuple[int, Image.Image]:
        for position in ((start + step) % len(self) for step in range(len(self))):
            if self.damaged[position]:
                continue
            try:
                return position, read_image(self.path(position))
            except UnreadableImageError:
                if not self.skip:
                    raise
                self.damaged[position] = True
                log.warning("%s: cannot be read; another image takes its place", self.path(position))
        raise UnreadableImageError(f"none of the {len(self)} images can be read, the first is {self.path(0)}")


class EvalDataset(_ImageTable):
    """Images for evaluation, each as the model's preprocessing wants it; rows have Dassl's keys.

    Args:
        items: the images.
        pre: preprocessing of the model.
        unreadable: "error" stops at a damaged file; "skip" gives a black image with label -1 in its place, for the
            evaluator to count.

    Raises:
        ConfigError: `unreadable` is neither of the two.
    """

    def __init__(self, items: Sequence[Datum], pre: Preprocess, *, unreadable: Literal["error", "skip"] = "error"):
        super().__init__(items, unreadable)
        self.pre = pre

    def __getitem__(self, position: int) -> dict:
        try:
            return self.row(position, img=eval_transform(read_image(self.path(position)), self.pre))
        except UnreadableImageError:
            if not self.skip:
                raise
            return self.row(position, img=torch.zeros(3, self.pre.size, self.pre.size)) | {"label": -1}
