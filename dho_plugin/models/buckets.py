"""Prompts sorted by length, so that those of one length, or of nearly one, run through a tower together."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from torch import Tensor, device

MOST_ON_A_GPU = 3  # a bucket costs kernels, padding costs FLOPs: a GPU at a few hundred classes waits for the kernels


class Bucket(NamedTuple):
    """The prompts `start` to `stop`, in the order of length, cut to `length` tokens."""

    length: int
    start: int
    stop: int


def most_buckets(where: device) -> int | None:
    """Return how many buckets a device wants at most; None: one for each length, without padding."""
    return None if where.type == "cpu" else MOST_ON_A_GPU


def by_length(lengths: Tensor, most: int | None = None) -> tuple[Tensor, list[Bucket]]:
    """Sort prompts by length and divide them into buckets.

    Args:
        lengths: (N,) int64, tokens of each prompt.
        most: how many buckets to make at most, with as little padding as possible; None: one for each length.

    Returns:
        order: (N,) int64 on the CPU, the prompts from short to long; those of one length keep their order.
        buckets: of the ordered prompts.
    """
    order = lengths.cpu().argsort(stable=True)
    ordered, buckets, start = lengths.cpu()[order].tolist(), [], 0
    for length in bucket_lengths(ordered, most):
        stop = bisect_right(ordered, length)
        buckets.append(Bucket(length, start, stop))
        start = stop
    return order, buckets


def bucket_lengths(lengths: Sequence[int], most: int | None = None) -> list[int]:
    """Return the lengths, ascending, to which prompts are padded with the fewest tokens in at most `most` buckets."""
    counts = Counter(lengths)
    distinct = sorted(counts)
    if most is None or len(distinct) <= most:
        return distinct

    def tokens(chosen: tuple[int, ...]) -> int:
        return sum(count * min(c for c in (*chosen, distinct[-1]) if c >= own) for own, count in counts.items())

    return [*min(combinations(distinct[:-1], most - 1), key=tokens), distinct[-1]]
