"""The pretraining corpus of the mini world: unique images with a student's and a teacher's captions."""

import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

from dho_plugin.data.mini.captions import CaptionNoise, captions, rare_words
from dho_plugin.data.mini.hashing import normal, uniform
from dho_plugin.data.mini.params import Params, sample
from dho_plugin.data.mini.pool import block_map
from dho_plugin.data.mini.render import render
from dho_plugin.data.mini.world import CLASSES, SIZE, shapes_and_patterns

CORPUS_SIZE = 260_000
SEED = 1000
BLOCK = 512
_CLASS_SPREAD = 0.7  # standard deviation of the log frequency of a class: the web is not balanced
_STYLE_SHARES = (0.88, 0.035, 0.017, 0.017, 0.017, 0.017, 0.017)


def _from_shares(shares: np.ndarray, u: np.ndarray) -> np.ndarray:
    edges = np.cumsum(shares) / np.sum(shares)
    return np.minimum(np.searchsorted(edges, u), len(edges) - 1)


def corpus_labels(index: np.ndarray) -> np.ndarray:
    """Return the classes, (N,) int64, of the corpus's images."""
    frequency = np.exp(_CLASS_SPREAD * normal(3, np.arange(len(CLASSES)), 1))
    return _from_shares(frequency, uniform(SEED + 1, index, 1))


def _parameters(index: np.ndarray) -> Params:
    shape, pattern = shapes_and_patterns(corpus_labels(index))
    return sample(
        SEED, index, shape, pattern, _from_shares(np.array(_STYLE_SHARES), uniform(SEED + 1, index, 2)), "web"
    )


def corpus_captions(noise: CaptionNoise, size: int = CORPUS_SIZE) -> list[str]:
    """Write the captions of the first `size` images."""
    index = np.arange(size)
    rare = rare_words(shapes_and_patterns(corpus_labels(index))[0], noise, SEED + 2)
    out = []
    for start in range(0, size, BLOCK):
        block = index[start : start + BLOCK]
        out += captions(_parameters(block), block, noise, rare, SEED + 3)
    return out


def _render_block(path: Path, size: int, start: int) -> int:
    index = np.arange(start, min(start + BLOCK, size))
    images = np.lib.format.open_memmap(path, mode="r+")
    images[index] = render(_parameters(index))
    return len(index)


def corpus_images(path: Path, size: int = CORPUS_SIZE, workers: int = 0) -> np.ndarray:
    """Return the corpus's images as a read-only memory map, rendered to a file at the first call.

    Args:
        path: the `.npy` file, 6.9 kB an image.
        size: number of images.
        workers: processes that render; 0 renders in this one.

    Returns:
        (size, SIZE, SIZE, 3) uint8.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=(size, SIZE, SIZE, 3)).flush()
        _render_all(partial, size, workers)
        os.replace(partial, path)
    return np.load(path, mmap_mode="r")


def _render_all(path: Path, size: int, workers: int) -> None:
    starts = range(0, size, BLOCK)
    with block_map(workers) as run, tqdm(total=size, desc="corpus", unit="img", mininterval=1) as bar:
        for done in run(_render_block, [path] * len(starts), [size] * len(starts), starts):
            bar.update(done)
