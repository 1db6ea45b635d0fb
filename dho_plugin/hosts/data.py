"""What DHO needs of a host's data: the unlabeled images, the same view for the teacher, the classes' keys."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dho_plugin.engine.views import Preprocess
from dho_plugin.errors import ConfigError, DataError
from dho_plugin.hosts.protocol import dassl

TEACHER_KEY = "img2"  # under which Dassl's wrapper stores what the second of two transforms returns


def all_training_images(cfg, dataset: Any, held_out: Sequence[Any] | None = None) -> list:
    """Return D(l) and D(u) together: every training image of a host's data set, the labeled ones first.

    A host's data sets have no unlabeled images, so the set is built once more with DATASET.NUM_SHOTS -1.

    Args:
        cfg: the host's config.
        dataset: its data set.
        held_out: the images that nothing is learned from; default: the set's test and validation images.

    Raises:
        DataError: the "training" images are the test images, as in ImageNetV2, -Sketch, -A and -R.
    """
    unlabeled = list(dataset.train_u or [])
    if not unlabeled:
        everything = cfg.clone()
        everything.defrost()
        everything.DATASET.NUM_SHOTS = -1
        unlabeled = dassl("dassl.data.datasets").build_dataset(everything).train_x
    labeled = {item.impath for item in dataset.train_x}
    pool = [item for item in unlabeled if item.impath not in labeled]
    held_out = [*(dataset.test or []), *(dataset.val or [])] if held_out is None else held_out
    forbidden = {item.impath for item in held_out}
    if shared := sum(item.impath in forbidden for item in [*dataset.train_x, *pool]):
        raise DataError(
            f"{cfg.DATASET.NAME}: {shared} of its training images are test or validation images, too; nothing is "
            "learned from those. Train on a data set with training images of its own, such as ImageNet"
        )
    print(f"Unlabeled images: {len(pool):,} beside {len(labeled):,} labeled ones")
    return [*dataset.train_x, *pool]


def class_keys(items: Sequence[Any], names: Sequence[str]) -> list[str]:
    """Return a key for each class: the wnid or number that its folder is called, else its name, as our data sets do.

    Where names do not tell the classes apart, any folder that a class has to itself is its key.

    Args:
        items: Dassl's images of all classes, with impath and label.
        names: class names in label order.

    Raises:
        DataError: neither folders nor names tell the classes apart.
    """
    folders: dict[int, set[str]] = {}
    for item in items:
        folders.setdefault(item.label, set()).add(Path(item.impath).parent.name)
    single = [next(iter(found)) for _, found in sorted(folders.items()) if len(found) == 1]
    if len(single) == len(set(single)) == len(names) and (
        len(set(names)) < len(names) or all(re.fullmatch(r"n\d{8}|\d+", folder) for folder in single)
    ):
        return single
    if len(set(names)) == len(names):
        return list(names)
    twice = sorted({name for name in names if list(names).count(name) > 1})
    raise DataError(f"the data set's classes have neither a folder each nor different names: {twice[:3]} stand twice")


class SameView:
    """Two transforms that draw the same random numbers, the student's and the teacher's, as Dassl takes several."""

    def __init__(self, student: Any, teacher: Any):
        self.student, self.teacher = student, teacher
        self._states: tuple = ()

    def pair(self) -> list:
        """Return both, to be called one after the other on an image."""
        return [self._first, self._second]

    def _first(self, image: Any) -> Tensor:
        self._states = _random_states()
        return self.student(image)

    def _second(self, image: Any) -> Tensor:
        after = _random_states()
        _restore(self._states)
        view = self.teacher(image)
        _restore(after)  # what the host draws next must not depend on whether there is a teacher
        return view


def _random_states() -> tuple:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _restore(states: tuple) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])


def show_teacher(cfg, loader: DataLoader, preprocess: Preprocess) -> str:
    """Let a host's training loader also give the teacher's view, where it is not the student's.

    Args:
        cfg: the host's config.
        loader: its `train_loader_x`.
        preprocess: size and normalization of the teacher's images.

    Returns:
        The key of a batch under which the teacher's images are.

    Raises:
        ConfigError: the host shows several views of an image.
    """
    own, wrapper = cfg.INPUT, loader.dataset
    if cfg.DATALOADER.K_TRANSFORMS != 1 or isinstance(wrapper.transform, list | tuple):
        raise ConfigError(
            "the host shows several views of an image (DATALOADER.K_TRANSFORMS or a list of transforms); DHO knows one"
        )
    normalized = "normalize" in own.TRANSFORMS
    student = (tuple(own.SIZE), tuple(own.PIXEL_MEAN), tuple(own.PIXEL_STD), own.INTERPOLATION)
    teacher = ((preprocess.size,) * 2, preprocess.mean, preprocess.std, preprocess.interpolation)
    if student == teacher and normalized:
        return "img"
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.SIZE, cfg.INPUT.INTERPOLATION = teacher[0], teacher[3]
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = list(teacher[1]), list(teacher[2])
    if not normalized:
        cfg.INPUT.TRANSFORMS = (*own.TRANSFORMS, "normalize")
    print(f"The teacher sees the same views with {preprocess.size} pixels:")
    second = dassl("dassl.data.transforms").build_transform(cfg, is_train=True)
    wrapper.transform = SameView(wrapper.transform, second).pair()
    return TEACHER_KEY


def unlabeled_stream(
    cfg, images: Sequence[Any], loader: DataLoader, start_epoch: Callable[[], int] = lambda: 0
) -> Iterator[dict]:
    """Yield batches drawn from the labeled and the unlabeled images together, for ever.

    Args:
        cfg: the host's config: DATALOADER.TRAIN_U, or TRAIN_X where it is SAME_AS_X.
        images: all training images.
        loader: the host's `train_loader_x`, whose transform and workers are used.
        start_epoch: gives the epoch that a run goes on from, when the first batch is drawn: a resumed run does not
            begin the same pass once more.
    """
    node, wrapper = cfg.DATALOADER, loader.dataset
    size = node.TRAIN_X.BATCH_SIZE if node.TRAIN_U.SAME_AS_X else node.TRAIN_U.BATCH_SIZE
    seed = max(cfg.SEED, 0) + 100_003 * start_epoch()
    generator = torch.Generator().manual_seed(seed)  # its own, so that the labeled batches stay the host's
    batches = DataLoader(
        type(wrapper)(cfg, images, transform=wrapper.transform, is_train=True),
        batch_size=min(size, len(images)),
        shuffle=True,
        drop_last=True,
        num_workers=node.NUM_WORKERS,
        pin_memory=loader.pin_memory,
        generator=generator,
    )
    while True:
        yield from batches
