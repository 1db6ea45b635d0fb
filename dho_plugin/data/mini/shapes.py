"""The twenty shapes of the mini world as tables of signed distances, computed exactly from polygons."""

import functools
import math

import numpy as np

EXTENT = 1.4  # a table covers [-EXTENT, EXTENT] in object coordinates; shapes lie within the unit circle
RESOLUTION = 96


def _grid() -> np.ndarray:
    """Return the centres of the table's cells, (RESOLUTION, RESOLUTION, 2), the first row on top (y = +EXTENT)."""
    ticks = ((np.arange(RESOLUTION) + 0.5) / RESOLUTION * 2 - 1) * EXTENT
    return np.stack(np.meshgrid(ticks, -ticks), -1)


def polygon_distance(points: np.ndarray, vertices: np.ndarray) -> np.ndarray:
    """Return the signed Euclidean distance to a simple polygon, negative inside.

    Args:
        points: (..., 2) float64.
        vertices: (V, 2) float64, in either direction, not closed.

    Returns:
        (...) float64.
    """
    a, b = vertices, np.roll(vertices, -1, axis=0)
    squared = np.full(points.shape[:-1], np.inf)
    inside = np.zeros(points.shape[:-1], dtype=bool)
    for (ax, ay), (bx, by) in zip(a, b, strict=True):
        ex, ey, px, py = bx - ax, by - ay, points[..., 0] - ax, points[..., 1] - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        squared = np.minimum(squared, (px - along * ex) ** 2 + (py - along * ey) ** 2)
        if ey != 0:  # a ray to the right crosses this edge
            inside ^= ((py >= 0) != (py >= ey)) & (px < py * ex / ey)
    return np.where(inside, -1.0, 1.0) * np.sqrt(squared)


def _polygon(*vertices: tuple[float, float]) -> np.ndarray:
    return polygon_distance(_grid(), np.array(vertices, dtype=np.float64))


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return _polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _curve(radius, n: int = 180) -> np.ndarray:
    """A closed curve around the centre, radius as a function of the angle from the y axis."""
    t = np.arange(n) * 2 * math.pi / n
    return polygon_distance(_grid(), np.stack([radius(t) * np.sin(t), radius(t) * np.cos(t)], -1))


def _ellipse(cx: float, cy: float, rx: float, ry: float, n: int = 120) -> np.ndarray:
    t = np.arange(n) * 2 * math.pi / n
    return polygon_distance(_grid(), np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], -1))


def _regular(n: int, outer: float, inner: float | None = None, start: float = 90.0) -> np.ndarray:
    """A regular n-gon, or, with an inner radius, a star of n points."""
    radii = [outer] if inner is None else [outer, inner]
    count = n * len(radii)
    angles = [math.radians(start + 360 * k / count) for k in range(count)]
    return _polygon(
        *((radii[k % len(radii)] * math.cos(t), radii[k % len(radii)] * math.sin(t)) for k, t in enumerate(angles))
    )


def _heart() -> np.ndarray:
    t = np.arange(120) * 2 * math.pi / 120
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return polygon_distance(_grid(), np.stack([16 * np.sin(t) ** 3 / 18, (y + 2) / 16.5], -1))


def _gear() -> np.ndarray:
    distance = _ellipse(0, 0, 0.72, 0.72)
    for k in range(8):
        c, s = math.cos(math.pi * k / 4), math.sin(math.pi * k / 4)
        tooth = [(0.6, 0.15), (0.98, 0.13), (0.98, -0.13), (0.6, -0.15)]
        distance = np.minimum(distance, _polygon(*((r * c - w * s, r * s + w * c) for r, w in tooth)))
    return distance


def _tree() -> np.ndarray:
    right = [(0.6, 0.25), (0.3, 0.25), (0.8, -0.5), (0.2, -0.5), (0.2, -0.95)]
    return _polygon((0, 1), *right, *((-x, y) for x, y in reversed(right)))


def _mushroom() -> np.ndarray:
    cap = np.maximum(_ellipse(0, 0.15, 0.92, 0.75), -_rectangle(-1.2, -1.2, 1.2, 0.05))
    return np.minimum(cap, _rectangle(-0.3, -0.9, 0.3, 0.1))


def _cup() -> np.ndarray:
    handle = np.maximum(_ellipse(0.62, 0.05, 0.36, 0.42), -_ellipse(0.62, 0.05, 0.17, 0.22))
    return np.minimum(handle, _polygon((-0.8, 0.75), (0.55, 0.75), (0.42, -0.82), (-0.67, -0.82)))


_ARROW = ((-0.95, 0.3), (0.1, 0.3), (0.1, 0.78), (0.98, 0), (0.1, -0.78), (0.1, -0.3), (-0.95, -0.3))
_HOUSE = ((0, 0.98), (0.92, 0.2), (0.66, 0.2), (0.66, -0.85), (-0.66, -0.85), (-0.66, 0.2), (-0.92, 0.2))
_BOLT = ((0.15, 1), (-0.7, -0.1), (-0.12, -0.1), (-0.3, -1), (0.7, 0.22), (0.08, 0.22), (0.5, 1))

SHAPES = {
    "circle": lambda: _ellipse(0, 0, 0.88, 0.88),
    "square": lambda: _rectangle(-0.76, -0.76, 0.76, 0.76),
    "triangle": lambda: _polygon((0, 0.95), (0.95, -0.72), (-0.95, -0.72)),
    "pentagon": lambda: _regular(5, 0.96),
    "hexagon": lambda: _regular(6, 0.95, start=0.0),
    "diamond": lambda: _polygon((0, 1), (0.68, 0), (0, -1), (-0.68, 0)),
    "star": lambda: _regular(5, 0.98, 0.42),
    "burst": lambda: _regular(8, 0.98, 0.58),
    "heart": _heart,
    "crescent": lambda: np.maximum(_ellipse(-0.05, 0, 0.92, 0.92), -_ellipse(0.42, 0.1, 0.72, 0.74)),
    "cross": lambda: np.minimum(_rectangle(-0.32, -0.92, 0.32, 0.92), _rectangle(-0.92, -0.32, 0.92, 0.32)),
    "arrow": lambda: _polygon(*_ARROW),
    "house": lambda: _polygon(*_HOUSE),
    "fish": lambda: np.minimum(_ellipse(0.2, 0, 0.76, 0.55), _polygon((-0.35, 0), (-0.98, 0.58), (-0.98, -0.58))),
    "tree": _tree,
    "mushroom": _mushroom,
    "cup": _cup,
    "bolt": lambda: _polygon(*_BOLT),
    "flower": lambda: _curve(lambda t: 0.68 + 0.26 * np.cos(5 * t)),
    "gear": _gear,
}
SHAPE_NAMES = tuple(SHAPES)


@functools.cache
def distance_tables() -> np.ndarray:
    """Return the signed distances of all shapes, (20, RESOLUTION, RESOLUTION) float32, negative inside."""
    return np.stack([shape() for shape in SHAPES.values()]).astype(np.float32)
