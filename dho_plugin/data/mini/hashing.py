"""Counter-based random numbers: each is a pure function of (seed, index, slot), whatever the batch or process."""

import math

import numpy as np

_GOLDEN, _STEP, _SEED = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0x2545F4914F6CDD1D
_MASK = (1 << 64) - 1


def _mix(x: np.ndarray) -> np.ndarray:
    """One round of splitmix64's finalizer on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, index: np.ndarray, slot: int) -> np.ndarray:
    """Return float64 numbers in [0, 1), one an index, with 24 random bits each.

    Args:
        seed: names the stream.
        index: (N,) integers, the images' numbers.
        slot: which of an image's numbers.
    """
    start = np.uint64((slot * _STEP + seed * _SEED) & _MASK)
    with np.errstate(over="ignore"):
        x = _mix(_mix(np.asarray(index).astype(np.uint64) * np.uint64(_GOLDEN) + start))
    return (x >> np.uint64(40)).astype(np.float64) / 2**24


def normal(seed: int, index: np.ndarray, slot: int) -> np.ndarray:
    """Return float64 standard normal numbers (Box and Muller); uses the slots `slot` and `slot + 1`."""
    radius = np.sqrt(-2 * np.log(1 - uniform(seed, index, slot)))
    return radius * np.cos(2 * math.pi * uniform(seed, index, slot + 1))


def permutation(seed: int, n: int) -> np.ndarray:
    """Return a fixed permutation of 0..n-1, (n,) int64."""
    return np.argsort(uniform(seed, np.arange(n), 1), kind="stable")


class Stream:
    """The random numbers of a batch of images, drawn slot after slot."""

    def __init__(self, seed: int, index: np.ndarray):
        self.seed, self.index, self.slot = seed, np.asarray(index), 0

    def uniform(self, low=0.0, high=1.0) -> np.ndarray:
        """Return (N,) float64 between `low` and `high` (numbers or (N,) arrays)."""
        self.slot += 1
        return low + (high - low) * uniform(self.seed, self.index, self.slot)

    def angle(self) -> np.ndarray:
        """Return (N,) float64 angles in radians, the whole circle."""
        return self.uniform(0.0, 2 * math.pi)

    def integers(self, n: int) -> np.ndarray:
        """Return (N,) int64 in 0..n-1."""
        return (self.uniform() * n).astype(np.int64)

    def chance(self, probability) -> np.ndarray:
        """Return (N,) bool, true with the given probability."""
        return self.uniform() < probability
