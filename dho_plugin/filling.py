"""What a run stores: features of all training images or of its own, of each view, of each evaluation."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dho_plugin.engine.data import DatasetBase, ImageList
from dho_plugin.engine.feature_fill import fill
from dho_plugin.engine.feature_lookup import Wanted
from dho_plugin.engine.feature_store import FeatureStore
from dho_plugin.engine.image_sets import EvalDataset, ViewDataset
from dho_plugin.engine.registry import DATASET_REGISTRY
from dho_plugin.errors import CacheError
from dho_plugin.models.clip import LoadedCLIP

SHARED = 1.25  # up to so many times a run's images are stored where that makes the store one for other runs, too


class Part(NamedTuple):
    """The features of one encoder for one list of images.

    Attributes:
        title: for messages.
        wanted: what the features are.
        store: where they go.
        dataset: the images, in the order of the store's rows.
        encode: images (B, 3, S, S) -> features (B, D).
    """

    title: str
    wanted: Wanted
    store: FeatureStore
    dataset: ViewDataset | EvalDataset
    encode: Callable[[Tensor], Tensor]


def part(trainer, who: str, name: str, views: int, clip: LoadedCLIP, items: ImageList) -> Part:
    """Return one list of images, and all that is needed to store its features.

    Args:
        trainer: the run's trainer.
        who: "teacher" or "student".
        name: "train", or the name of the images of an evaluation.
        views: number of training views; 0 for an evaluation.
        clip: the encoder.
        items: the images.
    """
    wanted: Wanted = trainer.wanted(who, name, views, clip)
    # In one order, whatever the run's: several runs may make the same store at the same time.
    items = items.take(np.argsort(items.numbers[:, 2], kind="stable"))
    store = wanted.create(items)
    items = items.take(np.argsort(store.rows(wanted.keys(items))))
    dataset = trainer.fill_dataset(clip, items) if views else trainer.eval_dataset(items)

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        with trainer.accelerator.autocast():
            return clip.encode_image(images.to(trainer.device, non_blocking=True))

    return Part(f"{who}, {name}", wanted, store, dataset, encode)


def check_room(parts: Sequence[Part]) -> None:
    """Check that the disk has room for what is missing.

    Raises:
        CacheError: it has not.
    """
    needed = sum(one.store.room_needed(one.wanted.shown) for one in parts)
    folder = parts[0].store.folder if parts else None
    if folder is not None and needed > (free := shutil.disk_usage(folder).free):
        raise CacheError(
            f"{folder.parent}: {size(needed)} are needed and {size(free)} are free. Make room, store "
            "fewer --views, or set DHO_CACHE to a folder on a larger disk"
        )


def fill_part(trainer, one: Part, batch_size: int) -> int:
    """Fill a part, together with other processes, and return how many features this one has stored."""
    options = {"workers": trainer.cfg.DATALOADER.NUM_WORKERS, "pin_memory": trainer.device.type == "cuda"}
    return fill(one.store, one.wanted.shown, one.dataset, one.encode, batch_size=batch_size, title=one.title, **options)


def fill_for_run(trainer, who: str, name: str, views: int, clip: LoadedCLIP, items: ImageList) -> None:
    """Store the features of a run's images before it reads them.

    Where the run shows most of the training images, those of all are stored, as the command does, for other runs.

    Args:
        trainer: the run's trainer.
        who: "teacher" or "student".
        name: "train", or the name of the images of an evaluation.
        views: number of training views; 0 for an evaluation.
        clip: the encoder.
        items: the images.

    Raises:
        CacheError: the disk has too little room; what is complete stays.
    """
    shows = ""
    if views:
        every = whole_training(trainer)
        items = every if len(every) <= SHARED * len(items) else items
        shows = f" (the whole run shows it {trainer.images_shown():,} images)"
    one = part(trainer, who, name, views, clip, items)
    print(f"The {who}'s features ({name}) are stored first, {len(items):,} images x {one.wanted.shown} views{shows}: "
          f"{one.store.folder}")  # fmt: skip
    check_room([one])
    try:
        fill_part(trainer, one, trainer.cfg.DATALOADER.TEST.BATCH_SIZE)
    except OSError as error:
        raise CacheError(
            f"{error}. What is complete stays. Make room and start again, or set DHO_CACHE to a folder on a larger disk"
        ) from error


def whole_config(cfg):
    """Return a run's config with all training images, whatever is labeled, and all classes.

    So one cache serves all shots, seeds, percentages and halves of the classes.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASET.NUM_SHOTS, cfg.DATASET.LABELED_PERCENT, cfg.DATASET.NUM_VAL_SHOTS = -1, 0.0, 0
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    cfg.freeze()
    return cfg


def whole_training(trainer) -> ImageList:
    """Return all training images of a run's data."""
    cfg = whole_config(trainer.cfg)
    whole: DatasetBase = DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
    return whole.train_x + whole.train_u


def whole_parts(trainer) -> tuple[ImageList, dict[str, ImageList]]:
    """Return all training images of a run's data, and the images of its evaluations by the names of their features."""
    cfg = whole_config(trainer.cfg)
    whole: DatasetBase = DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
    # Validation images that are taken from the training images are those of this run's shots.
    parts = {"validation": whole.val if len(whole.val) else trainer.dataset.val}
    parts |= {one.test_name: one.test for one in (whole, *trainer.shifted_sets(cfg), *whole.extra_tests)}
    return whole.train_x + whole.train_u, {name: items for name, items in parts.items() if len(items)}


def size(count: int) -> str:
    """Return a number of bytes as a text."""
    unit = max(0, min(4, (len(str(count)) - 1) // 3))
    return f"{count / 1000**unit:.{2 if unit else 0}f} {('bytes', 'kB', 'MB', 'GB', 'TB')[unit]}"
