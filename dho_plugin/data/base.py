"""What every data set does after listing its images: labeled shots, pool, validation, class subsets."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dho_plugin.data.labeled import labeled_percent
from dho_plugin.data.shots import ShotStore
from dho_plugin.data.splits import Shots, draw_own_val, draw_shots, draw_val, others
from dho_plugin.data.subsets import half, keep_classes
from dho_plugin.engine.data import ClassInfo, DatasetBase, ImageList
from dho_plugin.errors import DataError


class SplitDataset(DatasetBase):
    """A data set whose training images are divided as the config says.

    Labeled are CoOp's NUM_SHOTS a class (drawn, or from split_fewshot/), or LABELED_PERCENT of the images (from a list
    file, or drawn), or all. The pool is all other training images. Validation images are the set's own: NUM_VAL_SHOTS a
    class (-1: all), else with shots the ones that CoOp takes, else all. A set without its own takes NUM_VAL_SHOTS of
    the training images that are not labeled. At the end the half of the classes that SUBSAMPLE_CLASSES names is kept.

    Args:
        cfg: `SEED` and of `DATASET` `NUM_SHOTS`, `NUM_VAL_SHOTS`, `LABELED_PERCENT`, `SHOTS_FROM` and
            `SUBSAMPLE_CLASSES` are read.
        home: the data set's own folder; stored shots lie in its split_fewshot/.
        classes: all its classes, in label order.
        train: all training images; empty where the set is for evaluation only.
        test: all test images.
        val: the data set's own validation images, if it has any.
        image_dir: folder to which stored paths are relative; default `home`.
        unlabeled: further images for the pool whose class nobody knows (label -1).

    Raises:
        DataError: too few images for the shots, stored shots or a list that do not fit, or an empty half.
        ConfigError: there is something to draw and the seed is negative.
    """

    def __init__(
        self,
        cfg,
        home: Path,
        classes: Sequence[ClassInfo],
        train: ImageList,
        test: ImageList,
        val: ImageList | None = None,
        image_dir: Path | None = None,
        unlabeled: ImageList | None = None,
    ):
        own_val = val if val is not None and len(val) else None
        if len(train):
            train_x, train_u, val = _divide(cfg, home, classes, train, own_val, image_dir or home)
        else:
            train_x, train_u, val = train, train, own_val or train
        kept = half(len(classes), cfg.DATASET.SUBSAMPLE_CLASSES)
        parts = [keep_classes(part, kept, classes) for part in (train_x, train_u + (unlabeled or ()), val, test)]
        if len(test) and not parts[-1]:
            raise DataError(
                f"DATASET.SUBSAMPLE_CLASSES {cfg.DATASET.SUBSAMPLE_CLASSES}: none of the {len(test)} test images is of "
                f"these {len(kept)} classes. Set it to all, or add test images"
            )
        super().__init__(*parts, classes=[classes[label] for label in kept])


def _divide(
    cfg, home: Path, classes: Sequence[ClassInfo], train: ImageList, own_val: ImageList | None, image_dir: Path
) -> tuple[ImageList, ImageList, ImageList]:
    """Return the labeled images, the pool and the validation images."""
    data, shots = cfg.DATASET, None
    if data.LABELED_PERCENT > 0:
        shots = Shots(labeled_percent(data.LABELED_PERCENT, home, train, image_dir))
    elif data.NUM_SHOTS > 0:
        store = ShotStore(home, image_dir, classes, data.NUM_SHOTS, cfg.SEED)
        shots = store.shots(train, own_val, data.SHOTS_FROM)
    labeled = np.empty(0, dtype=np.int64) if shots is None else shots.train
    taken = labeled  # what the validation takes of the training images beside these
    if own_val is not None:
        val = own_val.take(_own_val_positions(cfg, train, own_val, shots))
    else:
        taken = draw_val(train, labeled, max(data.NUM_SHOTS, 0), data.NUM_VAL_SHOTS, cfg.SEED)
        val = train.take(taken)
    rest = train.take(others(train, labeled, taken))
    return (rest, rest[:0], val) if shots is None else (train.take(labeled), rest, val)


def _own_val_positions(cfg, train: ImageList, own_val: ImageList, shots: Shots | None) -> np.ndarray:
    data = cfg.DATASET
    if data.NUM_VAL_SHOTS < 0:
        return np.arange(len(own_val))
    if data.NUM_VAL_SHOTS > 0:
        return draw_own_val(train, own_val, data.NUM_SHOTS, data.NUM_VAL_SHOTS, cfg.SEED)
    if shots is not None and shots.val is not None:
        return shots.val
    if shots is not None and data.NUM_SHOTS > 0:  # a stored file that names no validation images
        return draw_shots(train, own_val, data.NUM_SHOTS, cfg.SEED).val
    return np.arange(len(own_val))
