"""The image sets of the mini world: what they hold and where they lie on disk. Fixed before any result was seen."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from json import loads

import numpy as np

from dho_plugin.data.mini.hashing import uniform
from dho_plugin.data.mini.params import Params, sample
from dho_plugin.data.mini.world import A_LABELS, CLASSES, PHOTO, R_LABELS, SKETCH, STYLES, shapes_and_patterns

_ALL = tuple(range(len(CLASSES)))
_RENDITION_STREAM = 77


@dataclass(frozen=True)
class ImageSet:
    """A set of images with the same number a class.

    Attributes:
        name: how errors, the progress bar and `generate(sets=...)` call it.
        folder: its place below the root.
        seed: seed of its images.
        preset: ranges of its photos' nuisances.
        style: "photo", "sketch" or "rendition" (one of the five other styles, drawn for each image).
        labels: its classes.
        per_class: images drawn a class.
        floor: the fewest images a class in a reduced world.
        numbered: class folders are named by label instead of wnid, as ImageNetV2's.
        filtered: only the images that `adversarial.json` lists are kept.
    """

    name: str
    folder: str
    seed: int
    preset: str = "photo"
    style: str = "photo"
    labels: tuple[int, ...] = _ALL
    per_class: int = 20
    floor: int = 1
    numbered: bool = False
    filtered: bool = False

    def class_folder(self, label: int) -> str:
        """Return the name of the folder of a class."""
        return str(label) if self.numbered else CLASSES[label].wnid

    def label_of(self, index: np.ndarray) -> np.ndarray:
        """Return the labels, (N,) int64, of image numbers (N,)."""
        return np.array(self.labels)[np.asarray(index) % len(self.labels)]

    def parameters(self, index: np.ndarray) -> Params:
        """Draw the rendering parameters of image numbers (N,)."""
        shape, pattern = shapes_and_patterns(self.label_of(index))
        return sample(self.seed, index, shape, pattern, self._styles(index), self.preset)

    def _styles(self, index: np.ndarray) -> np.ndarray:
        if self.style == "rendition":
            other = len(STYLES) - 2
            return 2 + (uniform(self.seed + _RENDITION_STREAM, index, 1) * other).astype(np.int64)
        return np.full(len(index), {"photo": PHOTO, "sketch": SKETCH}[self.style])

    def indices(self, fraction: float = 1.0) -> np.ndarray:
        """Return the numbers of the images that the set holds, (N,) int64, ascending.

        Args:
            fraction: share of the images a class, for a smaller world; at least `floor` a class stay.
        """
        kept = adversarial_indices() if self.filtered else np.arange(self.per_class * len(self.labels))
        labels, chosen = self.label_of(kept), []
        for label in self.labels:
            mine = kept[labels == label]
            chosen.append(mine[: max(self.floor, round(fraction * len(mine)))])
        return np.sort(np.concatenate(chosen))


_V2 = "imagenetv2/imagenetv2-matched-frequency-format-val"
_A, _R = "imagenet-adversarial/imagenet-a", "imagenet-rendition/imagenet-r"
SETS = (
    ImageSet("train", "imagenet/images/train", seed=11, per_class=148, floor=20),
    ImageSet("val", "imagenet/images/val", seed=13, per_class=30),
    ImageSet("imagenetv2", _V2, seed=14, preset="v2", numbered=True),
    ImageSet("imagenet_sketch", "imagenet-sketch/images", seed=15, style="sketch"),
    ImageSet("imagenet_a", _A, seed=17, preset="hard", labels=A_LABELS, per_class=150, filtered=True),
    ImageSet("imagenet_r", _R, seed=16, style="rendition", labels=R_LABELS, per_class=50),
)
SET_BY_NAME = {s.name: s for s in SETS}


@cache
def adversarial_indices() -> np.ndarray:
    """Return the numbers, (N,) int64, of the hard photos that the reference classifier gets wrong.

    They ship with the package, so that generating the world needs no training; `reference.py` makes them again.
    """
    return np.array(loads((files(__package__) / "adversarial.json").read_text())["indices"])
