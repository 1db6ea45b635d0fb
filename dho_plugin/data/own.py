"""Somebody's own photos, in folders or in a CSV file, with any number of test sets."""

from collections.abc import Sequence

import numpy as np

from dho_plugin.data.base import SplitDataset
from dho_plugin.data.csv_list import read_csv
from dho_plugin.data.imagenet import data_root
from dho_plugin.data.own_folders import SPLITS, read_folders
from dho_plugin.data.subsets import keep_classes
from dho_plugin.engine.data import ClassInfo, DatasetBase, ImageList
from dho_plugin.engine.registry import DATASET_REGISTRY
from dho_plugin.errors import ConfigError, DataError

RESERVED = (*SPLITS, "validation", "OOD")  # what else has its name among the stored logits, or in a table


class FurtherTestSet(DatasetBase):
    """A test set by name with the trained classes, or some of them: it is scored among its own classes.

    Args:
        name: what results call it.
        images: its images, labels being places in `classes`.
        classes: all classes of its images, and others.
        kept: keys of the classes that count (`DATASET.SUBSAMPLE_CLASSES`); images of others are left out.
    """

    no_training = "It is a test set only: train on the set that it belongs to."

    def __init__(self, name: str, images: ImageList, classes: Sequence[ClassInfo], kept: Sequence[str]):
        self.test_name, kept = name, set(kept)
        own = [label for label in np.unique(images.labels).tolist() if classes[label].key in kept]
        super().__init__(test=keep_classes(images, own, classes), classes=[classes[label] for label in own])


@DATASET_REGISTRY.register()
class ImageFolder(SplitDataset):
    """Own photos below `DATASET.ROOT/DATASET.PREFIX`, in folders or as `DATASET.CSV` lists them; see docs/OWN_DATA.md.

    Where there are no training images, the set is for evaluation only. Where there is no test split, the validation
    split is the test set, as ImageNet's is, and is called "val": nothing is chosen on it.

    Args:
        cfg: read are `TEST.SPLIT` and `NO_TEST`, of `DATASET` `CSV` and `TEST_SETS`, and what `SplitDataset` reads.

    Attributes:
        extra_tests: the further test sets.

    Raises:
        DataError: images, classes or splits are missing or contradict each other; the message says where.
        ConfigError: `DATASET.TEST_SETS` has a name that cannot be one.
    """

    def __init__(self, cfg):
        home, data = data_root(cfg), cfg.DATASET
        check_test_sets(data.TEST_SETS)
        found = read_csv(home / data.CSV, data.TEST_SETS) if data.CSV else read_folders(home, data.TEST_SETS)
        self.no_training = f"{data.CSV or 'train/'} in {home} has none: put them there, or use --eval-only."
        parts = dict(found.parts)
        if "test" not in parts and cfg.TEST.SPLIT == "test" and not cfg.TEST.NO_TEST:
            self.test_name = "val"
            self.no_validation = "Its val split is scored in the place of the test split, which is not there."
            parts = {**parts, "test": _in_place_of_test(parts, str(home)), "val": None}
        none = found.unlabeled.take([])
        train, test = (parts.get(name, none) for name in ("train", "test"))
        unlabeled = found.unlabeled if len(train) else none
        super().__init__(cfg, home, found.classes, train, test, parts.get("val"), unlabeled=unlabeled)
        further = [FurtherTestSet(name, parts[name], found.classes, self.class_keys) for name in data.TEST_SETS]
        self.extra_tests = tuple(extra for extra in further if extra.test)
        for extra in further:
            if not extra.test:
                print(f"{extra.test_name} is left out: it has no image of DATASET.SUBSAMPLE_CLASSES's classes")


def check_test_sets(names: Sequence[str]) -> None:
    """Check that names of further test sets can be folders and columns of a table.

    Raises:
        ConfigError: one cannot, or stands twice.
    """
    for name in names:
        if not isinstance(name, str) or not name or name in RESERVED or name[0] == "." or {*"/\\"} & {*name}:
            raise ConfigError(
                f"DATASET.TEST_SETS has {name!r}; a name stands in quotes, is that of a folder beside train/ and none "
                f"of: {', '.join(RESERVED)}"
            )
    if len(set(names)) < len(names):
        raise ConfigError(f"DATASET.TEST_SETS has a name twice: {', '.join(names)}")


def _in_place_of_test(parts: dict[str, ImageList], where: str) -> ImageList:
    if "val" not in parts:
        raise DataError(
            f"{where}: there are no test images; put some into test/<class>/ (in a CSV: split test), or, to look at "
            "validation images only, set TEST.SPLIT val with DATASET.NUM_VAL_SHOTS above 0 or a val/ folder"
        )
    print(
        f"{where}: there is no test split, so the val split is what is scored (column Val) and nothing is chosen on it;"
        " DATASET.NUM_VAL_SHOTS takes validation images from the training images"
    )
    return parts["val"]
