"""Our own trainers inside a host: its command line, config and data sets, our models and loop."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import dho_plugin.data.fine_grained
import dho_plugin.data.imagenet
import dho_plugin.trainers  # noqa: F401 (all fill the registries)
from dho_plugin.data.folders import read_classnames
from dho_plugin.engine.config import flatten, get_cfg_default
from dho_plugin.engine.data import ClassInfo, DatasetBase, Datum, ImageList
from dho_plugin.engine.registry import DATASET_REGISTRY, TRAINER_REGISTRY
from dho_plugin.errors import ConfigError, DataError
from dho_plugin.hosts.config import require_dho
from dho_plugin.hosts.data import all_training_images, class_keys
from dho_plugin.hosts.protocol import dassl, host_weights
from dho_plugin.train import check_output, draw_seed

# What only our own data sets read.
OURS_ONLY = ("PREFIX", "NUM_VAL_SHOTS", "LABELED_PERCENT", "CSV", "TEST_SETS")


def own_cfg(host_cfg):
    """Return our config with a host's values where both have a key, frozen.

    Raises:
        ConfigError: TRAINER.DHO is missing, or a key of DATASET that only our own data sets read is set.
    """
    require_dho(host_cfg)
    cfg = get_cfg_default()
    known = dict(flatten(cfg))
    for key, value in flatten(host_cfg):
        if key in known:
            *nodes, name = key.split(".")
            reduce(getitem, nodes, cfg)[name] = value
    for key in OURS_ONLY:
        if cfg.DATASET[key] not in ("", (), 0, -1):  # -1: all validation images, which hosts have anyway
            raise ConfigError(f"DATASET.{key} is {cfg.DATASET[key]!r}: a host's data sets do not know it; leave it out")
    node = cfg.MODEL.BACKBONE
    if not node.CKPT and not node.TAG and os.path.isfile(found := host_weights(node.NAME)):
        node.CKPT = found
    if cfg.SEED < 0:
        cfg.SEED = draw_seed(cfg.OUTPUT_DIR)
    cfg.freeze()
    return cfg


class HostDataset(DatasetBase):
    """A host's data set, read through its DATASET_REGISTRY, in our terms.

    Args:
        cfg: our config (unused: the host's says what is read).
        host_cfg: the host's.
        name: under which the host's registry knows it.
        test_name: what results call its test images.
    """

    def __init__(self, cfg, host_cfg, name: str, test_name: str):
        self.test_name = test_name
        host_cfg = host_cfg.clone()
        host_cfg.defrost()
        host_cfg.DATASET.NAME = name
        try:
            data = dassl("dassl.data.datasets").build_dataset(host_cfg)
        except OSError as error:  # hosts open what is not there
            raise DataError(f"{name}: {error}") from error
        classes = _classes(data, Path(host_cfg.DATASET.ROOT))
        test, tested = data.test, {item.impath for item in data.test}
        val = [item for item in data.val or [] if item.impath not in tested]
        if any(item.impath in tested for item in data.train_x):
            self.no_training = "Its images are test images: train on another set and evaluate on this one."
            labeled, everything = [], []
        else:
            labeled, everything = data.train_x, all_training_images(host_cfg, data, held_out=[*test, *val])
        self.no_validation = "" if val else "The host's validation images of this set are its test images."
        number = {path: index for index, path in enumerate(_order(everything))}
        own = partial(_images, number)
        pool = own(everything[len(labeled) :])
        super().__init__(own(labeled), pool, own(val), own(test), classes=classes)


def _order(items: Sequence[Any]) -> list[str]:
    return [item.impath for item in sorted(items, key=lambda item: (item.label, item.impath))]


def _images(number: dict[str, int], items: Sequence[Any]) -> ImageList:
    """Return a host's images with their place in the full listing, which the views are keyed by."""
    place = number if items and items[0].impath in number else {p: i for i, p in enumerate(_order(items))}
    return ImageList.of([Datum(i.impath, i.label, i.domain, i.classname, place[i.impath]) for i in items])


def _classes(data: Any, root: Path) -> list[ClassInfo]:
    """Return the classes; the keys of ImageNetV2, whose folders are numbers, are ImageNet's sorted wnids."""
    keys = class_keys(data.train_x, data.classnames)
    if keys == [str(number) for number in range(len(keys))]:
        home = Path(getattr(data, "dataset_dir", root))
        wnids = sorted(read_classnames(home / "classnames.txt", root / "imagenet" / "classnames.txt"))
        if len(wnids) != len(keys):
            raise DataError(f"{home} has {len(keys)} numbered class folders, its classnames.txt {len(wnids)} classes")
        keys = wnids
    return [ClassInfo(key, name) for key, name in zip(keys, data.classnames, strict=True)]


def read_hosts_data(host_cfg) -> None:
    """Let our registry of data sets answer with the host's, for every name that the host knows."""
    ours = set(DATASET_REGISTRY.registered_names())
    for name in dassl("dassl.data.datasets").DATASET_REGISTRY.registered_names():
        known = DATASET_REGISTRY.get(name) if name in ours else None
        read = partial(HostDataset, host_cfg=host_cfg, name=name, test_name=getattr(known, "test_name", name.lower()))
        read.__name__, read.test_name = name, getattr(known, "test_name", name.lower())
        DATASET_REGISTRY.register(read, force=True)


class InHost:
    """One of our trainers as a host builds it: from the host's config and data sets.

    Args:
        cfg: the host's frozen config.
    """

    def __init__(self, cfg):
        own = own_cfg(cfg)
        read_hosts_data(cfg)
        super().__init__(own)

    def before_train(self) -> None:
        """Check that the output folder is new or of this run and all test sets have known names, then prepare training.

        Raises:
            ConfigError: it holds a run of another configuration, or a name is unknown.
        """
        check_output(self.cfg)
        for name in self.cfg.TEST.SHIFTED:
            DATASET_REGISTRY.get(name)
        super().before_train()

    def load_model(self, directory: str | Path, epoch: int | None = None, *, train_state: bool = False) -> dict:
        """Load a run; for evaluation also the alpha and beta that it chose on its validation images."""
        meta = super().load_model(directory, epoch, train_state=train_state)
        if directory and not train_state:
            self.take_over_mixing(str(directory))
        return meta


def own_trainers() -> dict[str, type]:
    """Return our trainers as a host builds them, by name."""
    names = TRAINER_REGISTRY.registered_names()
    return {name: type(name, (InHost, TRAINER_REGISTRY.get(name)), {"__doc__": f"{name} in a host."}) for name in names}
