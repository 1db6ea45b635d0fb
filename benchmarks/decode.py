"""How fast images are read and prepared, against Pillow and torchvision in the plain way; and how exactly.

The plain way is what most training code does: `Image.open(path).convert("RGB")`, then torchvision's crop, resize,
ToTensor and Normalize. All ways take the same images and views and take turns on each image. What is measured is the
CPU time of one thread, so that other programs on the machine matter little.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from photographs import OWN, error_rows, error_table, generated, listed
from PIL import Image
from tabulate import tabulate
from torchvision import transforms as T
from torchvision.transforms import functional as plain

from dho_plugin.engine.config import get_cfg_default
from dho_plugin.engine.data import Datum
from dho_plugin.engine.decode import ImageFile
from dho_plugin.engine.files import write_json
from dho_plugin.engine.image_sets import EvalDataset, ViewDataset
from dho_plugin.engine.views import Preprocess, ViewSpec, normalize_pixels, possible_reduction

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
STUDENT, TEACHER = Preprocess(224, MEAN, STD), Preprocess(336, MEAN, STD)
VIEWS = ViewSpec(seed=1)
BICUBIC = T.InterpolationMode.BICUBIC


def _open(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def plain_view(items: list[Datum], *models: Preprocess) -> Callable[[int, int], object]:
    """Return the plain way to a training view, with a decoding for each model."""

    def prepare(position: int, view: int) -> list[torch.Tensor]:
        out = []
        for pre in models:
            image = _open(items[position].impath)
            box = VIEWS.draw(items[position].index, view, *image.size)
            size = [pre.size, pre.size]
            image = plain.resized_crop(image, box.top, box.left, box.height, box.width, size, BICUBIC)
            tensor = plain.to_tensor(plain.hflip(image) if box.flip else image)
            out.append(plain.normalize(tensor, MEAN, STD))
        return out

    return prepare


def plain_eval(items: list[Datum], pre: Preprocess) -> Callable[[int, int], object]:
    """Return the plain way to an image for evaluation: CLIP's transform."""
    steps = [T.Resize(pre.size, BICUBIC), T.CenterCrop(pre.size), T.ToTensor(), T.Normalize(MEAN, STD)]
    clip = T.Compose(steps)
    return lambda position, _: clip(_open(items[position].impath))


def ways(items: list[Datum], case: str, gap: float) -> dict[str, Callable[[int, int], object]]:
    """Return the ways to prepare an image by name: the plain one first, ours at full size, ours with the gap."""
    pre = STUDENT if "224" in case else TEACHER
    models = (STUDENT, TEACHER) if "+" in case else (pre,)
    evaluation = case.startswith("evaluation")
    named: dict[str, Callable] = {"plain": plain_eval(items, pre) if evaluation else plain_view(items, *models)}
    for name, g in (("full size", 0.0), (f"gap {gap:g}", gap)):
        if evaluation:
            data = EvalDataset(items, pre, jpeg_gap=g)
            named[name] = lambda position, _, data=data: data[position]
        else:
            data = ViewDataset(items, *models, views=VIEWS, jpeg_gap=g)
            named[name] = lambda position, view, data=data: data[position, view]
    return named


CASES = ("view 224", "view 336", "views 224 + 336", "evaluation 224", "evaluation 336")


def seconds_each(named: dict[str, Callable[[int, int], object]], count: int, seconds: float) -> dict[str, float]:
    """Return each way's CPU seconds an image; the ways take turns on every image, in changing order."""
    spent, rounds, names = dict.fromkeys(named, 0.0), 0, list(named)
    for name in names:
        named[name](0, 0)  # the first call loads and fills caches
    start = time.perf_counter()
    while rounds < len(names) or time.perf_counter() - start < seconds:
        names.append(names.pop(0))
        for name in names:
            before = time.thread_time()
            named[name](rounds % count, rounds)
            spent[name] += time.thread_time() - before
        rounds += 1
    return {name: value / rounds for name, value in spent.items()}


