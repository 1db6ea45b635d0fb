"""Throughput and FLOPs of an image transformer against the tokens that each layer merges: `python benchmarks/tome.py`.

Random weights, noise for images: what is measured is the cost. The paper's Table 9 has a ViT-B/16 of 12 layers.
"""

import argparse
import json
from functools import partial, reduce

import torch
from common import ENCODERS, base_parser, build_clip, flops, seconds
from tabulate import tabulate

from dho_plugin.models.image_encoder import encode_image, image_path


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = base_parser(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--encoder", default="B/16", choices=list(ENCODERS))
    parser.add_argument("--r", type=int, nargs="+", default=[4, 8, 12, 16], help="tokens to merge in each layer")
    parser.add_argument("--batch", type=int, default=4, help="images")
    parser.add_argument("--repeats", type=int, default=5, help="how often each time is taken")
    return parser


@torch.no_grad()
def rows(args: argparse.Namespace) -> list[dict]:
    """Return a row for the encoder's own way, one for the class token alone in the last layer, and one for each r."""
    torch.manual_seed(0)
    encoder = ENCODERS[args.encoder]
    model, images = build_clip(encoder).eval(), torch.randn(args.batch, 3, encoder.size, encoder.size)
    paths = {"plain": (image_path(model, "plain"), 0), "r = 0": (image_path(model), 0)}
    paths |= {f"r = {r}": (image_path(model, "auto", r), r) for r in args.r}
    # Counted on the meta device: what a CPU fuses is hidden from the counter.
    shapes, empty = images[:1].to("meta"), build_clip_on_meta(args.encoder)
    counts = {name: flops(partial(encode_image, empty, path, shapes, r)) for name, (path, r) in paths.items()}
    model, images = model.to(args.device), images.to(args.device)
    runs = [partial(encode_image, model, path, images, r) for path, r in paths.values()]
    for run in runs:
        run()
    times = dict(zip(paths, seconds(runs, args.device, args.repeats), strict=True))
    start = (encoder.size // encoder.patch) ** 2 + 1
    return [
        {
            "way": name,
            "tokens in the last layer": reduce(lambda n, _: n - min(r, (n - 1) // 2), range(encoder.layers - 1), start),
            "10^9 multiply-adds": counts[name] / 2e9,
            "of plain, %": 100 * (counts[name] / counts["plain"] - 1),
            "images/s": args.batch / times[name],
            "times plain": times["plain"] / times[name],
        }
        for name, (_, r) in paths.items()
    ]


def build_clip_on_meta(name: str) -> torch.nn.Module:
    """Return a CLIP of these sizes without values."""
    with torch.device("meta"):
        return build_clip(ENCODERS[name]).eval()


def main() -> None:
    """Run the command line."""
    args = build_parser().parse_args()
    torch.set_num_threads(1)
    table = rows(args)
    print(tabulate(table, "keys", "github", floatfmt=("", ".0f", ".2f", "+.1f", ".2f", ".2f")))
    if args.json:
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
