"""Batches of stored features, in the place of images that an encoder would have to see."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dho_plugin.engine.data import Datum, ImageList
from dho_plugin.engine.decode import UnreadableImageError
from dho_plugin.engine.feature_store import FeatureStore

AHEAD = 4  # batches that are read while the model computes


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
        return torch.from_numpy(self.store.read(self.rows[positions], views).astype(np.float32))

    def one(self, position: int, view: int) -> Tensor:
        """Return one image's features (D,) float32.

        Raises:
            UnreadableImageError: the image could not be read when its features were stored.
        """
        features = self.take(np.array([position]), np.array([view]))[0]
        if features[0].isnan():
            raise UnreadableImageError(f"image {position} of {self.store.folder} could not be read when it was filled")
        return features


class FeatureBatches:
    """Batches for models whose encoders are frozen: `batches([(position, view), ...])` reads features, no image.

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

    def __call__(self, keys: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        positions, views = np.asarray(keys, dtype=np.int64).reshape(-1, 2).T
        features, lost = self._take(positions, views)
        for _ in range(len(self.items) if self.unreadable == "next" else 0):
            if not lost.any():
                break
            positions = np.where(lost, (positions + 1) % len(self.items), positions)
            features, lost = self._take(positions, views)
        if lost.any() and self.unreadable != "mark":
            first = self.items.path(int(positions[lost.argmax()]))
            raise UnreadableImageError(f"{first} could not be read when its features were stored")
        label, domain, index = torch.from_numpy(self.items.numbers[positions]).unbind(1)
        lost = torch.from_numpy(lost)
        features = {name: values.masked_fill(lost[:, None], 0) for name, values in features.items()}
        return {"label": label.masked_fill(lost, -1), "domain": domain, "index": index, **features}

    def _take(self, positions: np.ndarray, views: np.ndarray) -> tuple[dict[str, Tensor], np.ndarray]:
        features = {name: stored.take(positions, views) for name, stored in self.stored.items()}
        return features, np.any([values[:, 0].isnan().numpy() for values in features.values()], axis=0)

    def stream(self, keys: Iterable[Sequence[tuple[int, int]]]) -> Iterator[dict[str, Tensor]]:
        """Yield the batches of some keys, read ahead in a thread."""
        return read_ahead(map(self, keys))

    def in_order(self, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield every image once, in order, in view 0."""
        starts = range(0, len(self.items), batch_size)
        places = (range(start, min(start + batch_size, len(self.items))) for start in starts)
        return self.stream([(position, 0) for position in part] for part in places)


def read_ahead(items: Iterator, ahead: int = AHEAD) -> Iterator:
    """Yield an iterator's items while a thread draws the next ones; what it raises is raised here."""
    drawn: queue.Queue = queue.Queue(ahead)
    stopped = threading.Event()

    def put(*entry) -> bool:
        while not stopped.is_set():
            try:
                drawn.put(entry, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def draw() -> None:
        try:
            for item in items:
                if not put(item, None):
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    threading.Thread(target=draw, daemon=True, name="read_ahead").start()
    try:
        while True:
            item, error = drawn.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()
