"""Few-shot splits: which training images are labeled, which validate, and which form the unlabeled pool."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from dho_plugin.engine.data import Datum
from dho_plugin.errors import ConfigError, DataError


class Split(NamedTuple):
    """Three disjoint parts of the training images."""

    train_x: list[Datum]
    train_u: list[Datum]
    val: list[Datum]


def few_shot_split(train: Sequence[Datum], num_shots: int, seed: int, num_val_shots: int = 0) -> Split:
    """Draw labeled shots, then validation shots, of every class; the other images are the unlabeled pool.

    The shots are those that Dassl draws from the same listing after `random.seed(seed)`: one sample a class, classes in
    order of first appearance. The validation shots come after all of them, so they do not change which shots are drawn.

    Args:
        train: all training images.
        num_shots: labeled images a class (`DATASET.NUM_SHOTS`); below 1 all images are labeled and the pool is empty.
        seed: seed of the draw (`SEED`), >= 0.
        num_val_shots: validation images a class (`DATASET.NUM_VAL_SHOTS`).

    Returns:
        The labeled images, the pool in the order of `train`, the validation images.

    Raises:
        DataError: a class has fewer images than the shots that are asked of it.
        ConfigError: there is something to draw and the seed is negative.
    """
    num_shots, num_val_shots = max(num_shots, 0), max(num_val_shots, 0)
    if seed < 0 and num_shots + num_val_shots > 0:
        raise ConfigError(f"SEED: {seed} does not fix a few-shot split; draw a seed >= 0 before the data is read")
    generator = random.Random(seed)
    groups = _by_label(train)
    _check_counts(groups, num_shots, num_val_shots)
    shots = [item for group in groups for item in generator.sample(group, num_shots)]
    rest = _without(train, shots)
    val = [item for group in _by_label(rest) for item in generator.sample(group, num_val_shots)]
    rest = _without(rest, val)
    return Split(shots, rest, val) if num_shots > 0 else Split(rest, [], val)


def _by_label(items: Sequence[Datum]) -> list[list[Datum]]:
    groups: dict[int, list[Datum]] = {}
    for item in items:
        groups.setdefault(item.label, []).append(item)
    return list(groups.values())


def _without(items: Sequence[Datum], taken: Sequence[Datum]) -> list[Datum]:
    paths = {item.impath for item in taken}
    return [item for item in items if item.impath not in paths]


def _check_counts(groups: Sequence[Sequence[Datum]], num_shots: int, num_val_shots: int) -> None:
    asked = f"DATASET.NUM_SHOTS {num_shots}"
    if num_val_shots > 0:
        asked += f" + DATASET.NUM_VAL_SHOTS {num_val_shots}"
    for group in groups:
        if len(group) < num_shots + num_val_shots:
            first = group[0]
            raise DataError(
                f"class {first.classname!r} (label {first.label}, e.g. {first.impath}) has {len(group)} training "
                f"images, fewer than {asked}; ask for at most {min(map(len, groups))} in all, or add images"
            )
