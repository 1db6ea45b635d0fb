"""ImageNet and its four shifted test sets in the layout of CoOp's DATASETS.md.

Under `DATASET.ROOT/DATASET.PREFIX`:

    imagenet/classnames.txt                  lines "n01440764 tench"
    imagenet/images/train/<wnid>/*.JPEG      may be absent at evaluation
    imagenet/images/val/<wnid>/*.JPEG
    imagenetv2/imagenetv2-matched-frequency-format-val/<number>/*
    imagenet-sketch/images/<wnid>/*
    imagenet-adversarial/imagenet-a/<wnid>/*
    imagenet-rendition/imagenet-r/<wnid>/*

A shifted set may have its own classnames.txt beside its image folder; otherwise ImageNet's serves.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from dho_plugin.data.base import SplitDataset
from dho_plugin.data.folders import class_folders, named_classes, read_classnames
from dho_plugin.data.listing import list_images
from dho_plugin.data.subsets import half, keep_classes
from dho_plugin.engine.data import DatasetBase, ImageList
from dho_plugin.engine.registry import DATASET_REGISTRY
from dho_plugin.errors import DataError


def data_root(cfg) -> Path:
    """Return the absolute folder that holds the data sets: `DATASET.ROOT/DATASET.PREFIX`."""
    return Path(os.path.abspath(os.path.expanduser(os.path.join(cfg.DATASET.ROOT, cfg.DATASET.PREFIX))))


@DATASET_REGISTRY.register()
class ImageNet(SplitDataset):
    """ImageNet: shots and the unlabeled pool from images/train, test images from images/val.

    It has no validation images of its own. Where images/train is absent, the set is for evaluation only. Labels follow
    the sorted wnids.

    Args:
        cfg: `DATASET.ROOT` and `PREFIX` are read, and what `SplitDataset` reads.

    Raises:
        DataError: a folder, a class name or images are missing.
    """

    test_name = "val"

    def __init__(self, cfg):
        home = data_root(cfg) / "imagenet"
        train_dir, val_dir = home / "images" / "train", home / "images" / "val"
        self.no_training = f"Looked for {train_dir}; a folder a class (wnid) with its training images must lie there."
        keys = class_folders(val_dir, "a folder a class (wnid) with its validation images")
        classes = named_classes(keys, read_classnames(home / "classnames.txt"), val_dir)
        test, train = list_images(val_dir, keys, classes), ImageList.of([])
        if train_dir.is_dir():
            _require_same(train_dir, class_folders(train_dir, "a folder a class (wnid)"), val_dir, keys)
            train = list_images(train_dir, keys, classes)
        super().__init__(cfg, home, classes, train, test, image_dir=train_dir)


def _require_same(train_dir: Path, train: list[str], val_dir: Path, val: list[str]) -> None:
    if train != val:
        differing = sorted(set(train) ^ set(val))
        raise DataError(
            f"{train_dir} has {len(train)} class folders and {val_dir} has {len(val)}; they must be the same. "
            f"In one of them only: {', '.join(differing[:5])}{', ...' if len(differing) > 5 else ''}"
        )


class _ShiftedSet(DatasetBase):
    """A test set with the classes of ImageNet, or some of them; it never trains anything.

    Args:
        cfg: `DATASET.ROOT`, `PREFIX` and `SUBSAMPLE_CLASSES` are read; of the classes those stay whose wnid is in that
            half of ImageNet's.

    Raises:
        DataError: a folder, a class name or images are missing, or no class is in the half.
    """

    image_dir: ClassVar[tuple[str, str]]
    contents: ClassVar[str] = "a folder a class (wnid) with its images"
    no_training = "It is a test set only: train on ImageNet and evaluate on this set."

    def __init__(self, cfg):
        root, which = data_root(cfg), cfg.DATASET.SUBSAMPLE_CLASSES
        folder, imagenet_names = root.joinpath(*self.image_dir), root / "imagenet" / "classnames.txt"
        found = class_folders(folder, self.contents)
        names = read_classnames(folder.parent / "classnames.txt", imagenet_names)
        folders, keys = self._label_order(folder, found, names)
        classes = named_classes(keys, names, folder)
        kept = range(len(keys)) if which == "all" else _in_half(keys, imagenet_names, which, folder)
        test = keep_classes(list_images(folder, folders, classes), kept, classes)
        super().__init__(test=test, classes=[classes[label] for label in kept])

    def _label_order(self, folder: Path, found: list[str], names: dict[str, str]) -> tuple[list[str], list[str]]:
        """Return the class folders and the wnids, both in label order."""
        return found, found


def _in_half(keys: Sequence[str], imagenet_names: Path, which: str, folder: Path) -> list[int]:
    wnids = sorted(read_classnames(imagenet_names))
    wanted = {wnids[label] for label in half(len(wnids), which)}
    kept = [label for label, key in enumerate(keys) if key in wanted]
    if not kept:
        raise DataError(
            f"{folder}: none of its {len(keys)} classes is in the half DATASET.SUBSAMPLE_CLASSES {which} of the "
            f"{len(wnids)} classes of {imagenet_names}. Leave this set out, or set SUBSAMPLE_CLASSES all"
        )
    return kept


@DATASET_REGISTRY.register()
class ImageNetV2(_ShiftedSet):
    """ImageNetV2, matched frequency: its folders are numbers, the places of the classes in the sorted wnids."""

    test_name = "imagenetv2"
    image_dir = ("imagenetv2", "imagenetv2-matched-frequency-format-val")
    contents = "a folder a class, named by its number (0, 1, ...), with its images"

    def _label_order(self, folder: Path, found: list[str], names: dict[str, str]) -> tuple[list[str], list[str]]:
        numbers = [str(number) for number in range(len(names))]
        if set(found) != set(numbers):
            strange = sorted(set(found) - set(numbers)) or sorted(set(numbers) - set(found))
            raise DataError(
                f"{folder} has {len(found)} class folders; the {len(names)} classes of classnames.txt need exactly the "
                f"folders 0 to {len(names) - 1}. Too many or missing: {', '.join(strange[:5])}"
            )
        return numbers, sorted(names)


@DATASET_REGISTRY.register()
class ImageNetSketch(_ShiftedSet):
    """ImageNet-Sketch: drawings of ImageNet's classes."""

    test_name = "imagenet_sketch"
    image_dir = ("imagenet-sketch", "images")


@DATASET_REGISTRY.register()
class ImageNetA(_ShiftedSet):
    """ImageNet-A: natural adversarial images of 200 of ImageNet's classes."""

    test_name = "imagenet_a"
    image_dir = ("imagenet-adversarial", "imagenet-a")


@DATASET_REGISTRY.register()
class ImageNetR(_ShiftedSet):
    """ImageNet-R: renditions of 200 of ImageNet's classes."""

    test_name = "imagenet_r"
    image_dir = ("imagenet-rendition", "imagenet-r")
