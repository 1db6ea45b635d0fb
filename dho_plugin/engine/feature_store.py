"""Image features on disk: what they are of, and shards of rows that are read without being loaded.

A store is a folder: `manifest.json` says which encoder and preprocessing made the features, `images.npy` of which
files, and `view000-00000.npy` holds the rows of the first images in view 0. Shards appear whole or not at all, so any
number of processes may fill a store, and a killed one goes on with the shards that are missing.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import torch
from torch import UntypedStorage

from dho_plugin.engine.files import atomic_write, atomic_write_text, lock_file
from dho_plugin.errors import CacheError

SHARD_BYTES = 32 * 2**20  # a killed fill loses at most so much; larger shards are read faster
FORMAT = 1


class Shard(NamedTuple):
    """The rows [start, stop) of one view."""

    view: int
    start: int
    stop: int


class FeatureStore:
    """The features of one encoder, for some views of a list of images.

    Args:
        folder: where it lies.
        description: what the features are, as plain values; "dtype" and "dim" among them.
        images: uint64 (n,), key of each row's image; see `image_keys`.
        sizes: int64 (n,), size of each image file in bytes.
        shard_rows: rows a shard.

    Raises:
        CacheError: the parts do not fit together.
    """

    def __init__(
        self, folder: Path, description: dict[str, Any], images: np.ndarray, sizes: np.ndarray, shard_rows: int
    ):
        self.folder, self.description, self.images, self.sizes = folder, description, images, sizes
        self.dtype, self.dim, self.shard_rows = np.dtype(description["dtype"]), description["dim"], shard_rows
        self._order = np.argsort(images, kind="stable")
        self._maps: dict[tuple[int, int], np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # a worker process opens the files itself

    def __len__(self) -> int:
        return len(self.images)

    @classmethod
    def create(
        cls, folder: Path, description: dict[str, Any], images: np.ndarray, sizes: np.ndarray, shard_rows: int = 0
    ) -> FeatureStore:
        """Make an empty store, or open the one that is there.

        Args:
            folder: where it shall lie.
            description: what the features will be; "dtype" and "dim" among them.
            images: uint64 (n,), keys of the images.
            sizes: int64 (n,), sizes of the files.
            shard_rows: rows a shard; 0 takes SHARD_BYTES.

        Raises:
            CacheError: the one that is there is damaged.
        """
        if not (folder / "manifest.json").exists():
            row = description["dim"] * np.dtype(description["dtype"]).itemsize
            rows = min(max(1, shard_rows or SHARD_BYTES // row), max(1, len(images)))
            buffer = io.BytesIO()
            np.save(buffer, np.column_stack([images.view(np.int64), sizes]))
            atomic_write(folder / "images.npy", lambda file: file.write(buffer.getbuffer()))
            manifest = {"format": FORMAT, "images": len(images), "shard_rows": rows, "description": description}
            atomic_write_text(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> FeatureStore:
        """Open a store.

        Raises:
            CacheError: its manifest or its list of images is missing or damaged.
        """
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            table = np.load(folder / "images.npy", allow_pickle=False)
            if manifest["format"] != FORMAT or table.shape != (manifest["images"], 2):
                raise ValueError(f"format {manifest['format']}, {len(table)} images of {manifest['images']}")
            images = np.ascontiguousarray(table[:, 0]).view(np.uint64)
            return cls(folder, manifest["description"], images, table[:, 1], int(manifest["shard_rows"]))
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise CacheError(f"{folder}: the feature cache is damaged ({error}). Delete the folder, fill it") from error

    def shards(self, views: int) -> list[Shard]:
        """Return the shards of the views 0 to `views` - 1, view by view."""
        starts, n, step = range(0, len(self), self.shard_rows), len(self), self.shard_rows
        return [Shard(view, start, min(start + step, n)) for view in range(views) for start in starts]

    def missing(self, views: int) -> list[Shard]:
        """Return the shards of the first views that are not there yet.

        Raises:
            CacheError: one that is there has not its size.
        """
        return [shard for shard in self.shards(views) if not self._is_there(shard)]

    def _is_there(self, shard: Shard) -> bool:
        path = self.path(shard)
        try:
            found, wanted = path.stat().st_size, self._file_size(shard)
        except FileNotFoundError:
            return False
        if found != wanted:
            raise CacheError(
                f"{path} is damaged: {found:,} bytes in the place of {wanted:,}. Delete this file and fill the cache "
                "again (python -m dho_plugin.cache ...): what is complete stays"
            )
        return True

    def path(self, shard: Shard) -> Path:
        """Return the file of a shard."""
        return self.folder / f"view{shard.view:03d}-{shard.start // self.shard_rows:05d}.npy"

    def _file_size(self, shard: Shard) -> int:
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False}
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, header | {"shape": (shard.stop - shard.start, self.dim)})
        return buffer.tell() + (shard.stop - shard.start) * self.dim * self.dtype.itemsize

    def claim(self, shard: Shard) -> TextIO | None:
        """Return a shard's lock, to be closed when it is written; None if another process has it, or it is there.

        Raises:
            ConfigError: the file system has no locks, so nothing would keep two processes apart.
        """
        try:
            lock = lock_file(self.folder / "locks" / self.path(shard).stem)
        except BlockingIOError:
            return None
        if self._is_there(shard):  # another process has written it in the meantime
            lock.close()
            return None
        for left in self.folder.glob(f".{self.path(shard).name}.*.tmp"):  # by a process that was killed
            left.unlink(missing_ok=True)
        return lock

    def write(self, shard: Shard, features: np.ndarray) -> None:
        """Write a shard's rows, (stop - start, dim), atomically.

        Raises:
            OSError: the disk is full; what was there is untouched.
        """
        features = np.ascontiguousarray(features, dtype=self.dtype)
        atomic_write(self.path(shard), lambda file: np.save(file, features))

    def room(self, views: int) -> int:
        """Return the bytes that the first views take when they are complete."""
        return sum(map(self._file_size, self.shards(views)))

    def room_needed(self, views: int) -> int:
        """Return the bytes that the missing shards of the first views will take."""
        return sum(map(self._file_size, self.missing(views)))

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """Return the row of each image key, int64 (m,); -1 where an image is not in the store."""
        if not len(self):
            return np.full(len(keys), -1, dtype=np.int64)
        places = np.searchsorted(self.images, keys, sorter=self._order).clip(max=len(self) - 1)
        rows = self._order[places]
        return np.where(self.images[rows] == keys, rows, -1)

    def read(self, rows: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Read features from the mapped files.

        Args:
            rows: int64 (B,).
            views: int64 (B,), view of each.

        Returns:
            (B, dim) in the store's type; rows of NaN are images that could not be read.

        Raises:
            CacheError: a shard is missing or damaged.
        """
        groups = views * math.ceil(len(self) / self.shard_rows) + rows // self.shard_rows
        order = np.argsort(groups, kind="stable")
        parts = [part for part in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if len(part)]
        # np.take, as plain indexing holds Python's lock: a thread that reads would stop the training.
        taken = [np.take(self._shard_of(views[part[0]], rows[part[0]]), rows[part] % self.shard_rows, axis=0)
                 for part in parts]  # fmt: skip
        if len(parts) == 1:
            return taken[0]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return np.take(np.concatenate([np.empty((0, self.dim), self.dtype), *taken]), back, axis=0)

    def _shard_of(self, view: int, row: int) -> np.ndarray:
        return self._mapped(int(view), int(row) // self.shard_rows)

    def _mapped(self, view: int, number: int) -> np.ndarray:
        if (view, number) not in self._maps:
            start = number * self.shard_rows
            shard = Shard(view, start, min(start + self.shard_rows, len(self)))
            try:
                mapped = map_array(self.path(shard))
            except (OSError, ValueError, EOFError, RuntimeError) as error:
                raise CacheError(f"{self.path(shard)} cannot be read: {error}") from error
            if mapped.shape != (shard.stop - shard.start, self.dim) or mapped.dtype != self.dtype:
                raise CacheError(f"{self.path(shard)} holds {mapped.dtype} {mapped.shape}: delete it, fill it again")
            self._maps[view, number] = mapped
        return self._maps[view, number]


def map_array(path: Path) -> np.ndarray:
    """Return the array in a `.npy` file, mapped and read where it is looked at, without an open file behind it.

    NumPy's own maps keep their files open, and ten views of ImageNet are more files than a process may have (1024).

    Raises:
        OSError, ValueError, EOFError, RuntimeError: it is missing, or no such file.
    """
    header = np.load(path, mmap_mode="r", allow_pickle=False)
    start, stop = header.offset, header.offset + header.nbytes
    whole = UntypedStorage.from_file(str(path), False, stop)
    return torch.tensor([], dtype=torch.uint8).set_(whole).numpy()[start:].view(header.dtype).reshape(header.shape)
