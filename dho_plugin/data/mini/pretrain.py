"""Train the embedded CLIPs again from nothing: `python -m dho_plugin.data.mini.pretrain student|teacher --out DIR`.

Contrastive learning on generated image-caption pairs, without any label: the student on noisy captions that hardly
use the task's class names, the teacher on a cleaner corpus. On one CPU core about 10 and 35 minutes.
"""

import argparse
import math
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from dho_plugin.data.mini.captions import FILLERS, STUDENT_NOISE, TEACHER_NOISE, CaptionNoise
from dho_plugin.data.mini.corpus import CORPUS_SIZE, corpus_captions, corpus_images
from dho_plugin.data.mini.render import render
from dho_plugin.data.mini.sets import SET_BY_NAME
from dho_plugin.data.mini.world import CLASSES, class_name
from dho_plugin.engine.views import Preprocess
from dho_plugin.models.mini import build_mini, mini_preprocess, mini_tokenizer

LEARNING_RATE, WEIGHT_DECAY, WARMUP_STEPS, FLOOR = 2e-3, 0.05, 150, 0.01
CROPPED = 1 / 3  # share of the batches that see a random crop instead of the whole image
MAX_LOG_SCALE = math.log(100)
EVALUATIONS = 20


@dataclass(frozen=True)
class Recipe:
    """What differs between the two: captions, batch size, number of images seen."""

    noise: CaptionNoise
    batch: int
    samples: int


RECIPES = {
    "student": Recipe(STUDENT_NOISE, batch=192, samples=900_000),
    "teacher": Recipe(TEACHER_NOISE, batch=128, samples=1_050_000),
}


class Corpus:
    """Images and tokens in memory maps, read in shuffled batches."""

    def __init__(self, folder: Path, noise: CaptionNoise, size: int, workers: int):
        self.images = corpus_images(folder / f"images_{size}.npy", size, workers)
        self.tokens = mini_tokenizer()(corpus_captions(noise, size))

    def batches(self, batch: int, generator: torch.Generator):
        """Yield (images (B, H, W, 3) uint8, tokens (B, L) int64) for ever."""
        while True:
            order = torch.randperm(len(self.images), generator=generator)
            for rows in order[: len(order) // batch * batch].split(batch):
                yield torch.from_numpy(self.images[rows.numpy()]), self.tokens[rows]


def augment(images: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Flip half of the batches, crop a third of them, and resize as PIL does.

    Args:
        images: (B, H, W, 3) uint8.
        size: side of the result in pixels.
        generator: source of the choices, one a batch.

    Returns:
        (B, 3, size, size) uint8.
    """
    flip, crop, area, ratio, dx, dy = torch.rand(6, generator=generator).tolist()
    images = images.permute(0, 3, 1, 2)
    if flip < 0.5:
        images = images.flip(-1)
    if crop < CROPPED:
        side = images.shape[-1]
        area, ratio = 0.5 + 0.5 * area, (3 / 4) ** (2 * ratio - 1)
        height, width = (min(side, round(side * math.sqrt(area * r))) for r in (ratio, 1 / ratio))
        top, left = int(dy * (side - height + 1)), int(dx * (side - width + 1))
        images = images[..., top : top + height, left : left + width]
    return resize(images, size)


def resize(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize (B, 3, H, W) uint8 images to (B, 3, size, size) with PIL's antialiased bicubic filter."""
    if images.shape[-2:] == (size, size):
        return images
    images = images.contiguous(memory_format=torch.channels_last)
    return F.interpolate(images, size=(size, size), mode="bicubic", antialias=True)


def normalize(images: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """Map (B, 3, H, W) uint8 to normalized float32."""
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (preprocess.mean, preprocess.std))
    return (images / 255 - mean) / std


def losses(model, words: nn.Linear, images: torch.Tensor, tokens: torch.Tensor, targets: torch.Tensor):
    """Return the contrastive loss, and that of predicting the caption's own words from the image (a bag of words)."""
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        features, text = model.encode_image(images), model.encode_text(tokens, normalize=True).float()
        word_logits = words(features).float()
    logits = model.logit_scale.exp() * F.normalize(features.float(), dim=-1) @ text.T
    pairs = torch.arange(len(logits))
    contrastive = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
    return contrastive, F.cross_entropy(word_logits, targets)


@cache
def _silent_ids() -> list[int]:
    tokenizer = mini_tokenizer()
    return [0, tokenizer.sot_token_id, tokenizer.eot_token_id, *tokenizer.encode(" ".join(FILLERS))]


def word_targets(tokens: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Return the distribution over the words of each caption that say something, (B, vocab_size) float32."""
    bag = torch.zeros(len(tokens), vocab_size).scatter_(1, tokens, 1.0)
    bag[:, _silent_ids()] = 0
    return bag / bag.sum(1, keepdim=True).clamp(min=1)


def make_optimizer(*modules: nn.Module) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    parameters = [p for module in modules for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98), eps=1e-6, foreach=True)


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to FLOOR of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP_STEPS) * (FLOOR + (1 - FLOOR) * cosine)


@torch.inference_mode()
def zero_shot(model, name: str, per_class: int = 10) -> dict[str, float]:
    """Return the zero-shot accuracies in percent on images of the train folder, never on a test set.

    Args:
        model: the CLIP.
        name: "mini-student" or "mini-teacher".
        per_class: images a class.

    Returns:
        One accuracy for the common names of the shapes and one for each of their four synonyms.
    """
    training, _ = model.training, model.eval()
    with sdpa_kernel(SDPBackend.MATH):
        features, labels = _train_features(model, mini_preprocess(name), per_class)
        out = {}
        for synonym in (None, 0, 1, 2, 3):
            names = [class_name(c.shape, c.pattern, synonym) for c in CLASSES]
            text = model.encode_text(mini_tokenizer()([f"a photo of a {n}." for n in names]), normalize=True)
            right = (features @ text.T).argmax(1) == labels
            out["common" if synonym is None else f"synonym {synonym}"] = 100 * right.float().mean().item()
    model.train(training)
    return out


def _train_features(model, preprocess: Preprocess, per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalized features (N, D) and labels (N,) of the first images of the train folder."""
    train_set, features = SET_BY_NAME["train"], []
    index = np.arange(per_class * len(CLASSES))
    for block in np.array_split(index, per_class):
        images = torch.from_numpy(render(train_set.parameters(block))).permute(0, 3, 1, 2)
        features.append(model.encode_image(normalize(resize(images, preprocess.size), preprocess), normalize=True))
    return torch.cat(features), torch.from_numpy(train_set.label_of(index))


def save(model, path: Path) -> None:
    """Write the weights as fp16 safetensors, atomically."""
    weights = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    partial = path.with_suffix(".partial")
    partial.write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in weights.items()}))
    os.replace(partial, path)


