"""A data set in ImageNet's layout, and two shifted ones of some of its classes, or with numbers for folders."""

import random
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum


def folders_of(home, folder, sort=sorted):
    names = dict(line.split(" ", 1) for line in (home / "imagenet/classnames.txt").read_text().splitlines())
    found = sort(path.name for path in (home / folder).iterdir() if path.is_dir() and path.name[0] != ".")
    keys = sorted(names)
    items = []
    for label, name in enumerate(found):
        classname = names[name] if name in names else names[keys[int(name)]]
        items += [Datum(str(path), label, 0, classname) for path in sorted((home / folder / name).iterdir())]
    return items


@DATASET_REGISTRY.register()
class ImageNet(DatasetBase):
    def __init__(self, cfg):
        home = Path(cfg.DATASET.ROOT)
        train, test = folders_of(home, "imagenet/images/train"), folders_of(home, "imagenet/images/val")
        if cfg.DATASET.NUM_SHOTS > 0:
            draw, by_label = random.Random(cfg.SEED), {}
            for item in train:
                by_label.setdefault(item.label, []).append(item)
            shots = cfg.DATASET.NUM_SHOTS
            train = [item for items in by_label.values() for item in draw.sample(items, min(shots, len(items)))]
        super().__init__(train_x=train, test=test)


@DATASET_REGISTRY.register()
class ImageNetR(DatasetBase):
    def __init__(self, cfg):
        test = folders_of(Path(cfg.DATASET.ROOT), "imagenet-rendition/imagenet-r")
        super().__init__(train_x=test, test=test)


@DATASET_REGISTRY.register()
class ImageNetV2(DatasetBase):
    def __init__(self, cfg):
        folder = "imagenetv2/imagenetv2-matched-frequency-format-val"
        test = folders_of(Path(cfg.DATASET.ROOT), folder, lambda names: sorted(names, key=int))
        super().__init__(train_x=test, test=test)
