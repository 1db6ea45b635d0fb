"""Choose the mini world's A set again: `python -m dho_plugin.data.mini.reference --corpus DIR --out FILE`.

As ImageNet-A was: hard photos that a separate, supervised classifier gets wrong. The classifier is a small convnet,
neither a student nor a teacher, trained with labels on a part of the pretraining corpus.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from dho_plugin.data.mini.corpus import CORPUS_SIZE, corpus_images, corpus_labels
from dho_plugin.data.mini.learning import normalize, resize
from dho_plugin.data.mini.render import render
from dho_plugin.data.mini.sets import SET_BY_NAME
from dho_plugin.data.mini.world import CLASSES
from dho_plugin.engine.files import atomic_write_text
from dho_plugin.engine.views import Preprocess

IMAGES, BATCH, STEPS, LEARNING_RATE = 60_000, 128, 600, 3e-3
PREPROCESS = Preprocess(size=32, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def _layer(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _classifier() -> nn.Sequential:
    widths, strides = (3, 24, 48, 48, 96, 192), (1, 2, 1, 2, 2)
    layers = [_layer(a, b, s) for a, b, s in zip(widths[:-1], widths[1:], strides, strict=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], len(CLASSES)))


def _pixels(images: np.ndarray) -> torch.Tensor:
    """(N, H, W, 3) uint8 images to normalized (N, 3, 32, 32) float32 in channels-last order."""
    small = resize(torch.from_numpy(images).permute(0, 3, 1, 2), PREPROCESS.size)
    return normalize(small, PREPROCESS).contiguous(memory_format=torch.channels_last)


def train_reference(images: np.ndarray, labels: np.ndarray, steps: int = STEPS, seed: int = 1) -> nn.Module:
    """Train the reference classifier.

    Args:
        images: (N, H, W, 3) uint8.
        labels: (N,) int64.
        steps: number of steps.
        seed: seed of weights and batches.

    Returns:
        The classifier in eval mode; it maps normalized (B, 3, 32, 32) to (B, 100) logits.
    """
    torch.manual_seed(seed)
    net, targets = _classifier(), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=0.05)
    for step in tqdm(range(steps), desc="reference", mininterval=5):
        rows = torch.randint(0, len(images), (BATCH,))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / 50) * (1 - step / steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(_pixels(images[rows.numpy()])).float()
        optimizer.zero_grad()
        F.cross_entropy(logits, targets[rows]).backward()
        optimizer.step()
    return net.eval()


@torch.inference_mode()
def hard_indices(net: nn.Module) -> list[int]:
    """Return the numbers of the hard photos that the classifier gets wrong among the classes of the A set."""
    spec = SET_BY_NAME["imagenet_a"]
    pool, columns = np.arange(spec.per_class * len(spec.labels)), torch.tensor(spec.labels)
    wrong = []
    for block in np.array_split(pool, 24):
        logits = net(_pixels(render(spec.parameters(block))))
        guesses = columns[logits[:, columns].argmax(1)].numpy()
        wrong += block[guesses != spec.label_of(block)].tolist()
    return wrong


def main() -> None:
    """Read the command line, train the classifier and write the list."""
    parser = argparse.ArgumentParser(prog="python -m dho_plugin.data.mini.reference", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="the --out folder of the pretraining")
    parser.add_argument("--out", type=Path, required=True, help="the JSON file, adversarial.json in the package")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images = corpus_images(args.corpus / f"images_{CORPUS_SIZE}.npy", CORPUS_SIZE, os.cpu_count() or 1)[:IMAGES]
    indices = hard_indices(train_reference(images, corpus_labels(np.arange(IMAGES))))
    atomic_write_text(args.out, json.dumps({"indices": indices}) + "\n")
    print(f"{len(indices)} hard photos written to {args.out}")


if __name__ == "__main__":
    main()
