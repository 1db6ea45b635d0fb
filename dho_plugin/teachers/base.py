"""What all teachers are: a frozen image encoder, and a classifier on its features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class FrozenTeacher(nn.Module):
    """Images -> features -> logits, never trained; a teacher gives the classifier as `forward`.

    Args:
        model: the encoder's weights.
        encode_image: images (B, 3, H, W) -> features (B, D).
    """

    def __init__(self, model: nn.Module, encode_image: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model: nn.Module | None = model
        self._encode_image: Callable[[Tensor], Tensor] | None = encode_image

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stay in evaluation mode: a teacher is never trained."""
        return super().train(False)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the features (B, D) of images (B, 3, H, W) in the teacher's own size and normalization."""
        return self._encode_image(images)

    def drop_encoder(self) -> None:
        """Let go of the encoder, where all features are stored: a large one fills a good part of a GPU."""
        self.model = self._encode_image = None
