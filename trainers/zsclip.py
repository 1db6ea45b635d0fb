"""Zero-shot CLIP, the reference rows of every table; nothing learns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dho_plugin.dho_trainer import DHOTrainer
from dho_plugin.engine.data import ClassInfo
from dho_plugin.engine.registry import TRAINER_REGISTRY
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.student import CLIPStudent, Student
from dho_plugin.models.templates import templates_for
from dho_plugin.models.zeroshot import zero_shot_head


class ZeroshotStudent(CLIPStudent):
    """A CLIP with the class prompts' features as its classifier (DHO, Eq. 1).

    Args:
        clip: the CLIP.
        head: its frozen zero-shot classifier.
    """

    def __init__(self, clip: LoadedCLIP, head: nn.Module):
        super().__init__(clip)
        self.head = head

    def logits_ce(self, features: Tensor) -> Tensor:
        """Return cos / zeta, (B, C)."""
        return self.head(features)

    def learnable(self) -> dict[str, nn.Module]:
        """Return nothing."""
        return {}


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(DHOTrainer):
    """Zero-shot CLIP with the data set's one hand-written template, as in CoOp's code."""

    cfg_node = "ZSCLIP"

    def templates(self) -> tuple[str, ...]:
        """Return DATASET.TEMPLATES, else the one template."""
        return tuple(self.cfg.DATASET.TEMPLATES) or templates_for(self.cfg.DATASET.NAME, ensemble=False)

    def display_name(self) -> str:
        """Return the row's name: the method is the model."""
        return f"CLIP zero-shot {self.clip().name}"

    def build_student(self, clip: LoadedCLIP, classes: Sequence[ClassInfo]) -> Student:
        """Return the zero-shot classifier."""
        return ZeroshotStudent(clip, zero_shot_head(clip, [info.name for info in classes], self.templates()))


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(ZeroshotCLIP):
    """Zero-shot CLIP with the ensemble of templates (ImageNet's seven), the teacher of DHO."""

    def templates(self) -> tuple[str, ...]:
        """Return DATASET.TEMPLATES, else the ensemble."""
        return tuple(self.cfg.DATASET.TEMPLATES) or templates_for(self.cfg.DATASET.NAME)
