"""The fifteen data sets of the paper (DHO, Table 10): where they lie, how big they are, where to get them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from dho_plugin.errors import ConfigError

LAYOUT = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
OWN = "ImageFolder"
COLUMNS = ("classes", "train", "val", "test")


@dataclass(frozen=True, slots=True)
class Source:
    """One data set of Table 10.

    Attributes:
        name: under which it is registered.
        folder: its folder below `DATASET.ROOT`.
        published: Table 10's numbers of classes and of training, validation and test images, as printed there.
        home: where its images come from.
        section: its section of CoOp's DATASETS.md.
    """

    name: str
    folder: str
    published: tuple[str, str, str, str]
    home: str
    section: str

    @property
    def where(self) -> tuple[str, str]:
        """Where to get the images, and the page that says how to lay them out and has the split files."""
        return self.home, f"{LAYOUT}#{self.section}"


_OXFORD = "https://www.robots.ox.ac.uk/~vgg/data"
SOURCES = (
    Source("ImageNet", "imagenet", ("1,000", "1.28M", "-", "50,000"), "https://image-net.org", "imagenet"),
    Source(
        "ImageNetV2",
        "imagenetv2",
        ("1,000", "-", "-", "10,000"),
        "https://github.com/modestyachts/ImageNetV2",
        "imagenetv2",
    ),
    Source(
        "ImageNetSketch",
        "imagenet-sketch",
        ("1,000", "-", "-", "50,889"),
        "https://github.com/HaohanWang/ImageNet-Sketch",
        "imagenet-sketch",
    ),
    Source(
        "ImageNetA",
        "imagenet-adversarial",
        ("200", "-", "-", "7,500"),
        "https://github.com/hendrycks/natural-adv-examples",
        "imagenet-a",
    ),
    Source(
        "ImageNetR",
        "imagenet-rendition",
        ("200", "-", "-", "30,000"),
        "https://github.com/hendrycks/imagenet-r",
        "imagenet-r",
    ),
    Source(
        "Caltech101",
        "caltech-101",
        ("100", "4,128", "1,649", "2,465"),
        "https://data.caltech.edu/records/mzrjq-6wc02",
        "caltech101",
    ),
    Source("OxfordPets", "oxford_pets", ("37", "2,944", "736", "3,669"), f"{_OXFORD}/pets/", "oxfordpets"),
    Source(
        "StanfordCars",
        "stanford_cars",
        ("196", "6,509", "1,635", "8,041"),
        "https://github.com/pytorch/vision/issues/7545 (its own home page is gone)",
        "stanfordcars",
    ),
    Source(
        "OxfordFlowers", "oxford_flowers", ("102", "4,093", "1,633", "2,463"), f"{_OXFORD}/flowers/102/", "flowers102"
    ),
    Source(
        "Food101",
        "food-101",
        ("101", "50,500", "20,200", "30,300"),
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        "food101",
    ),
    Source(
        "FGVCAircraft", "fgvc_aircraft", ("100", "3,334", "3,333", "3,333"), f"{_OXFORD}/fgvc-aircraft/", "fgvcaircraft"
    ),
    Source(
        "SUN397",
        "sun397",
        ("397", "15,880", "3,970", "19,850"),
        "https://vision.princeton.edu/projects/2010/SUN/ (its archive may be gone: https://github.com/pytorch/vision/issues/9348)",
        "sun397",
    ),
    Source("DescribableTextures", "dtd", ("47", "2,820", "1,128", "1,692"), f"{_OXFORD}/dtd/", "dtd"),
    Source(
        "EuroSAT", "eurosat", ("10", "13,500", "5,400", "8,100"), "https://github.com/phelber/EuroSAT (RGB)", "eurosat"
    ),
    Source(
        "UCF101",
        "ucf101",
        ("101", "7,639", "1,898", "3,783"),
        "https://drive.google.com/file/d/10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O/view (UCF-101-midframes.zip)",
        "ucf101",
    ),
)
BY_NAME = {source.name: source for source in SOURCES}
# What a set is called in config files and in the paper, where that is not its registered name in other letters.
_ALIASES = {"flowers102": "OxfordFlowers", "dtd": "DescribableTextures", "folder": OWN}


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def registered_names(names: Sequence[str] | None) -> list[str]:
    """Return the registered names of data sets, without repetitions.

    Args:
        names: registered names, names of config files (oxford_pets) or the paper's; `folder` is anybody's own; None:
            the fifteen.

    Raises:
        ConfigError: an unknown name; the message says which are close.
    """
    if names is None:
        return list(BY_NAME)
    known = {_plain(name): name for name in (*BY_NAME, OWN)} | _ALIASES
    for name in names:
        if _plain(name) not in known:
            near = difflib.get_close_matches(_plain(name), known, n=2, cutoff=0.6)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ConfigError(f"--sets: unknown data set {name!r}.{hint} Known: {', '.join(BY_NAME)}, folder")
    return list(dict.fromkeys(known[_plain(name)] for name in names))


def as_printed(count: int, published: str) -> str:
    """Write a count as Table 10 prints its own, so that both can be compared: 1,281,167 as "1.28M"."""
    if published.endswith("M"):
        return f"{count / 1e6:.2f}M"
    return f"{count:,}" if count else "-"
