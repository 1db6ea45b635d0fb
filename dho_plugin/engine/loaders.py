"""Which images make up each step's batch, and the loaders that read them."""

import zlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import DataLoader

from dho_plugin.engine.counter import random_bits
from dho_plugin.engine.image_sets import EvalDataset, ViewDataset
from dho_plugin.errors import DataError


class StepBatches:
    """Batches of (position, view), each a pure function of (seed, stream, step): a run can go on at any step.

    The images are gone through in passes; pass k is the k-th permutation of all images and shows view number k, or
    k modulo `views`. Batches run on across the border of two passes: nothing is dropped, and a batch may exceed the
    images.

    Args:
        n: number of images, >= 1.
        batch_size: images a step, over all processes.
        steps: number of steps of the whole run.
        seed: seed of the order, >= 0.
        stream: name that sets several loaders of one run apart ("train_x", "train_u").
        start_step: first step to yield.
        views: how many views there are (`INPUT.VIEWS`); 0 shows another one in each pass.
        rank: number of this process.
        world: number of processes; each takes its share of every batch.

    Raises:
        DataError: n < 1.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        steps: int,
        seed: int,
        stream: str,
        start_step: int = 0,
        *,
        views: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        if n < 1:
            raise DataError(f"the stream {stream!r} has no images")
        self.n, self.batch_size, self.steps = n, batch_size, steps
        self.seed, self.stream, self.start_step = seed, stream, start_step
        self.views, self.rank, self.world = views, rank, world

    def __len__(self) -> int:
        return max(0, self.steps - self.start_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for positions, views in self.groups(1):
            yield list(zip(positions.tolist(), views.tolist(), strict=True))

    def each(self) -> int:
        """Return how many images of a batch are this process's."""
        return len(range(self.rank, self.batch_size, self.world))

    def groups(self, batches: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the positions and views, int64 (n,) each, of so many batches at once, one behind the other."""
        order = lru_cache(maxsize=1)(self._order)  # places only go up: each pass is drawn once
        inside = np.arange(self.rank, self.batch_size, self.world)
        for step in range(self.start_step, self.steps, batches):
            steps = np.arange(step, min(step + batches, self.steps))
            passes, places = np.divmod((steps[:, None] * self.batch_size + inside).ravel(), self.n)
            parts = [order(k)[places[passes == k]] for k in range(passes[0], passes[-1] + 1)] if len(passes) else []
            yield np.concatenate([np.empty(0, dtype=np.int64), *parts]), passes % self.views if self.views else passes

    def _order(self, number: int) -> np.ndarray:
        stream = 1 + zlib.crc32(self.stream.encode())  # stream 0 belongs to the views
        return np.argsort(random_bits(self.seed, stream, self.n, number), kind="stable")


def train_loader(
    dataset: ViewDataset, batches: StepBatches, *, workers: int = 0, device: torch.device | str = "cpu"
) -> DataLoader:
    """Load training batches; the same numbers come out for any number of workers.

    Args:
        dataset: the images and their views.
        batches: which of them each step takes.
        workers: number of loader processes; 0 loads in this one.
        device: where the batches will go; for "cuda" they lie in pinned memory.

    Returns:
        Loader of dicts with Dassl's keys (`img` (B, 3, S, S) float32, `label` (B,) int64, ...).
    """
    return _loader(dataset, workers, device, batch_sampler=batches)


def eval_loader(
    dataset: EvalDataset, batch_size: int, *, workers: int = 0, device: torch.device | str = "cpu"
) -> DataLoader:
    """Load every image of an evaluation once, in order.

    Args:
        dataset: the images.
        batch_size: images a batch; the last batch may be smaller.
        workers: number of loader processes; 0 loads in this one.
        device: where the batches will go; for "cuda" they lie in pinned memory.

    Returns:
        Loader of dicts with Dassl's keys; label -1 marks an image that could not be read.
    """
    return _loader(dataset, workers, device, batch_size=batch_size)


def _loader(dataset, workers: int, device: torch.device | str, **batching) -> DataLoader:
    return DataLoader(
        dataset,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator(),  # else each pass would draw from, and shift, the global generator
        **batching,
    )
