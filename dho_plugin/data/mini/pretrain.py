"""Train the embedded models again from nothing: `python -m dho_plugin.data.mini.pretrain NAME --out DIR`.

Contrastive learning on generated image-caption pairs, without any label: the student and the ResNet on noisy captions
that hardly use the task's class names, the teacher on a cleaner corpus. On one CPU core about a quarter of an hour, an
hour for the teacher.
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from dho_plugin.data.mini.captions import STUDENT_NOISE, TEACHER_NOISE, CaptionNoise
from dho_plugin.data.mini.corpus import CORPUS_SIZE, corpus_captions, corpus_images
from dho_plugin.data.mini.learning import augment, learning_rate, make_optimizer, normalize, resize, train_step
from dho_plugin.data.mini.render import render
from dho_plugin.data.mini.sets import SET_BY_NAME
from dho_plugin.data.mini.world import CLASSES, class_name
from dho_plugin.engine.files import atomic_write
from dho_plugin.engine.views import Preprocess
from dho_plugin.errors import run_command
from dho_plugin.models.mini import build_mini, mini_preprocess, mini_tokenizer
from dho_plugin.models.mini.resnet import build_resnet_clip

EVALUATIONS = 20


@dataclass(frozen=True)
class Stage:
    """One learning-rate cycle: warm-up, then a cosine.

    Attributes:
        samples: images seen.
        peak: the highest learning rate.
        cropped: share of the batches that see a random crop instead of the whole image.
        horizon: images after which the cosine would end; more than `samples` cuts the cycle short. 0: `samples`.
    """

    samples: int
    peak: float = 2e-3
    cropped: float = 0.0
    horizon: int = 0


@dataclass(frozen=True)
class Recipe:
    """How one of them is trained: on which captions, with how many images a step, in which stages.

    Attributes:
        clip: the CLIP whose preprocessing and text tower it has.
        part: the submodule whose weights ship; "" for the whole CLIP, which alone a second stage can start from.
    """

    noise: CaptionNoise
    batch: int
    stages: tuple[Stage, ...]
    clip: str = "mini-student"
    part: str = ""


# The teacher sees crops, too: it is asked about them when it distils. It takes a second cycle to get well ahead.
RECIPES = {
    "student": Recipe(STUDENT_NOISE, 192, (Stage(900_000),)),
    "teacher": Recipe(
        TEACHER_NOISE,
        128,
        (Stage(559_104, cropped=1 / 3, horizon=800_000), Stage(576_000, peak=1.5e-3, cropped=1 / 6)),
        clip="mini-teacher",
    ),
    "resnet": Recipe(STUDENT_NOISE, 192, (Stage(900_000),), part="visual.trunk"),
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
    content = safetensors.torch.save({k: v.contiguous() for k, v in weights.items()})
    atomic_write(path, lambda file: file.write(content))


def build(name: str) -> nn.Module:
    """Return the CLIP that a recipe trains, with random weights."""
    return build_resnet_clip() if name == "resnet" else build_mini(RECIPES[name].clip)


def train(name: str, out: Path, *, samples: int = 0, corpus_size: int = CORPUS_SIZE, seed: int = 1, workers: int = 0):
    """Train one of the models and write `DIR/NAME.safetensors`, the weights that ship.

    A stage that is whole is kept as `DIR/NAME.stage1.safetensors`, and a killed run goes on after it.

    Args:
        name: "student", "teacher" or "resnet".
        out: folder of the result; the corpus is kept in it for the other one.
        samples: images seen in one short cycle; 0 takes the recipe's stages.
        corpus_size: number of unique images.
        seed: seed of the weights and of the batches.
        workers: processes that render the corpus.
    """
    recipe = RECIPES[name]
    stages = (replace(recipe.stages[0], samples=samples, horizon=0),) if samples else recipe.stages
    corpus = Corpus(out, recipe.noise, corpus_size, workers)
    start, result = None, out / f"{name}.safetensors"
    for number, stage in enumerate(stages, start=1):
        whole = out / f"{name}.stage{number}.safetensors"
        if not whole.exists():
            _train_stage(name, corpus, recipe.batch, stage, seed + number - 1, start, result)
            if number < len(stages):
                os.replace(result, whole)
        start = whole


def _train_stage(name: str, corpus: Corpus, batch: int, stage: Stage, seed: int, start: Path | None, result: Path):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, preprocess = build(name).train(), mini_preprocess(RECIPES[name].clip)
    words = nn.Linear(model.visual.output_dim, model.vocab_size)
    if start is not None:
        model.load_state_dict(safetensors.torch.load(start.read_bytes()))
    optimizer, batches = make_optimizer(model, words), corpus.batches(batch, generator)
    steps, horizon = stage.samples // batch, (stage.horizon or stage.samples) // batch
    for step in tqdm(range(steps), desc=name, mininterval=10):
        images, tokens = next(batches)
        images = normalize(augment(images, preprocess.size, stage.cropped, generator), preprocess)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, horizon, stage.peak)
        contrastive, bag = train_step(model, words, optimizer, images, tokens)
        if (step + 1) % max(1, steps // EVALUATIONS) == 0 or step + 1 == steps:
            _report(model, name, step + 1, contrastive, bag)
            save(model.get_submodule(RECIPES[name].part), result)


def _report(model, name: str, step: int, contrastive: float, bag: float) -> None:
    accuracies = ", ".join(f"{key} {value:.1f}" for key, value in zero_shot(model, RECIPES[name].clip).items())
    scale = model.logit_scale.exp().item()
    tqdm.write(
        f"{time.strftime('%X')} {name} step {step}: contrastive {contrastive:.3f}, words {bag:.3f}, scale {scale:.1f}, "
        f"zero-shot on training images: {accuracies}"
    )


def main() -> int:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m dho_plugin.data.mini.pretrain", description=__doc__)
    parser.add_argument("model", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, required=True, help="folder of the weights and the corpus")
    parser.add_argument("--samples", type=int, default=0, help="images seen in one short cycle; 0: the recipe's")
    parser.add_argument("--corpus-size", type=int, default=CORPUS_SIZE, help="unique images, 6.9 kB each")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the training")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that render the corpus")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    options = {"samples": args.samples, "corpus_size": args.corpus_size, "seed": args.seed, "workers": args.workers}
    return run_command(lambda: train(args.model, args.out, **options))


if __name__ == "__main__":
    sys.exit(main())
