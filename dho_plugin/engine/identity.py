"""Which data a run was trained on: a run must not go on, or be averaged, with other ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dho_plugin.engine.data import ClassInfo, DatasetBase, ImageList
from dho_plugin.errors import CheckpointError


def data_identity(dataset: DatasetBase) -> dict[str, list]:
    """Return [number of images, digest of their names and labels] of the labeled, all training and all test images.

    The place of the data does not count, nor does the order in which shots were drawn.
    """
    train = dataset.train_x + dataset.train_u + dataset.val
    parts = {"labeled": dataset.train_x, "training": train, "test": dataset.test}
    return {name: [len(images), _digest(images)] for name, images in parts.items()}


def _digest(images: ImageList) -> str:
    # by index: training images come in another order with every draw; a set's own val stands behind the others
    order = np.argsort(images.numbers[:, 2], kind="stable")
    names = b"\0".join(images.names[order].tolist())
    return hashlib.blake2b(names + images.labels[order].astype("<i8").tobytes(), digest_size=16).hexdigest()


def check_classes(saved: Sequence[Sequence[str]], classes: Sequence[ClassInfo], where: str | Path) -> None:
    """Check that a checkpoint was trained on this run's classes.

    Args:
        saved: the checkpoint's (key, name) pairs; none: it does not say.
        classes: the run's classes.
        where: the checkpoint's folder, for the message.

    Raises:
        CheckpointError: names how many and which differ.
    """
    pairs = [tuple(pair) for pair in saved]
    own = [(info.key, info.name) for info in classes]
    if pairs and pairs != own:
        differ = [f"{a} there, {b} here" for a, b in zip(pairs, own, strict=False) if a != b][:3]
        raise CheckpointError(
            f"{where}: the checkpoint knows {len(pairs)} classes, the data set {len(own)}; "
            f"first differences: {'; '.join(differ) or 'only the number'}"
        )


def check_data(saved: Mapping[str, Any], own: Mapping[str, Any], where: str | Path) -> None:
    """Check that a run goes on with the images that it began with.

    Args:
        saved: the checkpoint's `data_identity`; empty: it does not say.
        own: that of the data now.
        where: the checkpoint's folder, for the message.

    Raises:
        CheckpointError: says which part has changed.
    """
    changed = [
        f"{part} images: {saved[part][0]:,} then, {own[part][0]:,} now" for part in saved if saved[part] != own[part]
    ]
    if changed:
        raise CheckpointError(
            f"{where}: the data have changed since this run began ({'; '.join(changed)}; equal numbers mean other "
            "files or labels). Delete the run's folder to start it over, or restore the data"
        )
