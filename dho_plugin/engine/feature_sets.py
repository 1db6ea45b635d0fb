"""Batches of stored features, in the place of images that an encoder would have to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dho_plugin.engine.data import Datum, ImageList
from dho_plugin.engine.decode import UnreadableImageError
from dho_plugin.engine.feature_store import FeatureStore

WHEN_STORED = (
    "when its features were stored; of a file that is mended since, delete the store's folder and fill it again"
)


class StoredFeatures(NamedTuple):
    """The features of a list of images.

    Attributes:
        store: where they lie.
        rows: int64 (n,), the store's row of each image.
    """

    store: FeatureStore
    rows: np.ndarray

    def take(self, positions: np.ndarray, views: np.ndarray) -> Tensor:
        """Return the features of some images in the view of each, (B, D) float32; NaN for what could not be read."""
        return torch.from_numpy(self.store.read(self.rows[positions], views)).float()

    def readable(self, positions: np.ndarray, views: np.ndarray) -> Tensor:
        """Return the features of some images in the view of each, (B, D) float32.

        Raises:
            UnreadableImageError: an image could not be read when its features were stored.
        """
        features = self.take(positions, views)
        if (lost := features[:, 0].isnan()).any():
            image = positions[lost.numpy().argmax()]
            raise UnreadableImageError(f"image {image} of {self.store.folder} could not be read {WHEN_STORED}")
        return features


class FeatureBatches:
    """Batches for models whose encoders are frozen: `batches(positions, views)` reads features, no image.

    A batch has `label`, `domain` and `index`, each (B,) int64, and (B, D) float32 of each store.

    Args:
        items: the images.
        stored: their features, under the keys that a batch gives them.
        unreadable: what is done where an image could not be read: "error"; "next" takes the next readable one, as
            training does; "mark" gives the label -1 and features of 0, as an evaluation does.

    Raises:
        UnreadableImageError: names the image.
    """

    def __init__(
        self,
        items: Sequence[Datum],
        stored: Mapping[str, StoredFeatures],
        *,
        unreadable: Literal["error", "next", "mark"] = "error",
    ):
        self.items, self.stored, self.unreadable = ImageList.of(items), dict(stored), unreadable

    def __call__(self, positions: np.ndarray, views: np.ndarray) -> dict[str, Tensor]:
        features, lost = self._take(positions, views)
        for _ in range(len(self.items) if self.unreadable == "next" else 0):
            if not lost.any():
                break
            positions = np.where(lost, (positions + 1) % len(self.items), positions)
            features, lost = self._take(positions, views)
        if lost.any() and self.unreadable != "mark":
            first = self.items.path(int(positions[lost.argmax()]))
            raise UnreadableImageError(f"{first} could not be read {WHEN_STORED}")
        label, domain, index = torch.from_numpy(self.items.numbers[positions]).unbind(1)
        if lost.any():
            marked = torch.from_numpy(lost)
            features = {name: values.masked_fill(marked[:, None], 0) for name, values in features.items()}
            label = label.masked_fill(marked, -1)
        return {"label": label, "domain": domain, "index": index, **features}

    def _take(self, positions: np.ndarray, views: np.ndarray) -> tuple[dict[str, Tensor], np.ndarray]:
        features = {name: stored.take(positions, views) for name, stored in self.stored.items()}
        return features, np.any([values[:, 0].isnan().numpy() for values in features.values()], axis=0)

    def __len__(self) -> int:
        return len(self.items)

    def bytes_each(self) -> int:
        """Return the bytes of one image's features, as they are read."""
        return sum(stored.store.dim * stored.store.dtype.itemsize for stored in self.stored.values())
