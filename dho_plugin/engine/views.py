"""Replayable views: which part of an image a model sees is a pure function of (seed, image index, view number).

Nothing here keeps a random state, so a view is the same in any process, worker, epoch order or resumed run, and a
teacher's outputs can be stored once and replayed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from dho_plugin.engine.counter import random_bits

CROP_TRIES = 10
_DRAWS_PER_TRY = 4
_VIEW_STREAM = 0


@dataclass(frozen=True)
class Preprocess:
    """How one set of weights wants its pixels; it comes with the loaded CLIP.

    Attributes:
        size: side of the square input in pixels.
        mean: mean of R, G, B on the scale 0..1.
        std: standard deviation of R, G, B on the scale 0..1.
        interpolation: filter of the antialiased resize.
        resize_mode: at evaluation, "shortest" resizes the shorter side and crops the center; "squash" ignores the
            aspect ratio.
        crop_pct: at evaluation, the share of the resized image's shorter side that is seen; timm's weights have one.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash"] = "shortest"
    crop_pct: float = 1.0

    @property
    def resized(self) -> int:
        """Side in pixels that an image is resized to at evaluation, before its center is cut out."""
        return math.floor(self.size / self.crop_pct)


class View(NamedTuple):
    """A crop of the original image, in its integer pixels, and whether it is mirrored."""

    left: int
    top: int
    width: int
    height: int
    flip: bool


@dataclass(frozen=True)
class ViewSpec:
    """Which views a run draws; with an image's index and a view number it fixes a view.

    Attributes:
        seed: seed of all views (`INPUT.VIEW_SEED`), >= 0.
        scale: smallest and largest area of the crop, as a share of the image's (`INPUT.RRCROP_SCALE`).
        ratio: smallest and largest width / height of the crop.
        crop: False takes the central square of the image instead.
        flip: whether every second view is mirrored.
    """

    seed: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    crop: bool = True
    flip: bool = True

    def draw(self, index: int, view: int, width: int, height: int) -> View:
        """Draw one view: `draw_view` with this run's settings."""
        options = {"scale": self.scale, "ratio": self.ratio, "crop": self.crop, "flip": self.flip}
        return draw_view(self.seed, index, view, width, height, **options)


