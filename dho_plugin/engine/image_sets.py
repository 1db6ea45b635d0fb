"""Images as the models see them: the two datasets, training views and evaluation."""

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from dho_plugin.engine.data import Datum, ImageList
from dho_plugin.engine.decode import ImageFile, UnreadableImageError
from dho_plugin.engine.feature_sets import StoredFeatures
from dho_plugin.engine.views import (
    Preprocess,
    View,
    ViewSpec,
    eval_transform,
    normalize_pixels,
    possible_reduction,
    view_pixels,
)
from dho_plugin.errors import ConfigError, DataError

log = logging.getLogger(__name__)

UNREADABLE_CHOICES = ("error", "skip")


class _ImageTable(Dataset):
    """The images of a dataset, as columns that worker processes share."""

    def __init__(self, items: Sequence[Datum], unreadable: str, jpeg_gap: float, upright: bool):
        if unreadable not in UNREADABLE_CHOICES:
            raise ConfigError(f"DATASET.UNREADABLE: {unreadable!r} is not one of {', '.join(UNREADABLE_CHOICES)}")
        self.skip = unreadable == "skip"
        self.items, self.jpeg_gap, self.upright = ImageList.of(items), jpeg_gap, upright

    def __len__(self) -> int:
        return len(self.items)

    def path(self, position: int) -> str:
        return self.items.path(position)

    def file(self, position: int) -> ImageFile:
        return ImageFile(self.path(position), self.upright)

    def row(self, position: int, **images: torch.Tensor) -> dict:
        label, domain, index = self.items.numbers[position].tolist()
        return {"label": label, "domain": domain, "impath": self.path(position), "index": index, **images}


class ViewDataset(_ImageTable):
    """Training images: `dataset[position, view]` is view number `view` of the image at `position`.

    Each image is decoded once for both models; what a view shows is fixed before and does not depend on how. A row has
    Dassl's keys: `img` (3, S, S) float32, `label`, `domain`, `impath`, `index`, and `img_teacher` (3, S', S') where
    there is a teacher.

    Args:
        items: the images; each needs its index.
        student: preprocessing of the student.
        teacher: preprocessing of a teacher that looks at the same view, or None.
        views: the views to draw.
        unreadable: "error" stops at a damaged file, "skip" takes the next readable one in its place.
        jpeg_gap: `INPUT.JPEG_GAP`: a JPEG is decoded smaller where the view keeps this many times the pixels of the
            larger of both inputs a side; 0 never does.
        upright: `INPUT.UPRIGHT`: turn photos by their EXIF orientation.
        size: side of a further model's input that the decoding must do for: one whose features are stored.
        stored: features that lie in a cache, by the key that a row gives them.
        keep_mb: `INPUT.KEEP_MB`: up to so much memory for images that stay decoded, in each loader process.

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
        jpeg_gap: float = 0.0,
        upright: bool = False,
        size: int = 0,
        stored: Mapping[str, StoredFeatures] | None = None,
        keep_mb: int = 0,
    ):
        super().__init__(items, unreadable, jpeg_gap, upright)
        if not len(items):
            raise DataError("there are no images to train on")
        if (self.items.numbers[:, 2] < 0).any():
            raise DataError("training images need Datum.index >= 0: their views are keyed by it")
        self.student, self.teacher, self.views = student, teacher, views
        self.size = max(size, *(pre.size for pre in (student, teacher) if pre is not None))
        self.stored = dict(stored or {})
        self.kept: dict[int, Image.Image] = {}
        self.room = keep_mb * 10**6
        # Shared between the workers, so that each damaged file is reported once.
        self.damaged = torch.zeros(len(items), dtype=torch.bool).share_memory_()

    def __getitem__(self, key: tuple[int, int]) -> dict:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[dict]:
        """Return a batch's rows; what each image costs beside its decoding is done once for all."""
        found = [self._readable(*key) for key in keys]
        positions, views = np.array([one[0] for one in found]), np.array([view for _, view in keys])
        batch = {"img": self._images(found, self.student)}
        batch |= {name: features.readable(positions, views) for name, features in self.stored.items()}
        if self.teacher is not None:
            batch["img_teacher"] = self._images(found, self.teacher)
        rows = [dict(zip(batch, parts, strict=True)) for parts in zip(*batch.values(), strict=True)]
        return [self.row(position, **row) for position, row in zip(positions.tolist(), rows, strict=True)]

    def _images(self, found: Sequence[tuple[int, View, Image.Image, int]], pre: Preprocess) -> torch.Tensor:
        return normalize_pixels([view_pixels(image, where, pre, scale) for _, where, image, scale in found], pre)

    def _readable(self, start: int, view: int) -> tuple[int, View, Image.Image, int]:
        for position in ((start + step) % len(self) for step in range(len(self))):
            if self.damaged[position]:
                continue
            try:
                return position, *self._decode(position, view)
            except UnreadableImageError:
                if not self.skip:
                    raise
                self.damaged[position] = True
                log.warning("%s: cannot be read; another image takes its place", self.path(position))
        raise UnreadableImageError(f"none of the {len(self)} images can be read, the first is {self.path(0)}")

    def _decode(self, position: int, view: int) -> tuple[View, Image.Image, int]:
        index = int(self.items.numbers[position, 2])
        kept = self.kept.get(position)
        file = self.file(position) if kept is None else None
        where = self.views.draw(index, view, *(file or kept).size)
        reduction = possible_reduction(where.width, where.height, self.size, self.jpeg_gap)
        if kept is not None and reduction < 2:  # a larger view is decoded smaller, whatever was seen before
            return where, kept, 1
        image, scale = (file or self.file(position)).decode(reduction)
        cost = 3 * image.width * image.height
        if scale == 1 and cost <= self.room and kept is None:
            self.kept[position], self.room = image, self.room - cost
        return where, image, scale


class EvalDataset(_ImageTable):
    """Images for evaluation, each as the model's preprocessing wants it; rows have Dassl's keys.

    Args:
        items: the images.
        pre: preprocessing of the model.
        unreadable: "error" stops at a damaged file; "skip" gives a black image with label -1 in its place, for the
            evaluator to count.
        jpeg_gap: `INPUT.JPEG_GAP`: a JPEG is decoded smaller where its shorter side keeps this many times the model's
            input; 0 never does.
        upright: `INPUT.UPRIGHT`: turn photos by their EXIF orientation.

    Raises:
        ConfigError: `unreadable` is neither of the two.
    """

    def __init__(
        self,
        items: Sequence[Datum],
        pre: Preprocess,
        *,
        unreadable: Literal["error", "skip"] = "error",
        jpeg_gap: float = 0.0,
        upright: bool = False,
    ):
        super().__init__(items, unreadable, jpeg_gap, upright)
        self.pre = pre

    def __getitem__(self, position: int) -> dict:
        try:
            file = self.file(position)
            image, scale = file.decode(possible_reduction(*file.size, self.pre.size, self.jpeg_gap))
        except UnreadableImageError:
            if not self.skip:
                raise
            return self.row(position, img=torch.zeros(3, self.pre.size, self.pre.size)) | {"label": -1}
        return self.row(position, img=eval_transform(image, self.pre, scale, file.size))
