"""Low-shot training: which percent of the training images is labeled (`DATASET.LABELED_PERCENT`)."""

from pathlib import Path

import numpy as np

from dho_plugin.data.matching import locate
from dho_plugin.data.splits import by_label, class_counts
from dho_plugin.engine.counter import random_bits
from dho_plugin.engine.data import ImageList
from dho_plugin.errors import DataError

# Below the data set's own folder; the last is the folder's name in SimCLR's code.
LIST_FOLDERS = ("", "images", "split_fewshot", "imagenet_subsets")
_STREAM = 2**32 + 1  # of random_bits: the views have 0, the batches' streams lie in 1 .. 2**32


def labeled_percent(percent: float, home: Path, train: ImageList, image_dir: Path) -> np.ndarray:
    """Choose the labeled images: the usual list file where one lies beside the data, else a stratified draw.

    The list is `1percent.txt` (SimCLR's) in the data set's folder or its images/, split_fewshot/ or imagenet_subsets/;
    its lines are `n01440764_10026.JPEG`, whose folder is what stands before the first "_", or `<folder>/<file>`.
    Neither depends on the seed. A printed line says which it was.

    Args:
        percent: `DATASET.LABELED_PERCENT`, above 0 and at most 100.
        home: the data set's own folder.
        train: all training images.
        image_dir: folder below which they lie.

    Returns:
        int64 (n,), rising positions in train.

    Raises:
        DataError: a line of the list is no training image, or a second one for the same image.
    """
    name = f"{percent:g}percent.txt"
    path = next((path for folder in LIST_FOLDERS if (path := home / folder / name).is_file()), None)
    positions = _stratified(train.labels, percent) if path is None else _listed(path, train, image_dir)
    whence = f"drawn by class, the same for every seed ({home / name} is not there)" if path is None else str(path)
    without = np.count_nonzero(class_counts(train)) - np.count_nonzero(class_counts(train.take(positions)))
    note = f"; {without} classes have no labeled image" if without else ""
    print(f"Labeled images: {len(positions)} of {len(train)} ({percent:g}%), {whence}{note}")
    return np.sort(positions)


def _stratified(labels: np.ndarray, percent: float) -> np.ndarray:
    """Draw max(1, round(n * percent / 100)) of every class's n images by counter-based numbers."""
    drawn = []
    for group in by_label(labels):
        order = np.argsort(random_bits(0, _STREAM, len(group), int(labels[group[0]])), kind="stable")
        drawn.append(group[order[: max(1, round(len(group) * percent / 100))]])
    return np.concatenate(drawn)


def _listed(path: Path, train: ImageList, image_dir: Path) -> np.ndarray:
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")  # as file names are read
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise DataError(f"{path} names no image. Mend it, or remove it: the labeled images are then drawn")
    # Of each path the longest end that is an image counts, so that a line may also be a file that lies in no folder.
    named = [line if "/" in line else f"{line.partition('_')[0]}/{line}" for line in lines]
    return locate(train, named, image_dir, path, "Mend it, or remove it: the labeled images are then drawn")
