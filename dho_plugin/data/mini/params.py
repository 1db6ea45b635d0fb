"""The random parameters of the mini world's images: what is where, in which colours, with which nuisances."""

import math

import numpy as np

from dho_plugin.data.mini.hashing import Stream
from dho_plugin.data.mini.shapes import SHAPE_NAMES
from dho_plugin.data.mini.world import COLORS, PHOTO, PRESETS, STYLES, Preset

PALETTE = np.array(list(COLORS.values()))
BANK = 512  # the texture bank is BANK x BANK; an image reads a window of it
_WINDOWS = BANK - 52

Params = dict[str, np.ndarray]


def sample(seed: int, index, shape, pattern, style, preset: str) -> Params:
    """Draw the parameters of a batch of images; each image's depend on its own arguments only.

    Args:
        seed: the set's seed.
        index: (N,) int, the images' numbers in the set.
        shape: (N,) int64, indices into `SHAPE_NAMES`.
        pattern: (N,) int64, indices into `PATTERNS`.
        style: (N,) int64, indices into `STYLES`.
        preset: a name in `PRESETS`; its ranges apply to photos.

    Returns:
        A dict of float64, int64 or bool arrays, (N,) or (N, 3) for colours.
    """
    ranges, draw = PRESETS[preset], Stream(seed, index)
    photo = np.asarray(style) == PHOTO
    p: Params = {"shape": np.asarray(shape), "pattern": np.asarray(pattern), "style": np.asarray(style)}
    _pose(p, draw, photo, ranges)
    _colors(p, draw, photo, ranges)
    _background(p, draw, photo, ranges)
    _camera(p, draw, photo, ranges)
    _occlusion(p, draw, photo, ranges)
    _clutter(p, draw, photo, ranges)
    p |= {f"window{k}": draw.integers(_WINDOWS) for k in range(4)}
    _restyle(p, draw.uniform(), ranges)
    return p


def _turn(p: Params, name: str, angle: np.ndarray) -> None:
    """Store an angle as cosine and sine: float64 here, so that rendering needs no trigonometry on short arrays."""
    p[f"{name}_cos"], p[f"{name}_sin"] = np.cos(angle), np.sin(angle)


def _pose(p: Params, draw: Stream, photo, ranges: Preset) -> None:
    p["scale"] = np.where(photo, draw.uniform(*ranges.scale), draw.uniform(0.6, 0.9))
    shift = np.where(photo, ranges.shift, 0.15)
    p["cx"], p["cy"] = draw.uniform(-1, 1) * shift, draw.uniform(-1, 1) * shift
    _turn(p, "rotation", np.radians(draw.uniform(-1, 1) * np.where(photo, ranges.rotation, 18)))
    p["stretch"] = np.exp(draw.uniform(-0.16, 0.16))
    p["mirror"] = np.where(draw.chance(0.5), -1.0, 1.0)
    p["frequency"], p["phase"] = draw.uniform(0.85, 1.2), draw.angle()
    _turn(p, "grain", draw.uniform(0, math.pi))


def _colors(p: Params, draw: Stream, photo, ranges: Preset) -> None:
    """Two colours of the object, apart in luminance, then moved together by the contrast; one for what lies behind."""
    first = draw.integers(12)
    second = (first + 1 + draw.integers(11)) % 12
    behind = (first + 1 + draw.integers(11)) % 12
    jitter = np.stack([draw.uniform(-0.1, 0.1) for _ in range(3)], 1)
    one, two = np.clip(PALETTE[first] + jitter, 0, 1), PALETTE[second]
    light = one.mean(1)
    too_close = np.abs(light - two.mean(1)) < 0.3
    apart = np.where((light > 0.5)[:, None], two * 0.3, 0.65 + 0.35 * two)
    two = np.where(too_close[:, None], apart, two)
    contrast = np.where(photo, draw.uniform(*ranges.contrast), draw.uniform(0.7, 1.0))
    p["color1"], p["color2"] = one, one + (two - one) * contrast[:, None]
    p["color_index"], p["behind_index"] = first, behind


def _background(p: Params, draw: Stream, photo, ranges: Preset) -> None:
    color = PALETTE[p["behind_index"]] * 0.75 + 0.12
    light = (p["color1"].mean(1) + p["color2"].mean(1)) / 2
    hidden = np.abs(color.mean(1) - light) < 0.12
    apart = np.where((light > 0.5)[:, None], color * 0.45, 0.5 + 0.5 * color)
    p["behind1"] = np.where(hidden[:, None], apart, color)
    p["behind2"] = np.clip(p["behind1"] + np.stack([draw.uniform(-0.25, 0.25) for _ in range(3)], 1), 0, 1)
    _turn(p, "gradient", draw.angle())
    p["texture"] = np.where(photo, draw.uniform(*ranges.texture), 0.0)
    p["backdrop"] = np.where(photo & draw.chance(ranges.backdrop), draw.uniform(0.05, 0.25), 0.0)
    p["backdrop_frequency"], p["backdrop_kind"] = draw.uniform(1.0, 3.0), draw.integers(3)


