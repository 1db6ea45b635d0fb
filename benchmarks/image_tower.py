"""FLOPs, time and exactness of frozen image features: `python benchmarks/image_tower.py`.

Image encoders with random weights, without gradients: open_clip's own way, of the last layer only the class token
(MODEL.IMAGE_TOWER auto), convolutions channels last (MODEL.CHANNELS_LAST) and, with --compile, the best of these under
torch.compile (MODEL.COMPILE). The ways take turns.
"""

import argparse
import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import open_clip
import torch
from common import CLOCKS, synchronize
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dho_plugin.models.image_encoder import ImagePath, encode_image, image_path

PLAIN = ImagePath("plain", "")


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", default=["ViT-B-16-quickgelu", "ViT-L-14-quickgelu", "RN50-quickgelu"])
    parser.add_argument("--batch", type=int, default=4, help="images")
    parser.add_argument("--repeats", type=int, default=3, help="how often each time is taken")
    parser.add_argument("--bf16", action="store_true", help="under autocast in bfloat16")
    parser.add_argument("--compile", action="store_true", help="also under torch.compile; it takes a minute a model")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


def ways(model: nn.Module, compiled: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the ways to the features that a model has, the plain one first."""
    found = {"plain": partial(encode_image, model, PLAIN)}
    if image_path(model).name != "plain":
        found["class token"] = partial(encode_image, model, image_path(model))
    if not hasattr(model.visual, "transformer"):
        found["channels last"] = partial(
            encode_image, copy.deepcopy(model).to(memory_format=torch.channels_last), PLAIN
        )
    best = list(found)[-1]
    return found | ({f"{best}, compiled": torch.compile(found[best])} if compiled else {})


def flops(model: nn.Module, path: ImagePath, images: Tensor) -> float:
    """Count the FLOPs of an image without computing: what a CPU fuses is hidden from the counter."""
    with FlopCounterMode(display=False) as counter:
        encode_image(copy.deepcopy(model).to("meta"), path, images[:1].to("meta"))
    return counter.get_total_flops()


def seconds(way: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """Return the time of a batch: CPU time of one thread, or a GPU's."""
    clock = CLOCKS[images.device.type]
    synchronize(images.device)
    before = clock()
    way(images)
    synchronize(images.device)
    return clock() - before


@torch.no_grad()
def rows(name: str, args: argparse.Namespace) -> list[dict]:
    """Return the rows of a model."""
    torch.manual_seed(0)
    model = open_clip.create_model(name).to(args.device).eval().requires_grad_(False)
    size = open_clip.get_model_config(name)["vision_cfg"].get("image_size", 224)
    images, found = torch.randn(args.batch, 3, size, size, device=args.device), ways(model, args.compile)
    with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
        features = {title: way(images) for title, way in found.items()}  # compiles, loads kernels
        taken = [[seconds(way, images) for way in found.values()] for _ in range(args.repeats)]
    counts = {path.name: flops(model, path, images) for path in (PLAIN, image_path(model))}
    times = dict(zip(found, map(median, zip(*taken, strict=True)), strict=True))
    return [
        {
            "encoder": f"{name}, {title}",
            "GFLOPs": counts[title] / 1e9 if title in counts else None,
            "images/s": args.batch / times[title],
            "times the plain speed": times["plain"] / times[title],
            "difference": ((values - features["plain"]).norm() / features["plain"].norm()).item(),
        }
        for title, values in features.items()
    ]


def main() -> None:
    """Run the command line."""
    args = build_parser().parse_args()
    torch.set_num_threads(1)
    table = [row for name in args.models for row in rows(name, args)]
    print(tabulate(table, "keys", "github", floatfmt=("", ".1f", ".2f", ".2f", ".1e")))
    if args.json:
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