def train(name: str, out: Path, *, samples: int = 0, corpus_size: int = CORPUS_SIZE, seed: int = 1, workers: int = 0):
    """Train one of the two CLIPs and write `DIR/student.safetensors` or `DIR/teacher.safetensors`.

    Args:
        name: "student" or "teacher".
        out: folder of the result; the corpus is kept in it for the other one.
        samples: images seen; 0 takes the recipe's number.
        corpus_size: number of unique images.
        seed: seed of the weights and of the batches.
        workers: processes that render the corpus.
    """
    recipe = RECIPES[name]
    corpus = Corpus(out, recipe.noise, corpus_size, workers)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, preprocess = build_mini(f"mini-{name}").train(), mini_preprocess(f"mini-{name}")
    words = nn.Linear(model.visual.output_dim, model.vocab_size)
    optimizer = make_optimizer(model, words)
    steps = (samples or recipe.samples) // recipe.batch
    batches = corpus.batches(recipe.batch, generator)
    for step in tqdm(range(steps), desc=name, mininterval=10):
        images, tokens = next(batches)
        images = normalize(augment(images, preprocess.size, generator), preprocess)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        contrastive, bag = losses(model, words, images, tokens, word_targets(tokens, model.vocab_size))
        optimizer.zero_grad()
        (contrastive + bag).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, MAX_LOG_SCALE)
        if (step + 1) % max(1, steps // EVALUATIONS) == 0 or step + 1 == steps:
            _report(model, name, step + 1, contrastive.item(), bag.item())
            save(model, out / f"{name}.safetensors")


def _report(model, name: str, step: int, contrastive: float, bag: float) -> None:
    accuracies = ", ".join(f"{key} {value:.1f}" for key, value in zero_shot(model, f"mini-{name}").items())
    scale = model.logit_scale.exp().item()
    tqdm.write(
        f"{time.strftime('%X')} {name} step {step}: contrastive {contrastive:.3f}, words {bag:.3f}, scale {scale:.1f}, "
        f"zero-shot on training images: {accuracies}"
    )


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m dho_plugin.data.mini.pretrain", description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, required=True, help="folder of the weights and the corpus")
    parser.add_argument("--samples", type=int, default=0, help="images seen; 0: the recipe's number")
    parser.add_argument("--corpus-size", type=int, default=CORPUS_SIZE, help="unique images, 6.9 kB each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the training")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that render the corpus")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    options = {"samples": args.samples, "corpus_size": args.corpus_size, "seed": args.seed, "workers": args.workers}
    train(args.model, args.out, **options)


if __name__ == "__main__":
    main()
