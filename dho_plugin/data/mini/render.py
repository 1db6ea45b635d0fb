"""Rendering of the mini world: from parameters to pixels, in batches, each image independent of its batch."""

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from dho_plugin.data.mini.hashing import normal
from dho_plugin.data.mini.params import BANK, Params
from dho_plugin.data.mini.shapes import EXTENT, distance_tables
from dho_plugin.data.mini.world import PATTERNS, SIZE

_PIXEL = 2.0 / SIZE


@functools.cache
def _bank() -> torch.Tensor:
    """White and smooth noise (Gaussian, sigma 4 pixels) of unit variance that wraps around, (2, BANK, BANK) float32."""
    white, rough = (normal(9, np.arange(BANK * BANK), slot).reshape(BANK, BANK) for slot in (1, 3))
    f2 = np.fft.fftfreq(BANK)[:, None] ** 2 + np.fft.rfftfreq(BANK)[None] ** 2
    smooth = np.fft.irfft2(np.fft.rfft2(rough) * np.exp(-2 * (math.pi * 4.0) ** 2 * f2), (BANK, BANK))
    return torch.from_numpy(np.stack([white, smooth / smooth.std()]).astype(np.float32))


@functools.cache
def _tables() -> torch.Tensor:
    return torch.from_numpy(distance_tables())


def _as_tensor(value: np.ndarray) -> torch.Tensor:
    """(N,) numbers become (N, 1, 1), (N, 3) colours (N, 3, 1, 1); floats become float32."""
    tensor = torch.from_numpy(np.ascontiguousarray(value))
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    return tensor[..., None, None]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads would cut a batch at places that depend on its size, and the last bit with them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
@torch.inference_mode()
def render(params: Params) -> np.ndarray:
    """Render a batch of images.

    Args:
        params: what `params.sample` returned for N images.

    Returns:
        (N, SIZE, SIZE, 3) uint8. An image's pixels do not depend on the others in the batch.
    """
    p = SimpleNamespace(**{name: _as_tensor(value) for name, value in params.items()})
    ticks = (torch.arange(SIZE, dtype=torch.float32) + 0.5) / SIZE * 2 - 1
    x, y = ticks.view(1, 1, -1), -ticks.view(1, -1, 1)
    texture = _window(p, 1, 0, 1)
    image = _background(p, x, y, texture)
    for k in range(2):
        _add_clutter(image, p, x, y, k)
    image = _add_object(image, p, x, y, texture)
    _add_bar(image, p, x, y)
    image = _take_photo(image, p, x, y)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _window(p: SimpleNamespace, channel: int, row: int, column: int) -> torch.Tensor:
    """An image's own window of the texture bank, (N, SIZE, SIZE)."""
    steps = torch.arange(SIZE)
    rows, columns = getattr(p, f"window{row}"), getattr(p, f"window{column}")
    return _bank()[channel][rows + steps.view(1, -1, 1), columns + steps.view(1, 1, -1)]


