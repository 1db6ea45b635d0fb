"""The ten fine-grained data sets in the layout of CoOp's DATASETS.md.

Under `DATASET.ROOT/DATASET.PREFIX` each has a folder with its images and its split, `split_zhou_<class name>.json`.
Where there is no split file it is made (see `makers`) and stored; FGVCAircraft comes with a split of its own, in text
files.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import ClassVar

from dho_plugin.data import makers
from dho_plugin.data.base import SplitDataset
from dho_plugin.data.folders import HOW_TO
from dho_plugin.data.imagenet import data_root
from dho_plugin.data.zhou import (
    Split,
    class_infos,
    class_names,
    read_split,
    require_first_images,
    require_images,
    to_images,
    without_repeats,
    write_split,
)
from dho_plugin.engine.registry import DATASET_REGISTRY
from dho_plugin.errors import DataError

CALTECH_IGNORED = ("BACKGROUND_Google", "Faces_easy")
CALTECH_NAMES = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}


@dataclass(frozen=True)
class Layout:
    """Where a data set lies and what its split is made of.

    Attributes:
        home: its own folder.
        images: the image folder below it, to which the split's paths are relative.
        split: the split file below `home`; "": there is none, the sources say it all.
        make: makes the split.
        sources: the files that it is made of, below `home`; none: the image folders.
    """

    home: str
    images: str
    split: str
    make: makers.Maker
    sources: tuple[str, ...] = ()


class FineGrained(SplitDataset):
    """A data set with a split into train, val and test; val is CoOp's.

    Args:
        cfg: `DATASET.ROOT` and `PREFIX` are read, and what `SplitDataset` reads.

    Raises:
        DataError: the split, what it is made of, or images are missing or not what they should be.
    """

    layout: ClassVar[Layout]

    def __init__(self, cfg):
        home = data_root(cfg) / self.layout.home
        folder = home / self.layout.images
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; the images of {type(self).__name__} must lie there. {HOW_TO}")
        source = str(home / self.layout.split) if self.layout.split else f"{home} ({', '.join(self.layout.sources)})"
        split = without_repeats(self.find_split(home), source)
        classes = class_infos(class_names(split, source))
        require_first_images(split, folder, source)
        train, val, test = (to_images(part, folder, classes) for part in split)
        super().__init__(cfg, home, classes, train, test, val=val, image_dir=folder)

    def find_split(self, home: Path) -> Split:
        """Read the split; where there is none, make and store it.

        Raises:
            DataError: neither the split nor what it is made of is there, or it is not what it should be.
        """
        layout, path = self.layout, home / self.layout.split
        if layout.split and path.is_file():
            return read_split(path)
        missing = [str(home / name) for name in layout.sources if not (home / name).is_file()]
        if missing:
            made = f"{path}: no such file, and it cannot be made without " if layout.split else "no such file: "
            raise DataError(f"{made}{', '.join(missing)}. {HOW_TO}")
        split = layout.make(home, Random(1))
        if layout.split:
            made = f"the split that is made for {path}"
            class_names(split, made)  # nothing is stored that would be refused when it is read
            require_images(split, home / layout.images, made)
            self.store_split(path, split)
        return split

    def store_split(self, path: Path, split: Split) -> None:
        """Store a split that was just made; a reader that must not write overrides this."""
        write_split(path, split)


@DATASET_REGISTRY.register()
class Caltech101(FineGrained):
    """Caltech101 without its background class: objects and faces, 100 classes."""

    layout = Layout(
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        partial(makers.from_folders, images="101_ObjectCategories", ignored=CALTECH_IGNORED, renamed=CALTECH_NAMES),
    )


@DATASET_REGISTRY.register()
class OxfordPets(FineGrained):
    """OxfordPets: breeds of cats and dogs, 37 classes."""

    layout = Layout("oxford_pets", "images", "split_zhou_OxfordPets.json", makers.pets, makers.PETS)


@DATASET_REGISTRY.register()
class StanfordCars(FineGrained):
    """StanfordCars: cars by make, model and year, 196 classes."""

    layout = Layout("stanford_cars", "", "split_zhou_StanfordCars.json", makers.cars, makers.CARS)


@DATASET_REGISTRY.register()
class OxfordFlowers(FineGrained):
    """Flowers102: flowers, 102 classes."""

    layout = Layout("oxford_flowers", "jpg", "split_zhou_OxfordFlowers.json", makers.flowers, makers.FLOWERS)


@DATASET_REGISTRY.register()
class Food101(FineGrained):
    """Food101: dishes, 101 classes."""

    layout = Layout("food-101", "images", "split_zhou_Food101.json", partial(makers.from_folders, images="images"))


@DATASET_REGISTRY.register()
class FGVCAircraft(FineGrained):
    """FGVCAircraft: variants of aircraft, 100 classes, with the split that it is published with."""

    layout = Layout("fgvc_aircraft", "images", "", makers.aircraft, makers.AIRCRAFT)


@DATASET_REGISTRY.register()
class SUN397(FineGrained):
    """SUN397: scenes, 397 classes."""

    layout = Layout("sun397", "SUN397", "split_zhou_SUN397.json", makers.sun, makers.SUN)


@DATASET_REGISTRY.register()
class DescribableTextures(FineGrained):
    """DTD: textures, 47 classes."""

    layout = Layout(
        "dtd", "images", "split_zhou_DescribableTextures.json", partial(makers.from_folders, images="images")
    )


@DATASET_REGISTRY.register()
class EuroSAT(FineGrained):
    """EuroSAT: land use in satellite photos, 10 classes."""

    layout = Layout(
        "eurosat", "2750", "split_zhou_EuroSAT.json", partial(makers.from_folders, images="2750", renamed=EUROSAT_NAMES)
    )


@DATASET_REGISTRY.register()
class UCF101(FineGrained):
    """UCF101: the middle frames of videos of people's actions, 101 classes."""

    layout = Layout("ucf101", "UCF-101-midframes", "split_zhou_UCF101.json", makers.ucf, makers.UCF)
