"""FLOPs, time, activation memory and exactness of learned text prompts: `python benchmarks/text_tower.py`.

The text tower of ViT-B/16 (or --model) with random weights encodes prompts of ImageNet's class names, forward and
backward, by the plain path of 77 tokens and by the one that is taken by default. --full adds 500 classes, which takes
the plain path some minutes on a CPU.
"""

import argparse
import copy
import json

import open_clip
import torch
from common import NAMES, base_parser, flops, saved_bytes, seconds
from tabulate import tabulate
from torch import Tensor, nn

from dho_plugin.engine.views import Preprocess
from dho_plugin.models.buckets import MOST_ON_A_GPU
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.deep_prompts import DeepPrompts
from dho_plugin.models.prompts import PromptLearner
from dho_plugin.models.shared_prefix import SharedPrefix
from dho_plugin.models.templates import IMAGENET_TEMPLATES
from dho_plugin.models.text_paths import Plain, Truncated
from dho_plugin.models.text_tower import TextTower
from dho_plugin.models.zeroshot import class_features

COOP = {"n_ctx": 16, "depth": 1}
PROMPTSRC = {"n_ctx": 4, "depth": 9}


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = base_parser(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--model", default="ViT-B-16-quickgelu", help="open_clip's name")
    parser.add_argument("--repeats", type=int, default=2, help="how often each time is taken")
    parser.add_argument("--bf16", action="store_true", help="take times and memory under autocast in bfloat16")
    parser.add_argument("--full", action="store_true", help="also at 500 classes, on a GPU at 1000 as well")
    return parser


class Prompted(nn.Module):
    """The features of learned prompts with random words, by one path.

    Args:
        tower: the text tower.
        kind: the path's module.
        classes: how many of ImageNet's names, spread over all of them.
        most: the path's most buckets.
        depth: layers with prompts.
        options: of `PromptLearner`.
    """

    def __init__(self, tower: TextTower, kind: type, classes: int, most: int | None = None, *, depth: int, **options):
        super().__init__()
        torch.manual_seed(0)
        prompts = PromptLearner(NAMES[:: 1000 // classes], tower, **options).to(tower.positional_embedding)
        self.path = kind(tower, prompts) if kind is Plain else kind(tower, prompts, most)
        self.deep = DeepPrompts(prompts.n_ctx, tower.width, depth).to(prompts.ctx)

    def forward(self) -> Tensor:
        """Return the features (C, D)."""
        return self.path(self.deep.layers())

    def backward(self) -> list[Tensor]:
        """Run forward and backward; return features and gradients."""
        features, learned = self(), [self.path.prompts.ctx, *self.deep.layers()]
        loss = (features * torch.linspace(-1, 1, features.numel()).to(features).view_as(features)).sum()
        for values in learned:
            values.grad = None
        loss.backward()
        return [features.detach(), *(values.grad for values in learned)]


def build_clip(name: str, device: str) -> LoadedCLIP:
    """Return a CLIP with random weights."""
    torch.manual_seed(0)
    model = open_clip.create_model(name).to(device).eval().requires_grad_(False)
    return LoadedCLIP(name, model, open_clip.get_tokenizer(name), Preprocess(224, (0.0,) * 3, (1.0,) * 3))


def counted(prompted: Prompted) -> int:
    """Count the FLOPs of forward and backward, without computing."""
    return flops(copy.deepcopy(prompted).to("meta").backward)


def count_rows(tower: TextTower) -> list[dict]:
    """Count FLOPs at 1000 classes."""
    cases = {
        "FLOPs, 16 tokens, 1000 classes": (COOP, SharedPrefix, None, 17, 20),
        "FLOPs, deep prompts (depth 9, 4 tokens), 1000 classes": (PROMPTSRC, SharedPrefix, None, 17, 20),
        f"FLOPs, 16 tokens, 1000 classes, {MOST_ON_A_GPU} buckets": (COOP, SharedPrefix, MOST_ON_A_GPU, 17, 20),
        "FLOPs, class-specific context, 1000 classes": ({**COOP, "class_specific": True}, Truncated, None, None, None),
        "FLOPs, class name in the middle, 1000 classes": ({**COOP, "position": "middle"}, Truncated, None, None, None),
    }
    rows = []
    for title, (options, kind, most, require, aim) in cases.items():
        plain, fast = (counted(Prompted(tower, k, 1000, m, **options)) for k, m in ((Plain, None), (kind, most)))
        rows.append(row(title, plain / 1e9, fast / 1e9, "GF", require, aim))
    return rows


def prompt_rows(tower: TextTower, classes: int, args: argparse.Namespace) -> list[dict]:
    """Take time and activation memory of learned prompts."""
    on_gpu, rows = args.device != "cpu", []
    parts = 1 if on_gpu else classes // 100  # of 500 classes the plain path would keep 13 GB: it runs on 5 x 100
    plain = Prompted(tower, Plain, classes // parts, **COOP)

    def whole_plain() -> None:
        for _ in range(parts):
            plain.backward()

    for most in (None, MOST_ON_A_GPU) if on_gpu else (None,):
        fast = Prompted(tower, SharedPrefix, classes, most, **COOP)
        title = f"{classes} classes" + (f", {most} buckets" if most else "")
        taken = seconds([whole_plain, fast.backward], args.device, args.repeats)
        rows.append(row(f"time, 16 tokens, {title}", *taken, "s", 15, 25))
        kept = saved_bytes(plain, plain) * parts / 1e6, saved_bytes(fast, fast) / 1e6
        rows.append(row(f"activation memory, 16 tokens, {title}", *kept, "MB", 10, 18))
    return rows


def measured_rows(clip: LoadedCLIP, args: argparse.Namespace) -> list[dict]:
    """Take times and activation memory."""
    tower, rows = TextTower(clip), []
    more = (500,) if args.device == "cpu" else (500, 1000)
    both = [LoadedCLIP(clip.name, clip.model, clip.tokenizer, clip.preprocess, path) for path in ("plain", "auto")]
    with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
        for classes in (100, *(more if args.full else ())):
            rows += prompt_rows(tower, classes, args)
        runs = [lambda clip=clip: class_features(clip, NAMES[:10], IMAGENET_TEMPLATES) for clip in both]
        taken = seconds(runs, args.device, args.repeats)
    return [*rows, row("time of class features, 10 classes x 7 templates", *taken, "s")]


def row(title: str, plain: float, fast: float, unit: str, require: int | None = None, aim: int | None = None) -> dict:
    """Return a row of the table."""
    wanted = {"required": require, "aim": aim}
    return {"what": title, "plain": plain, "default": fast, "unit": unit, "ratio": plain / fast, **wanted}


def exactness_rows(clip: LoadedCLIP) -> list[dict]:
    """Compare features and gradients with the plain path's, 10 classes."""
    rows = []
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        tower = TextTower(LoadedCLIP(clip.name, clip.model.to(dtype), clip.tokenizer, clip.preprocess))
        for title, options in (("16 tokens", COOP), ("deep prompts", PROMPTSRC)):
            plain, fast = (Prompted(tower, kind, 10, **options).backward() for kind in (Plain, SharedPrefix))
            errors = [((a - b).norm() / b.norm()).item() for a, b in zip(fast, plain, strict=True)]
            name = f"{title}, {str(dtype).removeprefix('torch.')}"
            rows.append({"what": name, "features": errors[0], "gradients": max(errors[1:]), "required": bound})
    return rows


def main() -> None:
    """Run the command line."""
    args = build_parser().parse_args()
    torch.set_num_threads(1)
    clip = build_clip(args.model, args.device)
    rows = [*count_rows(TextTower(clip)), *measured_rows(clip, args)]
    print(tabulate(rows, "keys", "github", floatfmt=("", ".4g", ".4g", "", ".1f")))
    exact = exactness_rows(clip)
    print(f"\nLargest relative error (L2):\n\n{tabulate(exact, 'keys', 'github', floatfmt='.1e')}")
    if args.json:
        args.json.write_text(json.dumps({"figures": rows, "errors": exact}, indent=2) + "\n")


if __name__ == "__main__":
    main()
