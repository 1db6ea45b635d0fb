"""Class subsets: halves of the classes, and which outputs of a head belong to a test set that has only some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dho_plugin.data.splits import shown
from dho_plugin.engine.data import ClassInfo, ImageList
from dho_plugin.errors import DataError

if TYPE_CHECKING:
    import torch

_SHOWN = 5


def half(count: int, which: str) -> range:
    """Return the labels of one half of the classes, as CoOp divides them: the first half is the larger one.

    Args:
        count: number of all classes.
        which: `DATASET.SUBSAMPLE_CLASSES`: all, base (the first half) or new (the second).

    Raises:
        DataError: the half is empty.
    """
    middle = (count + 1) // 2
    labels = {"all": range(count), "base": range(middle), "new": range(middle, count)}[which]
    if not labels:
        raise DataError(
            f"DATASET.SUBSAMPLE_CLASSES {which}: of {count} classes none is in that half. Set it to all, or add classes"
        )
    return labels


def keep_classes(images: ImageList, kept: Sequence[int], classes: Sequence[ClassInfo]) -> ImageList:
    """Keep the images of some classes, and those without a class, and number these classes from 0.

    Args:
        images: images with labels of `classes`, or -1.
        kept: labels that stay, in their new order.
        classes: all classes, in label order.

    Returns:
        The images that stay, in their order, with their indices.
    """
    if list(kept) == list(range(len(classes))):
        return images  # a million images need no copy
    new = np.full(len(classes) + 1, -1)  # the last place is that of label -1
    new[np.asarray(kept, dtype=np.int64)] = np.arange(len(kept))
    stays = (new[images.labels] >= 0) | (images.labels < 0)
    return images.take(stays).relabeled(new[images.labels[stays]], [classes[label].name for label in kept])


def columns(trained: Sequence[str], target: Sequence[str]) -> torch.Tensor:
    """Find the column of the trained head for every class of a test set, by class key.

    Keys (wnids) decide and never names: "missile" and "sunglasses" each name two of ImageNet's classes. Slice the
    logits before the softmax: `logits[:, columns(trained, target)]`.

    Args:
        trained: class keys of the head's outputs, in order.
        target: class keys of the test set, in label order.

    Returns:
        int64 (len(target),), column of the head for each label of the test set.

    Raises:
        DataError: the head lacks classes of the test set.
    """
    position = {key: column for column, key in enumerate(trained)}
    missing = [key for key in target if key not in position]
    if missing:
        raise DataError(
            f"the head was trained on {len(position)} classes and lacks {len(missing)} of the {len(target)} classes of "
            f"the test set: {shown(missing, _SHOWN)}. A KD head and a linear CE head know only the classes they were "
            "trained on: evaluate on a set of those, or train on all of them. Prompts without a KD head can be built "
            "for new names: evaluate the same run as such a method (--trainer CoOp --model-dir THE_RUN)."
        )
    import torch  # here: reading data sets does without

    return torch.tensor([position[key] for key in target], dtype=torch.int64)
