"""Photographs for the decoding benchmark: generated ones or a folder's; and the error of decoding them smaller."""

import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from tabulate import tabulate

from dho_plugin.engine.data import Datum
from dho_plugin.engine.views import Preprocess, View, apply_view

GAPS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)


class Kind(NamedTuple):
    """Generated photographs: size, JPEG quality, and grain that gives files of a usual size."""

    width: int
    height: int
    quality: int
    grain: float


# ImageNet's images of 500x375 have about 110 KB, a telephone's of 12 megapixels 3 to 4 MB.
KINDS = {
    "500x375 (ImageNet)": Kind(500, 375, 95, 3.0),
    "1000x750": Kind(1000, 750, 90, 3.0),
    "2048x1536": Kind(2048, 1536, 90, 2.0),
    "4000x3000": Kind(4000, 3000, 90, 1.5),
}
OWN = tuple(KINDS)[1:]


def photograph(width: int, height: int, grain: float, seed: int) -> Image.Image:
    """Return something like a photograph: a 1/f spectrum, edges of objects, lines, and grain.

    Larger pictures are mirrored tiles of up to 1024 pixels; a decoder works on 8 or 16 at a time.
    """
    rng, w, h = np.random.default_rng(seed), min(width, 1024), min(height, 1024)
    pixels = np.full((2 * h, 2 * w, 3), 120, dtype=np.float32)
    for cells in (2 ** np.arange(1, 11)).tolist():  # equal contrast in each octave
        coarse = rng.normal(0, 10, (cells, cells, 1)) + rng.normal(0, 3, (cells, cells, 3))
        layers = [Image.fromarray(layer.astype(np.float32)) for layer in coarse.transpose(2, 0, 1)]
        pixels += np.stack([np.asarray(layer.resize((2 * w, 2 * h), 3)) for layer in layers], axis=-1)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    _draw_objects(image, rng)
    pixels = np.asarray(image.resize((w, h), Image.Resampling.LANCZOS)) + rng.normal(0, grain, (h, w, 1))
    pixels = np.pad(pixels, ((0, height - h), (0, width - w), (0, 0)), mode="symmetric")
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _draw_objects(image: Image.Image, rng: np.random.Generator) -> None:
    pen, (width, height) = ImageDraw.Draw(image), image.size
    for _ in range(15):
        x, y, radius = rng.integers(0, width), rng.integers(0, height), rng.integers(10, 160)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tuple(rng.integers(0, 256, 3).tolist()))
        ends = (x, y, int(rng.integers(0, width)), int(rng.integers(0, height)))
        pen.line(ends, fill=tuple(rng.integers(0, 256, 3).tolist()), width=int(rng.integers(2, 9)))


def generated(folder: Path, count: int) -> dict[str, list[Datum]]:
    """Write `count` photographs of each kind, and return them by kind."""
    found = {}
    for title, kind in KINDS.items():
        found[title] = []
        for number in range(count):
            path = folder / f"{kind.width}_{number}.jpg"
            photograph(kind.width, kind.height, kind.grain, number).save(path, quality=kind.quality)
            found[title].append(Datum(str(path), 0, index=number))
    return found


def listed(folder: Path, count: int) -> dict[str, list[Datum]]:
    """Return up to `count` JPEGs of a folder, spread over it."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg"))
    if not paths:
        raise SystemExit(f"--images {folder}: no .jpg or .jpeg file in it")
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)]
    return {folder.name: [Datum(str(path), 0, index=number) for number, path in enumerate(chosen)]}


def _jpegs(folder: Path | None, count: int) -> Iterator[tuple[str, Image.Image | None, bytes]]:
    """Yield what a JPEG is, the picture before compression where it is known, and the file's content."""
    if folder is not None:
        for item in next(iter(listed(folder, count).values())):
            yield folder.name, None, Path(item.impath).read_bytes()
        return
    for number in range(count):
        picture = photograph(2048, 1536, 2.0, number)
        for quality, chroma in ((75, "4:2:0"), (90, "4:2:0"), (95, "4:4:4")):
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=quality, subsampling=chroma)
            yield f"quality {quality}, {chroma}", picture, buffer.getvalue()


def _decoded(content: bytes, scale: int) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    image.draft("RGB", (image.width // scale, image.height // scale))
    return image.convert("RGB")


def _views(size: tuple[int, int], scale: int, gap: float, side: int, rng: np.random.Generator) -> list[View]:
    """Return views that have just the gap at this scale, the worst case; none where the image is too small."""
    side = int(np.ceil(gap * scale * side))
    if side > min(size):
        return []
    corners = [(int(rng.integers(size[0] - side + 1)), int(rng.integers(size[1] - side + 1))) for _ in range(4)]
    return [View(*corner, side, side, False) for corner in corners]


def error_rows(folder: Path | None, count: int, size: int) -> list[dict]:
    """Compare views of smaller decoded JPEGs with the same views of the full size.

    Args:
        folder: JPEGs to take; None generates photographs of 2048x1536.
        count: how many.
        size: side of the model's input in pixels.

    Returns:
        For each kind of JPEG and each gap: mean and largest difference in levels of 255, the share of values that are
        off by more than 2, and the mean difference between the full JPEG and the picture before compression (0 where
        that is not known).
    """
    found: dict[tuple[str, float], list[list[float]]] = {}
    rng = np.random.default_rng(0)
    for kind, picture, content in _jpegs(folder, count):
        images = {scale: _decoded(content, scale) for scale in (1, 2, 4, 8)}
        for gap, scale in itertools.product(GAPS, (2, 4, 8)):
            for view in _views(images[1].size, scale, gap, size, rng):
                found.setdefault((kind, gap), []).append(_errors(images, picture, view, scale, size))
    rows = []
    for (kind, gap), errors in sorted(found.items()):
        mean, largest, above, jpeg = np.array(errors).T
        row = {"images": kind, "gap": gap, "views": len(errors), "mean": float(mean.mean())}
        row |= {"largest": float(largest.max()), "share above 2": float(above.mean())}
        rows.append(row | {"JPEG itself": float(jpeg.mean())})
    return rows


def _errors(
    images: dict[int, Image.Image], picture: Image.Image | None, view: View, scale: int, size: int
) -> list[float]:
    pre = Preprocess(size, (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
    full = apply_view(images[1], view, pre)
    off = (apply_view(images[scale], view, pre, scale) - full).abs()
    jpeg = (apply_view(picture or images[1], view, pre) - full).abs()
    return [off.mean().item(), off.max().item(), (off > 2.5).float().mean().item(), jpeg.mean().item()]


def error_table(rows: list[dict]) -> str:
    """Return the errors as a table."""
    return tabulate(rows, "keys", "github", floatfmt=("", "g", "d", ".2f", ".0f", ".4f", ".2f"))
