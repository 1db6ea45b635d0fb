"""The zero-shot teacher: a frozen CLIP with the class prompts' features as its classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.zeroshot import zero_shot_head
from dho_plugin.teachers.base import FrozenTeacher


class ZeroShotTeacher(FrozenTeacher):
    """Logits cos(f_X(x), f_T(t_c)) / zeta of a frozen CLIP (DHO, Eq. 1), from its image features.

    Args:
        clip: the teacher.
        classnames: C names, in the student's class order.
        templates: prompt templates with one `{}`; their features are averaged.
        zeta: temperature; 0 takes the one that comes with the weights.
    """

    def __init__(self, clip: LoadedCLIP, classnames: Sequence[str], templates: Sequence[str], zeta: float = 0.0):
        super().__init__(clip.model, clip.encode_image)
        self.head = zero_shot_head(clip, classnames, templates, zeta)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, C) fp32 of its features (B, D), fresh or stored."""
        return self.head(features)
