"""What a pretraining step of the mini CLIPs consists of: augmentation, losses, optimizer, learning rate."""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dho_plugin.data.mini.captions import FILLERS
from dho_plugin.engine.views import Preprocess
from dho_plugin.models.mini import mini_tokenizer

WEIGHT_DECAY, WARMUP_STEPS, FLOOR = 0.05, 150, 0.01
MAX_LOG_SCALE = math.log(100)


def augment(images: torch.Tensor, size: int, cropped: float, generator: torch.Generator) -> torch.Tensor:
    """Flip half of the batches, crop some of them, and resize as PIL does.

    Args:
        images: (B, H, W, 3) uint8.
        size: side of the result in pixels.
        cropped: share of the batches that are cropped to 50-100% of the area.
        generator: source of the choices, one a batch.

    Returns:
        (B, 3, size, size) uint8.
    """
    flip, crop, area, ratio, dx, dy = torch.rand(6, generator=generator).tolist()
    images = images.permute(0, 3, 1, 2)
    if flip < 0.5:
        images = images.flip(-1)
    if crop < cropped:
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
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, foreach=True)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then a cosine down to FLOOR of the peak."""
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return peak * min(1.0, (step + 1) / WARMUP_STEPS) * (FLOOR + (1 - FLOOR) * cosine)


def train_step(model, words: nn.Linear, optimizer, images: torch.Tensor, tokens: torch.Tensor) -> tuple[float, float]:
    """Take one optimizer step; return the contrastive and the bag-of-words loss."""
    contrastive, bag = losses(model, words, images, tokens, word_targets(tokens, model.vocab_size))
    optimizer.zero_grad()
    (contrastive + bag).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, MAX_LOG_SCALE)
    return contrastive.item(), bag.item()
