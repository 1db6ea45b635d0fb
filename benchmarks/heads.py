"""What the second head costs at inference (the paper's Tables 2 and 7): `python benchmarks/heads.py`.

Parameters, multiply-adds and images a second of image encoders with random weights under one linear head, and under two
whose predictions are mixed. One and two heads take turns on the same images, in changing order; the share is the median
of the pairs. The second head with the mixing is also timed alone: its share of the whole is too small for the pairs.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple
from unittest.mock import patch

import torch
import torchvision
from common import CLOCKS, ENCODERS, base_parser, build_clip, flops, synchronize
from counting import autocast
from tabulate import tabulate
from torch import Tensor, nn

from dho_plugin.core.heads import LinearHead
from dho_plugin.core.inference import interpolate

LEAST = 5  # pairs of timings of a model


class Model(NamedTuple):
    """An image encoder, the width of its features, and the paper's figures with one head and with two.

    The figures are millions of parameters, 10^9 multiply-adds an image ("FLOPs") and images a second on an RTX 4090.
    """

    build: Callable[[], nn.Module]
    width: int
    one: tuple[float, float, float] | None = None
    two: tuple[float, float, float] | None = None


def torchvision_encoder(name: str, classifier: str) -> Callable[[], nn.Module]:
    """Return a function that builds one of torchvision's encoders without its classifier."""

    def build() -> nn.Module:
        model = torchvision.models.get_model(name, weights=None)
        setattr(model, classifier, nn.Identity())
        return model

    return build


MODELS = {
    "MobileNetV2": Model(
        torchvision_encoder("mobilenet_v2", "classifier"), 1280, (3.50, 0.33, 2978.4), (4.79, 0.34, 2971.2)
    ),
    "ResNet-18": Model(torchvision_encoder("resnet18", "fc"), 512, (11.69, 1.83, 3525.7), (12.20, 1.83, 3518.6)),
    "ResNet-50": Model(torchvision_encoder("resnet50", "fc"), 2048, (25.56, 4.14, 1018.4), (27.61, 4.15, 1016.4)),
    "ViT-B/16": Model(torchvision_encoder("vit_b_16", "heads"), 768, (86.57, 16.87, 290.2), (87.34, 16.87, 290.1)),
    "ViT-L/16": Model(torchvision_encoder("vit_l_16", "heads"), 1024, (304.33, 59.70, 255.1), (305.35, 59.70, 255.6)),
    "CLIP ViT-B/16": Model(lambda: build_clip(ENCODERS["B/16"]).visual, 512),
    "CLIP ViT-L/14": Model(lambda: build_clip(ENCODERS["L/14"]).visual, 768),
}


class Heads(nn.Module):
    """Features (B, D) -> probabilities (B, C): of one head, or of two by Eq. 11."""

    def __init__(self, width: int, classes: int, two: bool):
        super().__init__()
        self.ce_head, self.kd_head = LinearHead(width, classes), LinearHead(width, classes) if two else None

    def forward(self, z: Tensor) -> Tensor:
        """Return the probabilities."""
        return interpolate(self.ce_head(z), None if self.kd_head is None else self.kd_head(z), 0.5, 0.5)


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = base_parser(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=4, help="images")
    parser.add_argument("--seconds", type=float, default=40, help=f"how long a model is timed, {LEAST} pairs at least")
    return parser


def counted(model: Model, classes: int) -> list[dict[str, float]]:
    """Return millions of parameters and 10^9 multiply-adds an image, with one head and with two, computing nothing."""
    rows = []
    for two in (False, True):
        with torch.device("meta"):
            net = nn.Sequential(model.build(), Heads(model.width, classes, two)).eval()
            images = torch.randn(1, 3, 224, 224)
        with patch.object(torch, "autocast", autocast):  # with gradients: else attention is one kernel, not counted
            macs = flops(lambda net=net, images=images: net(images)) / 2
        rows.append({"params": sum(p.numel() for p in net.parameters()) / 1e6, "macs": macs / 1e9})
    return rows