def draw_view(
    seed: int,
    index: int,
    view: int,
    width: int,
    height: int,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    crop: bool = True,
    flip: bool = True,
) -> View:
    """Draw the view with number `view` of one image, by the procedure of torchvision's RandomResizedCrop.

    Args:
        seed: seed of all views of a run (`INPUT.VIEW_SEED`), >= 0.
        index: the image's number in the full listing of its split, >= 0.
        view: which view of this image, 0, 1, 2, ...
        width: width of the image in pixels.
        height: height of the image in pixels.
        scale: smallest and largest area of the crop, as a share of the image's.
        ratio: smallest and largest width / height of the crop.
        crop: False takes the central square of the image instead.
        flip: whether every second view is mirrored.

    Returns:
        The crop in pixels of the image, and the flip.
    """
    bits = random_bits(seed, _VIEW_STREAM, 1 + CROP_TRIES * _DRAWS_PER_TRY, index, view)
    first, *draws = ((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53).tolist()
    # The flip has its own draw, so that it does not depend on how many tries the crop takes.
    mirrored = flip and first < 0.5
    if not crop:
        return View(*_central_box(width, height, (1.0, 1.0)), mirrored)
    return View(*_random_box(draws, width, height, scale, ratio), mirrored)


def _random_box(draws, width, height, scale, ratio) -> tuple[int, int, int, int]:
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for start in range(0, len(draws), _DRAWS_PER_TRY):
        u_area, u_ratio, u_left, u_top = draws[start : start + _DRAWS_PER_TRY]
        area = width * height * (scale[0] + u_area * (scale[1] - scale[0]))
        aspect = math.exp(log_ratio[0] + u_ratio * (log_ratio[1] - log_ratio[0]))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(u_left * (width - w + 1)), int(u_top * (height - h + 1)), w, h
    return _central_box(width, height, ratio)


def _central_box(width: int, height: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """Return the largest central box whose width / height lies within `ratio`."""
    w, h = width, height
    if width / height < min(ratio):
        h = max(1, round(w / min(ratio)))
    elif width / height > max(ratio):
        w = max(1, round(h * max(ratio)))
    return (width - w) // 2, (height - h) // 2, w, h


def apply_view(image: Image.Image, view: View, pre: Preprocess, scale: int = 1) -> torch.Tensor:
    """Cut a view out of an image, resize it with antialiasing, mirror and normalize it.

    Args:
        image: RGB image of the size that the view was drawn for, or decoded smaller.
        view: the crop and flip, in pixels of the original.
        pre: size, filter and normalization of the model that will see it.
        scale: how many times smaller than the original the image was decoded.

    Returns:
        float32 (3, S, S).
    """
    return normalize_pixels([view_pixels(image, view, pre, scale)], pre)[0]


def view_pixels(image: Image.Image, view: View, pre: Preprocess, scale: int = 1) -> np.ndarray:
    """Return the pixels of a view, uint8 (S, S, 3): `apply_view` before the normalization."""
    box = (view.left, view.top, view.left + view.width, view.top + view.height)
    image = _cut(image, box, (pre.size, pre.size), pre, scale)
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if view.flip else image)


def eval_transform(
    image: Image.Image, pre: Preprocess, scale: int = 1, size: tuple[int, int] | None = None
) -> torch.Tensor:
    """Prepare an image for evaluation as CLIP does: resize, center crop, normalize.

    Args:
        image: RGB image.
        pre: size, filter, resize mode and normalization of the model that will see it.
        scale: how many times smaller than the original the image was decoded.
        size: width and height of the original, where the scale is above 1.

    Returns:
        float32 (3, S, S).
    """
    width, height = size or image.size
    shorter = min(width, height)
    side = pre.resized
    resized = (side, side)
    if pre.resize_mode == "shortest":
        resized = (side * width // shorter, side * height // shorter)
    image = _cut(image, (0, 0, width, height), resized, pre, scale)
    return normalize_pixels([np.asarray(F.center_crop(image, [pre.size, pre.size]))], pre)[0]


def possible_reduction(width: int, height: int, size: int, gap: float) -> float:
    """Return how many times smaller a region may be decoded and keep `gap` times the pixels that it is resized to.

    Args:
        width: width of the region in pixels of the original: a view, or the whole image at evaluation.
        height: its height.
        size: side of the model's input in pixels, the largest where several models look at one decoded image.
        gap: `INPUT.JPEG_GAP`; 0 never decodes smaller.

    Returns:
        The limit of the reduction; below 1 where the region is small already.
    """
    return min(width, height) / (gap * size) if gap else 1.0


def _cut(
    image: Image.Image, box: tuple[int, int, int, int], size: tuple[int, int], pre: Preprocess, scale: int
) -> Image.Image:
    """Resize a box (left, top, right, bottom) of the original, of which `image` is a `scale` times smaller copy."""
    left, top, right, bottom = box
    outer = (left // scale, top // scale, -(-right // scale), -(-bottom // scale))
    # The box is kept to the fraction of a pixel: rounded, it would shift the picture, which costs several times the
    # error of the smaller decoding.
    x, y = outer[:2]
    inner = (left / scale - x, top / scale - y, right / scale - x, bottom / scale - y)
    # Crop first: `resize(box=...)` alone would let pixels outside the view bleed into its border.
    if outer != (0, 0, *image.size):
        image = image.crop(outer)
    return image.resize(size, Image.Resampling[pre.interpolation.upper()], box=inner)


def normalize_pixels(pixels: Sequence[np.ndarray], pre: Preprocess) -> torch.Tensor:
    """Return N pictures, uint8 (H, W, 3), as a model wants them, float32 (N, 3, H, W): in 0..1, less mean, over std."""
    images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
    return F.normalize(F.to_dtype(images, torch.float32, scale=True), list(pre.mean), list(pre.std), inplace=True)
