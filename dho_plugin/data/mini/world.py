"""What the mini world consists of: its classes, their names and wnids, colours, styles and nuisance presets."""

from dataclasses import dataclass

import numpy as np

from dho_plugin.data.mini.hashing import permutation
from dho_plugin.data.mini.shapes import SHAPE_NAMES

SIZE = 48  # pixels, both sides
PATTERNS = ("solid", "striped", "dotted", "checkered", "ringed")
STYLES = ("photo", "sketch", "cartoon", "painting", "mosaic", "neon", "blueprint")
PHOTO, SKETCH = 0, 1

# Four synonyms a shape. The class names of the task are the first ones: words that the student's captions hardly use.
SYNONYMS = {
    "circle": ("disc", "orb", "roundel", "wheel"),
    "square": ("block", "box", "tile", "quad"),
    "triangle": ("wedge", "delta", "pyramid", "trigon"),
    "pentagon": ("badge", "homeplate", "quin", "pentad"),
    "hexagon": ("hex", "nut", "honeycomb", "sexangle"),
    "diamond": ("rhombus", "lozenge", "kite", "gem"),
    "star": ("asterisk", "pentagram", "estoile", "twinkle"),
    "burst": ("spark", "starburst", "flare", "splash"),
    "heart": ("valentine", "love", "sweetheart", "core"),
    "crescent": ("moon", "lunette", "sickle", "croissant"),
    "cross": ("plus", "crucifix", "swiss", "rood"),
    "arrow": ("pointer", "dart", "vane", "cursor"),
    "house": ("cottage", "hut", "cabin", "shed"),
    "fish": ("trout", "carp", "minnow", "herring"),
    "tree": ("fir", "pine", "spruce", "conifer"),
    "mushroom": ("toadstool", "fungus", "agaric", "champignon"),
    "cup": ("mug", "tankard", "beaker", "stein"),
    "bolt": ("lightning", "zigzag", "flash", "thunder"),
    "flower": ("blossom", "bloom", "daisy", "petal"),
    "gear": ("cog", "sprocket", "cogwheel", "pinion"),
}

COLORS = {
    "red": (0.85, 0.12, 0.12),
    "green": (0.15, 0.62, 0.2),
    "blue": (0.15, 0.3, 0.85),
    "yellow": (0.93, 0.85, 0.15),
    "purple": (0.55, 0.2, 0.7),
    "orange": (0.95, 0.55, 0.1),
    "pink": (0.95, 0.55, 0.7),
    "brown": (0.5, 0.3, 0.15),
    "white": (0.95, 0.95, 0.93),
    "black": (0.08, 0.08, 0.1),
    "gray": (0.5, 0.5, 0.52),
    "cyan": (0.2, 0.8, 0.85),
}


@dataclass(frozen=True)
class MiniClass:
    """One class: a shape with a pattern.

    Attributes:
        shape: index into `SHAPE_NAMES`.
        pattern: index into `PATTERNS`.
        name: the class name, "pattern synonym".
        wnid: the made-up folder name.
    """

    shape: int
    pattern: int
    name: str
    wnid: str


def class_name(shape: int, pattern: int, synonym: int | None = 0) -> str:
    """Return the name of a shape with a pattern, with one of the shape's four synonyms or (None) its common name."""
    common = SHAPE_NAMES[shape]
    return f"{PATTERNS[pattern]} {common if synonym is None else SYNONYMS[common][synonym]}"


def _classes() -> tuple[MiniClass, ...]:
    pairs = [(s, p) for s in range(len(SHAPE_NAMES)) for p in range(len(PATTERNS))]
    # Shuffled, so that the order of wnids is neither that of names nor that of shapes: a mixed-up mapping then shows.
    shuffled = [pairs[k] for k in permutation(seed=5, n=len(pairs))]
    return tuple(MiniClass(s, p, class_name(s, p), f"n99{k + 1:06d}") for k, (s, p) in enumerate(shuffled))


CLASSES = _classes()  # in the order of wnids, which is the order of labels
_SUBSETS = permutation(seed=6, n=len(CLASSES))
R_LABELS = tuple(sorted(int(k) for k in _SUBSETS[:40]))
A_LABELS = tuple(sorted(int(k) for k in _SUBSETS[40:80]))


@dataclass(frozen=True)
class Preset:
    """Ranges of the nuisances of photos: object scale, shift, rotation (degrees), contrast, and so on."""

    scale: tuple[float, float]
    shift: float
    rotation: float
    contrast: tuple[float, float]
    noise: tuple[float, float]
    blur: tuple[float, float]
    occlusion: float
    clutter: float
    texture: tuple[float, float]
    light: tuple[float, float]
    backdrop: float
    faint_sketch: bool = True


PRESETS = {
    # the pretraining corpus
    "web": Preset(
        scale=(0.62, 0.95), shift=0.12, rotation=15, contrast=(0.45, 1.0), noise=(0.0, 0.08), blur=(0.0, 0.8),
        occlusion=0.20, clutter=0.4, texture=(0.0, 0.12), light=(0.0, 0.4), backdrop=0.2, faint_sketch=False,
    ),
    # the task
    "photo": Preset(
        scale=(0.62, 0.92), shift=0.12, rotation=15, contrast=(0.35, 0.95), noise=(0.01, 0.10), blur=(0.0, 1.0),
        occlusion=0.30, clutter=0.5, texture=(0.02, 0.15), light=(0.1, 0.5), backdrop=0.3,
    ),
    # V2: everything a little harder
    "v2": Preset(
        scale=(0.58, 0.90), shift=0.14, rotation=18, contrast=(0.32, 0.92), noise=(0.02, 0.11), blur=(0.05, 1.0),
        occlusion=0.33, clutter=0.55, texture=(0.03, 0.16), light=(0.1, 0.55), backdrop=0.35,
    ),
    # the pool that A is filtered from
    "hard": Preset(
        scale=(0.54, 0.98), shift=0.16, rotation=20, contrast=(0.32, 1.0), noise=(0.0, 0.09), blur=(0.0, 0.8),
        occlusion=0.40, clutter=0.8, texture=(0.04, 0.2), light=(0.1, 0.6), backdrop=0.5,
    ),
}  # fmt: skip


def shapes_and_patterns(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the shape and the pattern, (N,) int64 each, of (N,) labels."""
    pairs = np.array([(c.shape, c.pattern) for c in CLASSES])[labels]
    return pairs[:, 0], pairs[:, 1]
