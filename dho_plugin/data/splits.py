"""Draws over columns of labels: labeled shots and validation shots, the very ones that CoOp draws."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from dho_plugin.engine.data import ImageList
from dho_plugin.errors import ConfigError, DataError

VAL_SHOTS = 4  # CoOp validates on min(NUM_SHOTS, 4) images a class
_SHOWN = 10


class Shots(NamedTuple):
    """Labeled images and the validation images that go with them.

    Attributes:
        train: int64 (n,), positions of the labeled images in the training images, in the order of the draw.
        val: int64 (m,), positions in the data set's own validation images; None where there are none, or where the
            file that names the shots does not say.
    """

    train: np.ndarray
    val: np.ndarray | None = None


def by_label(labels: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the positions of every class, classes in order of first appearance.

    Args:
        labels: int64 (n,), class numbers; below 0 is no class.

    Returns:
        Iterator of int64 arrays, each in rising order.
    """
    order = np.argsort(labels, kind="stable")
    bounds = np.flatnonzero(np.diff(labels[order])) + 1
    groups = [group for group in np.split(order, bounds) if len(group) and labels[group[0]] >= 0]
    return iter(sorted(groups, key=lambda group: group[0]))


def draw(labels: np.ndarray, count: int, generator: random.Random) -> np.ndarray:
    """Draw images of every class, as Dassl's `generate_fewshot_dataset` does.

    One `sample` a class, classes in order of first appearance; a class with fewer images gives all it has, in order.
    Sampling places picks the same images as sampling the list of them.

    Args:
        labels: int64 (n,), class number of each image.
        count: images a class; below 1 draws none.
        generator: is left where Dassl's would be.

    Returns:
        int64 (m,), positions in the order of the draw.
    """
    if count < 1:
        return np.empty(0, dtype=np.int64)
    drawn = [
        group[generator.sample(range(len(group)), count)] if len(group) >= count else group
        for group in by_label(labels)
    ]
    return np.concatenate([np.empty(0, dtype=np.int64), *drawn])


def draw_shots(train: ImageList, own_val: ImageList | None, num_shots: int, seed: int) -> Shots:
    """Draw the shots that CoOp draws from the same listing after `random.seed(seed)`: training, then validation.

    Args:
        train: all training images.
        own_val: the data set's own validation images, if it has any.
        num_shots: labeled images a class (`DATASET.NUM_SHOTS`), >= 1.
        seed: seed of the draw (`SEED`), >= 0.

    Returns:
        The shots; a class with fewer training images gives all it has, and a printed line says so.

    Raises:
        DataError: no class has so many images.
        ConfigError: the seed is negative.
    """
    _say_small_classes(train, num_shots, "DATASET.NUM_SHOTS", "training")
    generator = _generator(seed)
    shots = draw(train.labels, num_shots, generator)
    return Shots(shots, None if own_val is None else draw(own_val.labels, min(num_shots, VAL_SHOTS), generator))


def draw_own_val(train: ImageList, own_val: ImageList, num_shots: int, num_val_shots: int, seed: int) -> np.ndarray:
    """Draw so many images a class of the data set's own validation images, after the training shots.

    Args:
        train: all training images.
        own_val: the data set's own validation images.
        num_shots: `DATASET.NUM_SHOTS`; below 1 nothing is drawn before.
        num_val_shots: validation images a class (`DATASET.NUM_VAL_SHOTS`), >= 1.
        seed: seed of the draw (`SEED`), >= 0.

    Returns:
        int64 (m,), positions in own_val; a class with fewer gives all it has, and a printed line says so.

    Raises:
        ConfigError: the seed is negative.
    """
    _say_small_classes(own_val, num_val_shots, "DATASET.NUM_VAL_SHOTS", "validation", refuse=False)
    return draw(own_val.labels, num_val_shots, _after_shots(train, num_shots, seed))


def draw_val(train: ImageList, labeled: np.ndarray, num_shots: int, num_val_shots: int, seed: int) -> np.ndarray:
    """Draw validation shots from the training images that are not labeled, after the training shots.

    Args:
        train: all training images.
        labeled: int64, positions of the labeled images.
        num_shots: `DATASET.NUM_SHOTS`; below 1 nothing is drawn before.
        num_val_shots: validation images a class (`DATASET.NUM_VAL_SHOTS`); below 1 none are drawn.
        seed: seed of the draw (`SEED`), >= 0.

    Returns:
        int64 (m,), positions in train.

    Raises:
        DataError: a class has too few images left.
        ConfigError: there is something to draw and the seed is negative.
    """
    if num_val_shots < 1:
        return np.empty(0, dtype=np.int64)
    _check_left(train, labeled, num_val_shots)
    rest = np.flatnonzero(others(train, labeled))
    return rest[draw(train.labels[rest], num_val_shots, _after_shots(train, num_shots, seed))]


def others(images: ImageList, *taken: np.ndarray) -> np.ndarray:
    """Return bool (n,): true for the images at none of the taken positions."""
    left = np.ones(len(images), dtype=np.bool_)
    for positions in taken:
        left[positions] = False
    return left


def class_counts(images: ImageList) -> np.ndarray:
    """Count the images of every label from 0 to the largest; images without a class do not count.

    Returns:
        int64 (largest label + 1,).
    """
    return np.bincount(images.labels[images.labels >= 0])


def shown(items: Sequence[str], limit: int = _SHOWN) -> str:
    """Return the first of some items for a message, with an ellipsis where there are more."""
    return ", ".join(items[:limit]) + (", ..." if len(items) > limit else "")


def _generator(seed: int) -> random.Random:
    if seed < 0:
        raise ConfigError(f"SEED: {seed} does not fix a few-shot split; draw a seed >= 0 before the data is read")
    return random.Random(seed)


def _after_shots(train: ImageList, num_shots: int, seed: int) -> random.Random:
    """Return the generator as the training shots leave it, also where a file names the shots."""
    generator = _generator(seed)
    draw(train.labels, num_shots, generator)
    return generator


def _say_small_classes(images: ImageList, count: int, key: str, kind: str, refuse: bool = True) -> None:
    counts = class_counts(images)
    if refuse and count > counts.max(initial=0):
        largest = images[int(np.flatnonzero(images.labels == counts.argmax())[0])]
        raise DataError(
            f"class {largest.classname!r} (label {largest.label}, e.g. {largest.impath}), the largest, has "
            f"{counts.max()} {kind} images, fewer than {key} {count}; ask for at most {counts.max()}, or add images"
        )
    small = np.flatnonzero((counts > 0) & (counts < count))
    if len(small):
        which = shown([f"{images.classnames[label]} ({counts[label]})" for label in small])
        of = f"{len(small)} of {np.count_nonzero(counts)} classes"
        print(f"{key} {count}: {of} have fewer {kind} images and give all they have: {which}")


def _check_left(train: ImageList, labeled: np.ndarray, num_val_shots: int) -> None:
    counts = class_counts(train)
    left = counts - np.bincount(train.labels[labeled], minlength=len(counts))
    lacking = np.flatnonzero((counts > 0) & (left < num_val_shots))
    if not len(lacking):
        return
    first = train[int(np.flatnonzero(np.isin(train.labels, lacking))[0])]
    raise DataError(
        f"class {first.classname!r} (label {first.label}, e.g. {first.impath}) has {counts[first.label]} training "
        f"images, and {left[first.label]} beside the labeled ones, fewer than DATASET.NUM_VAL_SHOTS {num_val_shots}; "
        f"ask for at most {left[counts > 0].min()} validation shots, label fewer, or add images"
    )
