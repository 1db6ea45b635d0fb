"""Finding the stored features that a run may use, and saying what is wrong with the others."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dho_plugin.engine.data import ImageList
from dho_plugin.engine.feature_sets import StoredFeatures
from dho_plugin.engine.feature_store import FeatureStore
from dho_plugin.engine.files import cache_folder
from dho_plugin.engine.fingerprint import digest, file_sizes, image_keys
from dho_plugin.errors import NoCacheError

ALL_UP_TO = 100_000  # images: so many files are asked for their size at the start of a run, which takes seconds
LOOKED_AT = 256  # of more images: so many files


class Wanted(NamedTuple):
    """The features that a run could read.

    Attributes:
        name: beginning of the store's folder: data set, part of it, encoder.
        description: what the features are, as plain values; see `FeatureStore`.
        root: folder that image paths are taken relative to.
        views: number of views; 0 for images of an evaluation, in the one way that they are seen.
    """

    name: str
    description: dict[str, Any]
    root: Path
    views: int

    @property
    def shown(self) -> int:
        """Number of views that are stored."""
        return self.views or 1

    def keys(self, items: ImageList) -> np.ndarray:
        """Return the key of each image, uint64 (n,)."""
        return image_keys(items, self.root, indexed=self.views > 0)

    def create(self, items: ImageList, shard_rows: int = 0) -> FeatureStore:
        """Make an empty store of some images, or open the one that is there of the very same files.

        Raises:
            CacheError: it is damaged.
        """
        keys, sizes = self.keys(items), file_sizes(list(items.paths()))
        files = np.column_stack([keys.view(np.int64), sizes])[np.argsort(keys)].tobytes().hex()
        folder = _base() / f"{self.name}-{digest(self.description)}-{digest(files)}"
        return FeatureStore.create(folder, self.description, keys, sizes, shard_rows)

    def find(self, items: ImageList) -> StoredFeatures:
        """Return the stored features of some images.

        Raises:
            NoCacheError: there are none for all of them; the message says what differs in those that are there.
            CacheError: they are damaged.
        """
        reasons, keys = [], self.keys(items)
        for store in map(FeatureStore.open, stores_named(self.name)):
            rows = store.rows(keys)
            parts = differences(self.description, store.description)
            if problem := "; ".join(parts) or self._lacks(store, rows, items) or _changed(store, rows, items):
                reasons.append((len(parts), f"{store.folder.name}: {problem}"))
                continue
            return StoredFeatures(store, rows)
        where = f"no features named {self.name} in {_base()} fit this run"
        raise NoCacheError(f"{where}. The nearest, {min(reasons)[1]}" if reasons else where)

    def _lacks(self, store: FeatureStore, rows: np.ndarray, items: ImageList) -> str:
        """Return what of the wanted features a store does not have; "" for nothing."""
        if unknown := np.flatnonzero(rows < 0).tolist():
            return f"images: {len(unknown):,} of {len(rows):,} are not in it, the first {items.path(unknown[0])}"
        if missing := store.missing(self.shown):
            count = len(store.shards(self.shown))
            return f"incomplete: of {count} files for {self.shown} views {len(missing)} are missing"
        return ""


def stores_named(name: str) -> list[Path]:
    """Return the folders of the stores of a data set, part and encoder, whatever they hold."""
    ending = "-" + "?" * len(digest(""))
    return sorted(path.parent for path in _base().glob(f"{glob.escape(name)}{2 * ending}/manifest.json"))


def differences(mine: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """Return the parts, `part: stored there, mine here`, in which two descriptions differ."""
    keys = [key for key in {**mine, **stored} if mine.get(key) != stored.get(key)]
    return [f"{key}: {stored.get(key)!r} there, {mine.get(key)!r} here" for key in keys]


def _base() -> Path:
    return cache_folder() / "features"


def _changed(store: FeatureStore, rows: np.ndarray, items: ImageList) -> str:
    """Return which of some image files have another size than when the store was made; "" for none."""
    count = len(rows) if len(rows) <= ALL_UP_TO else LOOKED_AT
    some = np.unique(np.linspace(0, len(rows) - 1, count).astype(np.int64))
    found, known = file_sizes([items.path(position) for position in some.tolist()]), store.sizes[rows[some]]
    changed = np.flatnonzero(found != known).tolist()
    if not changed:
        return ""
    first = f"{items.path(int(some[changed[0]]))} has {found[changed[0]]} bytes in the place of {known[changed[0]]}"
    return f"files: it was made from others, {len(changed)} of {len(some)} that were looked at differ: {first}"
