"""Images as the models see them: the two datasets, training views and evaluation."""

import logging
from collections.abc import Sequence
from typing import Literal

import torch
from PIL import Image
from torch.utils.data import Dataset

from dho_plugin.engine.data import Datum, ImageList
from dho_plugin.engine.decode import UnreadableImageError, read_image
from dho_plugin.engine.views import Preprocess, ViewSpec, apply_view, eval_transform
from dho_plugin.errors import ConfigError, DataError

log = logging.getLogger(__name__)

UNREADABLE_CHOICES = ("error", "skip")


class _ImageTable(Dataset):
    """The images of a dataset, as columns that worker processes share."""

    def __init__(self, items: Sequence[Datum], unreadable: str):
        if unreadable not in UNREADABLE_CHOICES:
            raise ConfigError(f"DATASET.UNREADABLE: {unreadable!r} is not one of {', '.join(UNREADABLE_CHOICES)}")
        self.skip = unreadable == "skip"
        self.items = ImageList.of(items)

    def __len__(self) -> int:
        return len(self.items)

    def path(self, position: int) -> str:
        return self.items.path(position)

    def row(self, position: int, **images: torch.Tensor) -> dict:
        label, domain, index = self.items.numbers[position].tolist()
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
        if not len(items):
            raise DataError("there are no images to train on")
        if (self.items.numbers[:, 2] < 0).any():
            raise DataError("training images need Datum.index >= 0: their views are keyed by it")
        self.student, self.teacher, self.views = student, teacher, views
        # Shared between the workers, so that each damaged file is reported once.
        self.damaged = torch.zeros(len(items), dtype=torch.bool).share_memory_()

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, view = key
        position, image = self._readable(position)
        where = self.views.draw(int(self.items.numbers[position, 2]), view, *image.size)
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