def _camera(p: Params, draw: Stream, photo, ranges: Preset) -> None:
    n = len(photo)
    p["light"] = np.where(photo, draw.uniform(*ranges.light), 0.0)
    _turn(p, "light", draw.angle())
    p["noise"] = np.where(photo, draw.uniform(*ranges.noise), 0.01)
    p["blur"] = np.where(photo, draw.uniform(*ranges.blur), 0.0)
    p["gain"] = np.where(photo, draw.uniform(0.75, 1.2), 1.0)
    p["offset"] = np.where(photo, draw.uniform(-0.08, 0.08), 0.0)
    p["outline"] = np.where(photo & draw.chance(0.25), 0.7, 0.0)
    p["outline_width"], p["outline_color"] = draw.uniform(0.04, 0.08), np.full((n, 3), 0.05)
    p["ink"], p["warp"], p["levels"], p["pixelated"] = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n, dtype=bool)


def _occlusion(p: Params, draw: Stream, photo, ranges: Preset) -> None:
    """A bar across the object."""
    p["bar"] = np.where(photo & draw.chance(ranges.occlusion), draw.uniform(0.10, 0.26), 0.0)
    _turn(p, "bar", draw.angle())
    p["bar_offset"], p["bar_color"] = draw.uniform(-0.5, 0.5), PALETTE[draw.integers(12)] * 0.8


def _clutter(p: Params, draw: Stream, photo, ranges: Preset) -> None:
    """Up to two small shapes near the border."""
    for k in range(2):
        present = photo & draw.chance(ranges.clutter * 0.6)
        p[f"clutter{k}"] = np.where(present, draw.uniform(0.4, 0.9), 0.0)
        p[f"clutter{k}_shape"] = draw.integers(len(SHAPE_NAMES))
        angle, radius = draw.angle(), draw.uniform(0.75, 1.05)
        p[f"clutter{k}_x"], p[f"clutter{k}_y"] = np.cos(angle) * radius, np.sin(angle) * radius
        p[f"clutter{k}_scale"], p[f"clutter{k}_color"] = draw.uniform(0.16, 0.3), PALETTE[draw.integers(12)]


def _restyle(p: Params, strength: np.ndarray, ranges: Preset) -> None:
    """Change the drawn parameters of images that are not photos, in place."""
    for name, restyle in _RESTYLE.items():
        rows = np.nonzero(p["style"] == STYLES.index(name))[0]
        restyle(p, rows, strength[rows], ranges)


def _sketch(p: Params, rows, strength, ranges: Preset) -> None:
    for name in ("color1", "color2", "behind1", "behind2"):
        p[name][rows] = 0.96
    faint = ranges.faint_sketch
    p["outline"][rows] = (0.35 if faint else 0.6) + 0.4 * strength
    p["ink"][rows] = (0.25 if faint else 0.5) + 0.45 * strength
    p["warp"][rows] = 0.09 if faint else 0.05
    p["outline_width"][rows] = 0.036 if faint else 0.045
    p["noise"][rows] = 0.02 + 0.06 * strength
    p["outline_color"][rows] = 0.15


def _cartoon(p: Params, rows, strength, ranges: Preset) -> None:
    p["outline"][rows], p["outline_width"][rows], p["levels"][rows] = 1.0, 0.09, 3
    p["behind1"][rows] = p["behind1"][rows] * 0.3 + 0.68
    p["behind2"][rows] = p["behind1"][rows]


def _painting(p: Params, rows, strength, ranges: Preset) -> None:
    p["warp"][rows], p["texture"][rows], p["levels"][rows], p["blur"][rows] = 0.10, 0.14, 5, 0.9


def _mosaic(p: Params, rows, strength, ranges: Preset) -> None:
    p["pixelated"][rows], p["noise"][rows] = True, 0.05


def _neon(p: Params, rows, strength, ranges: Preset) -> None:
    p["behind1"][rows] = p["behind2"][rows] = 0.04 + 0.06 * strength[:, None]
    p["outline_color"][rows] = p["color1"][rows] * 0.6 + 0.4
    p["outline"][rows], p["ink"][rows], p["outline_width"][rows], p["blur"][rows] = 1.0, 0.9, 0.07, 0.6
    p["color1"][rows] *= 0.12
    p["color2"][rows] = p["color1"][rows]


def _blueprint(p: Params, rows, strength, ranges: Preset) -> None:
    p["behind1"][rows] = p["behind2"][rows] = (0.1, 0.25, 0.6)
    p["outline_color"][rows], p["outline"][rows], p["outline_width"][rows] = 0.95, 0.9, 0.05
    p["color1"][rows] = p["behind1"][rows]
    p["color2"][rows] = p["behind1"][rows] * 0.4 + 0.55


_RESTYLE = {
    "sketch": _sketch,
    "cartoon": _cartoon,
    "painting": _painting,
    "mosaic": _mosaic,
    "neon": _neon,
    "blueprint": _blueprint,
}