@torch.no_grad()
def timed(model: Model, args: argparse.Namespace) -> dict[str, float]:
    """Return images a second with one head and with two, their ratio less 1, and the second head's own share, in %."""
    torch.manual_seed(0)
    encoder = model.build().eval().to(args.device)
    one, two = (Heads(model.width, args.classes, many).eval().to(args.device) for many in (False, True))
    images = torch.randn(args.batch, 3, 224, 224, device=args.device)
    runs = [lambda: one(encoder(images)), lambda: two(encoder(images))]
    features = encoder(images)
    for run in runs:
        run()  # loads kernels
    pairs, end = [], time.perf_counter() + args.seconds
    while len(pairs) < LEAST or time.perf_counter() < end:
        first = len(pairs) % 2
        taken = {way: elapsed(runs[way], args.device) for way in (first, 1 - first)}
        pairs.append((taken[0], taken[1]))
    heads = [[elapsed(lambda h=h: h(features), args.device) for h in (one, two)] for _ in range(200)]
    own = statistics.median(b - a for a, b in heads)
    slow = statistics.quantiles([100 * (a / b - 1) for a, b in pairs], n=4)
    speeds = [args.batch / statistics.median(column) for column in zip(*pairs, strict=True)]
    return {
        "pairs": len(pairs),
        "one": speeds[0],
        "two": speeds[1],
        "change": slow[1],
        "lower": slow[0],
        "upper": slow[2],
        "head": 100 * own / statistics.median(a for a, _ in pairs),
    }


def elapsed(run: Callable, device: str) -> float:
    """Return the time of a run: CPU time of one thread, or a GPU's."""
    clock = CLOCKS[torch.device(device).type]
    synchronize(device)
    before = clock()
    run()
    synchronize(device)
    return clock() - before


def change(one: float, two: float) -> str:
    """Return how much more a figure is, in percent."""
    return f"{two:.2f} ({100 * (two / one - 1):+.1f}%)"


def row(name: str, args: argparse.Namespace) -> dict:
    """Return all figures of a model."""
    model = MODELS[name]
    one, two = counted(model, args.classes)
    return {"model": name, "one": one, "two": two, "timed": timed(model, args), "paper": [model.one, model.two]}


def tables(rows: list[dict]) -> tuple[str, str]:
    """Return what is counted and what is timed, each beside the paper's."""
    counts, times = [], []
    for r in rows:
        name, (one, two), (paper, paper_two) = r["model"], (r["one"], r["two"]), r["paper"]
        published = [f"{paper[k]:.2f}, {change(paper[k], paper_two[k])}" if paper else "-" for k in (0, 1)]
        ours = [f"{one[k]:.2f}, {change(one[k], two[k])}" for k in ("params", "macs")]
        counts.append([name, ours[0], published[0], ours[1], published[1]])
        t = r["timed"]
        ranged = f"{t['change']:+.2f} ({t['lower']:+.2f} to {t['upper']:+.2f})"
        theirs = f"{100 * (paper_two[2] / paper[2] - 1):+.2f}" if paper else "-"
        times.append([name, t["pairs"], f"{t['one']:.2f}", f"{t['two']:.2f}", ranged, f"{t['head']:.3f}", theirs])
    theirs = "paper (change of its rounded figures)"
    titles = ["model", "parameters, M: one head, two", theirs, "multiply-adds, 10^9", theirs]
    timing = [
        "model",
        "pairs",
        "images/s, one head",
        "two",
        "change, % (quartiles)",
        "second head alone, %",
        "paper, %",
    ]
    return tabulate(counts, titles, "github"), tabulate(times, timing, "github", disable_numparse=True)


def main() -> None:
    """Run the command line."""
    args = build_parser().parse_args()
    torch.set_num_threads(1)
    rows = [row(name, args) for name in args.models]
    print("\n\n".join(tables(rows)))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
