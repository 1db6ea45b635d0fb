"""Memory of a training step of PromptSRC, its largest one: `python benchmarks/memory.py`.

A step of 4 images and 1000 classes on ViT-L/14 (or --model), as its authors run it: prompts in both towers (depth 9,
4 tokens), the frozen CLIP beside them, all losses, backward and optimizer. After every single operation the bytes of
all tensors that are alive are counted, on tensors without contents (torch's FakeTensorMode) under a CPU's autocast: the
result is the same on every machine, and lacks what a GPU's own libraries and its allocator take. With `--device cuda`
the step runs there as well, and its peak stands beside the counted one.
"""

from __future__ import annotations

import argparse
import copy
import json
import weakref
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import open_clip
import torch
from dho_plugin.trainers.promptsrc import PromptSRCStudent
from tabulate import tabulate
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dho_plugin.core.losses import dho_loss
from dho_plugin.engine.views import Preprocess
from dho_plugin.models.buckets import MOST_ON_A_GPU
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.deep_prompts import DeepPrompts, VisualPrompts
from dho_plugin.models.image_tower import checkpoint_images
from dho_plugin.models.prompts import PromptLearner
from dho_plugin.models.shared_prefix import SharedPrefix
from dho_plugin.models.text_tower import TextTower, checkpoint_text

PRECISIONS = {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}
N_CTX, DEPTH, WEIGHTS = 4, 9, (25.0, 10.0)


class Variant(NamedTuple):
    """A way to take the step.

    Attributes:
        precision: a key of PRECISIONS.
        towers: MODEL.TEXT_TOWER and MODEL.IMAGE_TOWER.
        text: MODEL.TEXT_CHECKPOINTING.
        images: MODEL.IMAGE_CHECKPOINTING.
    """

    precision: str
    towers: str = "auto"
    text: bool = False
    images: bool = False

    def __str__(self) -> str:
        """Return the row's title."""
        again = [name for name, on in (("text", self.text), ("images", self.images)) if on]
        towers = "default" if self.towers == "auto" else self.towers
        return f"{self.precision}, {towers}" + (f", {' and '.join(again)} computed again" if again else "")


VARIANTS = [
    Variant(precision, towers, *again)
    for precision in ("fp16", "fp32")
    for towers, again in (
        ("plain", (False, False)),
        ("plain", (True, True)),
        ("auto", (False, False)),
        ("auto", (True, False)),
        ("auto", (False, True)),
        ("auto", (True, True)),
    )
]


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cuda: also the peak that a real step has there")
    parser.add_argument("--model", default="ViT-L-14-quickgelu", help="open_clip's name")
    parser.add_argument("--classes", type=int, default=1000, help="how many of ImageNet's names")
    parser.add_argument("--batch", type=int, default=4, help="images")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


class AliveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that operations have made and that are still alive.

    Attributes:
        now: bytes at this moment.
        peak: the most there were.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operation and count what it made."""
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive[key] = weakref.ref(storage, lambda _: self._drop(key, size))
            self.now += size
            self.peak = max(self.peak, self.now)

    def _drop(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size


def build_student(model: nn.Module, variant: Variant, args: argparse.Namespace, device: str) -> PromptSRCStudent:
    """Return PromptSRC's student on a copy of a CLIP."""
    model, tokenizer = copy.deepcopy(model).to(device), open_clip.get_tokenizer(args.model)
    preprocess = Preprocess(model.visual.image_size[0], (0.0,) * 3, (1.0,) * 3)
    clip = LoadedCLIP(args.model, model, tokenizer, preprocess, variant.towers, variant.towers)
    checkpoint_text(clip, variant.text)
    checkpoint_images(clip, variant.images)
    tower, names = TextTower(clip), open_clip.IMAGENET_CLASSNAMES[: args.classes]
    prompts = nn.ModuleDict({
        "prompt_learner": PromptLearner(names, tower, n_ctx=N_CTX, ctx_init="a photo of a"),
        "text_encoder": DeepPrompts(N_CTX, tower.width, DEPTH),
        "image_encoder": VisualPrompts(N_CTX, model.visual.transformer.width, DEPTH),
    })  # fmt: skip
    student = PromptSRCStudent(clip, prompts, WEIGHTS).to(device)
    student.fixed_text = torch.randn(len(names), clip.feature_dim, device=device)
    if variant.towers == "auto":  # as on a GPU, also where it is only counted
        student.text_classifier.encode = SharedPrefix(tower, prompts["prompt_learner"], MOST_ON_A_GPU)
    return student.train()


def without_contents(student: nn.Module) -> None:
    """Replace all tensors of a module, in place, by ones that have no contents, under FakeTensorMode."""
    known: dict[int, Tensor] = {}

    def empty(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            fake = torch.empty(tensor.shape, dtype=tensor.dtype)
            known[id(tensor)] = nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake
        return known[id(tensor)]

    for module in student.modules():
        for own in (module._parameters, module._buffers):
            own.update({name: None if value is None else empty(value) for name, value in own.items()})
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                setattr(module, name, empty(value))


def autocast(precision: str, device: str) -> AbstractContextManager:
    """Return the autocast of a precision."""
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(device, dtype)


def take_step(student: PromptSRCStudent, variant: Variant, args: argparse.Namespace, device: str, note=int) -> None:
    """Take a training step; `note` is called in between, after the images and after the text."""
    size, learned = student.clip_model.visual.image_size[0], list(student.prompts.parameters())
    images = torch.randn(args.batch, 3, size, size, device=device)
    labels = torch.randint(args.classes, (args.batch,), device=device)
    optim = torch.optim.SGD(learned, lr=0.0025, momentum=0.9)
    note()
    with autocast(variant.precision, device):
        features = student.features(images)
        note()
        logits = student.logits_ce(features)
        note()
        extra = student.extra_loss(images, features, logits)
    (dho_loss(logits.float(), labels, lambda_=1.0, eta=2.0).total + extra).backward()
    optim.step()


def counted(model: nn.Module, variant: Variant, args: argparse.Namespace) -> dict:
    """Return what a step keeps alive, in GB."""
    student, noted = build_student(model, variant, args, "cpu"), []
    with FakeTensorMode(), AliveBytes() as alive:
        without_contents(student)
        take_step(student, variant, args, "cpu", lambda: noted.append(alive.now))
    weights, images, text = noted
    parts = {"weights": weights, "image tower": images - weights, "text tower": text - images, "peak": alive.peak}
    return {"step": str(variant)} | {name: value / 1e9 for name, value in parts.items()}


def measured(model: nn.Module, variant: Variant, args: argparse.Namespace) -> float | None:
    """Return the peak of a real step on a GPU in GB, None where it does not fit."""
    student = build_student(model, variant, args, args.device)
    try:
        for _ in range(2):  # the first one loads libraries
            torch.cuda.reset_peak_memory_stats()
            take_step(student, variant, args, args.device)
        return torch.cuda.max_memory_allocated() / 1e9
    except torch.OutOfMemoryError:
        return None


def main() -> None:
    """Run the command line."""
    args = build_parser().parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, rows = open_clip.create_model(args.model).eval().requires_grad_(False), []
    for variant in VARIANTS:
        rows.append(counted(model, variant, args))
        if args.device != "cpu":
            rows[-1]["measured peak"] = measured(model, variant, args)
    print(tabulate(rows, "keys", "github", floatfmt=".2f", missingval="does not fit"))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