def speed(images: dict[str, list[Datum]], gap: float, seconds: float) -> list[dict]:
    """Measure every case on every kind of image; the kinds of own photographs are also taken together."""
    rows, share = [], seconds / (len(images) * len(CASES))
    for case in CASES:
        taken = {title: seconds_each(ways(items, case, gap), len(items), share) for title, items in images.items()}
        if set(OWN) <= set(taken):
            mixed = {name: float(np.mean([taken[t][name] for t in OWN])) for name in taken[OWN[0]]}
            taken["mix of the three"] = mixed
        rows += [{"case": case, "images": title, "seconds": each} for title, each in taken.items()]
    return rows


def parts(images: dict[str, list[Datum]], gap: float) -> list[dict]:
    """Measure which share of an evaluation at 224 each step takes."""
    rows, square = [], Image.new("RGB", (224, 224))
    for (title, items), g in itertools.product(images.items(), (0.0, gap)):
        data = EvalDataset(items, STUDENT, jpeg_gap=g)

        def decode(position: int, _: int, items=items, g=g) -> None:
            file = ImageFile(items[position].impath)
            file.decode(possible_reduction(*file.size, STUDENT.size, g))

        steps = {
            "all": lambda i, _, data=data: data[i],
            "decode": decode,
            "norm": lambda *_: normalize_pixels([np.asarray(square)], STUDENT)[0],
        }
        each = seconds_each(steps, len(items), 0.4)
        each["resize"] = each["all"] - each["decode"] - each["norm"]
        rows.append({"images": title, "gap": g, "seconds": each})
    return rows


def speed_table(rows: list[dict], gap: float) -> str:
    """Return images per second and core, and how many times faster than the plain way."""
    ours = f"gap {gap:g}"
    lines = []
    for row in rows:
        each = row["seconds"]
        rates = [1 / each[name] for name in ("plain", "full size", ours)]
        lines.append([row["case"], row["images"], *rates, rates[1] / rates[0], rates[2] / rates[0]])
    names = ["", "images", "plain /s", "full size /s", f"{ours} /s", "full size / plain", f"{ours} / plain"]
    return tabulate(lines, names, floatfmt=("", "", ".0f", ".0f", ".0f", ".2f", ".2f"), tablefmt="github")


def parts_table(rows: list[dict]) -> str:
    """Return the steps' shares in percent."""
    lines = []
    for row in rows:
        each = row["seconds"]
        shares = [100 * each[name] / each["all"] for name in ("decode", "resize", "norm")]
        lines.append([row["images"], f"{row['gap']:g}", 1e3 * each["all"], *shares])
    names = ["evaluation 224", "gap", "ms", "decode %", "resize %", "normalize %"]
    return tabulate(lines, names, floatfmt=("", "", ".2f", ".0f", ".0f", ".0f"), tablefmt="github")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of JPEGs; default: generated photographs")
    parser.add_argument("--count", type=int, default=3, help="images of each kind")
    parser.add_argument("--seconds", type=float, default=25.0, help="time for the table of speeds")
    parser.add_argument("--gap", type=float, default=get_cfg_default().INPUT.JPEG_GAP, help="INPUT.JPEG_GAP")
    parser.add_argument("--size", type=int, default=224, help="side of the input for --error, for small photographs")
    parser.add_argument("--error", action="store_true", help="measure how exact the gaps are, not how fast")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser


def main() -> None:
    """Measure and print."""
    args = build_parser().parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if args.error:
            result = {"error": error_rows(args.images, args.count, args.size)}
            print(error_table(result["error"]))
        else:
            images = listed(args.images, args.count) if args.images else generated(Path(folder), args.count)
            result = {"speed": speed(images, args.gap, args.seconds), "parts": parts(images, args.gap)}
            print(speed_table(result["speed"], args.gap), parts_table(result["parts"]), sep="\n\n")
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
