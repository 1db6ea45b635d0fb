"""Time of an optimizer's step, as a run takes it, against torch's other ways: `python benchmarks/optimizer.py`.

Random weights and gradients; the models are the mini world's compact student and encoders as timm builds them.
"""

import argparse
import json

import torch
from common import base_parser, seconds
from tabulate import tabulate

from dho_plugin.engine.config import get_cfg_default
from dho_plugin.engine.optim import build_optimizer
from dho_plugin.models.backbones import load_backbone

ADAMS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = base_parser(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--optimizer", default="adamw", choices=ADAMS)
    parser.add_argument("--models", nargs="+", default=["mini-resnet", "resnet18", "vit_base_patch16_224"])
    parser.add_argument("--repeats", type=int, default=50, help="how often each time is taken")
    return parser


def parameters(name: str, device: str) -> list[torch.nn.Parameter]:
    """Return a model's parameters, each with a gradient."""
    params = list(load_backbone(name, pretrained=False).model.to(device).parameters())
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def optimizers(kind: str, name: str, device: str) -> dict[str, torch.optim.Optimizer]:
    """Return torch's ways of an optimizer and ours, each with parameters of its own."""
    cfg = get_cfg_default().OPTIM
    cfg.NAME = kind
    keys = {"lr": cfg.LR, "weight_decay": cfg.WEIGHT_DECAY}
    return {
        "tensor by tensor": ADAMS[kind](parameters(name, device), foreach=False, **keys),
        "torch's default": ADAMS[kind](parameters(name, device), **keys),
        "ours": build_optimizer(parameters(name, device), cfg),
    }


def row(args: argparse.Namespace, name: str) -> dict:
    """Return one model's times in milliseconds, and ours as a ratio."""
    ways = optimizers(args.optimizer, name, args.device)
    for way in ways.values():
        way.step()  # makes its state
    times = dict(zip(ways, seconds([way.step for way in ways.values()], args.device, args.repeats), strict=True))
    own = times["ours"]
    params = ways["ours"].param_groups[0]["params"]
    return {
        "model": name,
        "tensors": len(params),
        "parameters, M": sum(param.numel() for param in params) / 1e6,
        **{f"{way}, ms": 1e3 * taken for way, taken in times.items()},
        **{f"{way} / ours": taken / own for way, taken in times.items() if way != "ours"},
    }


def main() -> None:
    """Run the command line."""
    args = build_parser().parse_args()
    torch.set_num_threads(1)
    table = [row(args, name) for name in args.models]
    print(tabulate(table, "keys", "github", floatfmt=("", "", ".1f", ".2f", ".2f", ".2f", ".2f", ".2f")))
    if args.json:
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