def _signed_distance(shape: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Look (N, SIZE, SIZE) object coordinates up in the tables of (N, 1, 1) shapes."""
    grid = torch.stack([u, -v], -1) / EXTENT
    return F.grid_sample(_tables()[shape[:, 0, 0]][:, None], grid, padding_mode="border", align_corners=False)[:, 0]


def _coverage(distance: torch.Tensor) -> torch.Tensor:
    """How much of a pixel lies inside, from a signed distance in image coordinates."""
    return torch.sigmoid(-distance / _PIXEL * 3)


def _background(p: SimpleNamespace, x, y, texture) -> torch.Tensor:
    """A gradient of two colours with smooth texture and, on some, a large-scale pattern, (N, 3, SIZE, SIZE)."""
    mix = (x * p.gradient_cos + y * p.gradient_sin) * 0.5 + 0.5
    f = 2 * math.pi * p.backdrop_frequency
    q, r = x * p.light_cos + y * p.light_sin, y * p.light_cos - x * p.light_sin
    waves = torch.sin(f * q)
    dots = (torch.cos(f * q) + torch.cos(f * r) - 0.8).clamp(-1, 1)
    kinds = torch.where(p.backdrop_kind == 1, waves * torch.sin(f * r), dots)
    backdrop = torch.where(p.backdrop_kind == 0, waves, kinds) * p.backdrop
    return p.behind1 + (p.behind2 - p.behind1) * mix[:, None] + (texture * p.texture + backdrop)[:, None]


def _rows(p: SimpleNamespace, present: torch.Tensor) -> tuple[torch.Tensor, SimpleNamespace]:
    """The rows where (N, 1, 1) `present` is positive, and the parameters of these rows."""
    rows = torch.nonzero(present[:, 0, 0] > 0)[:, 0]
    return rows, SimpleNamespace(**{name: value[rows] for name, value in vars(p).items()})


def _add_clutter(image, p: SimpleNamespace, x, y, k: int) -> None:
    name = f"clutter{k}"
    rows, s = _rows(p, getattr(p, name))
    left, top, scale = (getattr(s, f"{name}_{part}") for part in ("x", "y", "scale"))
    u, v = ((x - left) / scale).expand(-1, SIZE, -1), ((y - top) / scale).expand(-1, -1, SIZE)
    distance = _signed_distance(getattr(s, f"{name}_shape"), u, v) * scale
    cover = (_coverage(distance) * getattr(s, name))[:, None]
    image[rows] = image[rows] * (1 - cover) + getattr(s, f"{name}_color") * cover


def _add_object(image, p: SimpleNamespace, x, y, texture) -> torch.Tensor:
    xx = x - p.cx + p.warp * 0.6 * texture
    yy = y - p.cy + p.warp * 0.6 * _window(p, 1, 2, 3)
    u = (xx * p.rotation_cos + yy * p.rotation_sin) / (p.scale * p.stretch) * p.mirror
    v = (yy * p.rotation_cos - xx * p.rotation_sin) / p.scale * p.stretch
    distance = _signed_distance(p.shape, u, v) * p.scale
    inside, pattern = _coverage(distance), _pattern(p, u, v)
    mix = torch.sigmoid(pattern * 5)[:, None]
    fill = p.color1 * (1 - mix) + p.color2 * mix
    image = image * (1 - inside[:, None]) + fill * inside[:, None]
    border = torch.exp(-((distance / p.outline_width) ** 2)) * p.outline
    lines = torch.exp(-((pattern / 0.45) ** 2)) * inside * p.ink
    edge = torch.maximum(border, lines)[:, None]
    return image * (1 - edge) + p.outline_color * edge


def _pattern(p: SimpleNamespace, u, v) -> torch.Tensor:
    """The pattern in object coordinates: positive where the second colour is, (N, SIZE, SIZE)."""
    a, b = u * p.grain_cos + v * p.grain_sin, v * p.grain_cos - u * p.grain_sin
    w = 2 * math.pi * 1.75 * p.frequency
    waves = {
        "solid": torch.full_like(a, -3.0),
        "striped": torch.sin(w * a + p.phase),
        "dotted": (torch.cos(w * a + p.phase) + torch.cos(w * b + p.phase) - 0.55) * 0.8,
        "checkered": torch.sin(w * 0.72 * a + p.phase) * torch.sin(w * 0.72 * b + p.phase) * 1.6,
        "ringed": torch.sin(w * 1.05 * torch.sqrt(u * u + v * v + 1e-6) + p.phase),
    }
    out = waves["solid"]
    for k, name in enumerate(PATTERNS):
        out = torch.where(p.pattern == k, waves[name], out)
    return out


def _add_bar(image, p: SimpleNamespace, x, y) -> None:
    rows, s = _rows(p, p.bar)
    across = (x - s.cx) * s.bar_cos + (y - s.cy) * s.bar_sin - s.bar_offset * s.scale
    cover = _coverage(across.abs() - s.bar * s.scale)[:, None]
    image[rows] = image[rows] * (1 - cover) + s.bar_color * cover


def _take_photo(image, p: SimpleNamespace, x, y) -> torch.Tensor:
    """Light from one side, few colours, coarse pixels, blur, exposure and sensor noise."""
    image = image * (1 + p.light * (x * p.light_cos + y * p.light_sin))[:, None]
    rows, s = _rows(p, p.levels)
    levels = s.levels[:, None]
    image[rows] = (image[rows].clamp(0, 1) * levels).round() / levels
    rows, _ = _rows(p, p.pixelated)
    image[rows] = F.avg_pool2d(image[rows], 3).repeat_interleave(3, 2).repeat_interleave(3, 3)
    blurred = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
    image = image + (blurred - image) * p.blur[:, None]
    noise = torch.stack([_window(p, 0, k, k + 1) for k in range(3)], 1)
    return (image - 0.5) * p.gain[:, None] + 0.5 + p.offset[:, None] + p.noise[:, None] * noise
