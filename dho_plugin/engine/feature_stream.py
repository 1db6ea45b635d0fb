"""Streams of stored features: many batches are read at once, and a thread reads the next ones meanwhile.

A step on stored features takes a millisecond or two. Reading each batch by itself costs a good part of that, in Python
and so under Python's lock, where no thread can help; read together, batches cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dho_plugin.engine.feature_sets import FeatureBatches
from dho_plugin.engine.loaders import StepBatches

GROUP_BYTES = 2**22  # of features that are read at once
GROUP_STEPS = 256


def training_features(
    dataset: FeatureBatches, batches: StepBatches, device: torch.device | str = "cpu"
) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of a training stream.

    Args:
        dataset: where they are read.
        batches: which images each step takes.
        device: where they go.

    Returns:
        Dicts of tensors on the device; see `FeatureBatches`.
    """
    steps = max(1, min(GROUP_STEPS, GROUP_BYTES // _bytes(dataset, batches.each())))
    return _in_turn(dataset, batches.groups(steps), batches.each(), device)


def features_in_order(
    dataset: FeatureBatches, batch_size: int, device: torch.device | str = "cpu"
) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of an evaluation: every image once, in order, in view 0.

    Args:
        dataset: where they are read.
        batch_size: images a batch; the last one may be smaller.
        device: where they go.

    Returns:
        Dicts of tensors on the device; see `FeatureBatches`.
    """
    rows = batch_size * max(1, GROUP_BYTES // _bytes(dataset, batch_size))
    places = (np.arange(start, min(start + rows, len(dataset))) for start in range(0, len(dataset), rows))
    return _in_turn(dataset, ((positions, np.zeros_like(positions)) for positions in places), batch_size, device)


def one_ahead(items: Iterable[Any]) -> Iterator[Any]:
    """Yield the items in order; a thread fetches the next one while this one is used.

    What fetching raises is raised here, in its turn. The thread ends with the last item, or when the iterator is given
    up.
    """
    items, end = iter(items), object()
    with ThreadPoolExecutor(1, thread_name_prefix="features") as pool:
        ahead = pool.submit(next, items, end)
        while (item := ahead.result()) is not end:
            ahead = pool.submit(next, items, end)
            yield item


def _bytes(dataset: FeatureBatches, images: int) -> int:
    return max(1, images * dataset.bytes_each())


def _in_turn(dataset, groups: Iterable[tuple[np.ndarray, np.ndarray]], each: int, device) -> Iterator[dict]:
    """Yield batches of `each` images out of groups of (positions, views)."""
    device = torch.device(device)
    pinned = device.type == "cuda"

    def read(keys: tuple[np.ndarray, np.ndarray]) -> dict[str, Tensor]:
        with torch.cuda.device(device) if pinned else nullcontext():  # a thread of its own begins at the first GPU
            return {name: values.pin_memory() if pinned else values for name, values in dataset(*keys).items()}

    for group in one_ahead(map(read, groups)):
        parts = [values.to(device, non_blocking=True).split(each) for values in group.values()]
        yield from (dict(zip(group, batch, strict=True)) for batch in zip(*parts, strict=True))
