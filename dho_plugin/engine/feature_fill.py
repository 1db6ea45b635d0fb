"""Filling a feature store: shard by shard, in any number of processes, and on from where a killed one stopped."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dho_plugin.engine.feature_store import FeatureStore, Shard
from dho_plugin.engine.image_sets import EvalDataset, ViewDataset
from dho_plugin.engine.processes import rank
from dho_plugin.errors import CacheError

WAIT = 1.0  # seconds between two looks at what other processes have done


class Claimed(NamedTuple):
    """One batch of a shard that belongs to this process.

    Attributes:
        shard: the shard.
        rows: the images of the batch.
        lock: the shard's lock.
    """

    shard: Shard
    rows: range
    lock: TextIO


class ClaimedBatches:
    """Batches of the shards that no other process has at hand; each stays locked until it is written.

    Args:
        store: the store.
        views: how many views it shall have.
        batch_size: images a batch.
        keyed_by_view: whether the dataset's keys are (position, view), else positions.
    """

    def __init__(self, store: FeatureStore, views: int, batch_size: int, *, keyed_by_view: bool):
        self.store, self.views, self.batch_size, self.keyed_by_view = store, views, batch_size, keyed_by_view
        self.pending: deque[Claimed] = deque()  # handed out, in the order in which they will come back

    def __iter__(self) -> Iterator[list]:
        for shard in self.store.missing(self.views):
            lock = self.store.claim(shard)
            for start in range(shard.start, shard.stop, self.batch_size) if lock else ():
                rows = range(start, min(start + self.batch_size, shard.stop))
                self.pending.append(Claimed(shard, rows, lock))
                yield [(row, shard.view) if self.keyed_by_view else row for row in rows]

    def release(self) -> None:
        """Give back what was claimed and will not be written."""
        while self.pending:
            self.pending.popleft().lock.close()


def fill(
    store: FeatureStore,
    views: int,
    dataset: ViewDataset | EvalDataset,
    encode: Callable[[Tensor], Tensor],
    *,
    batch_size: int,
    workers: int = 0,
    pin_memory: bool = False,
    title: str = "",
) -> int:
    """Compute and store the missing shards of a store's first views; other processes may do so at the same time.

    Args:
        store: the store.
        views: how many views it shall have.
        dataset: its images, in the order of its rows.
        encode: images (B, 3, S, S) float32 on the CPU -> features (B, D).
        batch_size: images a batch.
        workers: loader processes; 0 loads in this one.
        pin_memory: whether batches lie in pinned memory.
        title: of the progress bar.

    Returns:
        Number of features that this process has stored; it returns when the store is complete.

    Raises:
        CacheError: features do not fit into the store's type, or a shard on disk is damaged.
        DataError: an image cannot be read, and unreadable ones are not to be skipped.
        OSError: the disk is full. What is complete stays.
    """
    claims = ClaimedBatches(store, views, batch_size, keyed_by_view=isinstance(dataset, ViewDataset))
    loader = DataLoader(
        dataset, batch_sampler=claims, num_workers=workers, persistent_workers=workers > 0, pin_memory=pin_memory,
        generator=torch.Generator(),
    )  # fmt: skip
    own, total = 0, views * len(store)
    quiet = 0.1 if sys.stderr.isatty() else 30.0  # in a log file, a line every half minute
    shown = {"unit": "image", "desc": title, "mininterval": quiet, "disable": rank() > 0}  # one for all
    with tqdm(total=total, initial=_there(store, views), **shown) as bar:
        try:
            while store.missing(views):
                before = own
                for count in _pass(loader, claims, encode):
                    own += count
                    bar.update(count)
                if own == before and store.missing(views):  # the rest is in the hands of other processes
                    time.sleep(WAIT)
                bar.update(_there(store, views) - bar.n)
        finally:
            claims.release()
    return own


def _there(store: FeatureStore, views: int) -> int:
    return views * len(store) - sum(shard.stop - shard.start for shard in store.missing(views))


def _pass(loader: DataLoader, claims: ClaimedBatches, encode: Callable[[Tensor], Tensor]) -> Iterator[int]:
    """Fill the shards that can be claimed, and yield how many features each batch brought."""
    parts: list[np.ndarray] = []
    for batch in loader:
        claimed, store = claims.pending[0], claims.store
        features = encode(batch["img"]).float().cpu().numpy()
        with np.errstate(over="ignore"):
            features = features.astype(store.dtype)
        if not np.isfinite(features).all():
            raise CacheError(f"features of the images {claimed.rows} do not fit into {store.dtype} (INF or NaN)")
        features[_replaced(batch, loader.dataset.items.numbers[claimed.rows])] = np.nan
        parts.append(features)
        if claimed.rows.stop == claimed.shard.stop:
            with claimed.lock:
                store.write(claimed.shard, np.concatenate(parts))
                Path(claimed.lock.name).unlink(missing_ok=True)
            parts = []
        claims.pending.popleft()
        yield len(claimed.rows)


def _replaced(batch: dict, wanted: np.ndarray) -> np.ndarray:
    """Return where another image, or none, stands in the place of an unreadable one."""
    found = torch.stack([batch["label"], batch["domain"], batch["index"]], dim=1).numpy()
    return (found != wanted).any(1)
