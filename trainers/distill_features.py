"""Feature distillation as in CLIP-KD (Yang et al., CVPR 2024), with and without labels (DHO, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dho_plugin.core.baselines import feature_loss
from dho_plugin.core.heads import LinearHead, cosine_logits
from dho_plugin.distill_trainer import OneHeadTrainer, WithoutLabels
from dho_plugin.engine.data import ClassInfo
from dho_plugin.engine.registry import TRAINER_REGISTRY
from dho_plugin.errors import ConfigError
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.student import BackboneStudent, Student
from dho_plugin.models.zeroshot import class_features

WIDTH = 512  # of the features that CLIP-KD's weight of 2000 is meant for


class FeatureDistillation(OneHeadTrainer):
    """The student's features, through a learned projection where widths differ, follow the teacher's (CLIP-KD)."""

    kd_name = "projection"
    needs_text = False  # whether the teacher's text features classify the student's
    _teacher_clip: LoadedCLIP | None = None

    def check_cfg(self, cfg) -> None:
        """Check that the teacher's features say what it has learned."""
        kind = cfg.TRAINER.DHO.TEACHER.TYPE
        if kind == "few_shot":
            raise ConfigError(
                f"TRAINER.DHO.TEACHER.TYPE few_shot: {type(self).__name__} learns the teacher's features, and what "
                "Tip-Adapter has learned lies behind them; use zero_shot, or a method that distils logits"
            )
        if kind == "run" and self.needs_text:
            raise ConfigError(
                f"TRAINER.DHO.TEACHER.TYPE run: {type(self).__name__} classifies by the teacher's text features, which "
                "a run does not have; use zero_shot, or Distill_CEKDFeature"
            )
        super().check_cfg(cfg)

    def load_teacher(self) -> LoadedCLIP:
        """Return the teacher's CLIP, which is needed for its width before training starts."""
        if self._teacher_clip is None:
            self._teacher_clip = super().load_teacher()
        return self._teacher_clip

    def before_train(self) -> None:
        """Prepare training; where its features are stored, the teacher's encoder is let go."""
        super().before_train()
        self._teacher_clip = None

    def build_kd_head(self, clip) -> nn.Module:
        """Return the projection; where the student is loaded to answer, it has none, and the teacher is not needed."""
        if not (self.initial_weights or self.needs_text):
            self.kd_name = ""
            return nn.Identity()
        width = self.load_teacher().feature_dim
        same = clip.feature_dim == width
        self.kd_name = "" if same else "projection"
        return nn.Identity() if same else LinearHead(clip.feature_dim, width)

    def teacher_targets(self, batches: Sequence[dict]) -> Tensor:
        """Return the teacher's features (B + B', D)."""
        return self.teacher_features(batches)

    def distillation(self, taught: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted squared difference of the unit features.

        Its weight is CLIP-KD's at D = 512. The mean over D entries is smaller for wider features, by 512 / D.
        """
        return self.cfg.TRAINER.DISTILL.FEATURE_WEIGHT * taught.shape[-1] / WIDTH * feature_loss(taught, targets)


@TRAINER_REGISTRY.register()
class Distill_CEKDFeature(FeatureDistillation):
    """A head learns the labels, the features below it the teacher's."""

    method = "CE + KD (feature)"


class TextHead(nn.Module):
    """A fixed classifier cos(z, t_c) / zeta, saved with the student: whatever it is evaluated on, it stays the same.

    Args:
        text: (C, D) class features.
        zeta: temperature, > 0.
    """

    def __init__(self, text: Tensor, zeta: float):
        super().__init__()
        self.register_buffer("text", text)
        self.zeta = zeta

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, C) of features (B, D)."""
        return cosine_logits(features, self.text, self.zeta)


class ProjectedStudent(BackboneStudent):
    """A student that is classified as the teacher is: its projected features against the teacher's text features.

    Args:
        backbone: the image encoder.
        projection: (B, D) -> (B, D').
        text_head: the teacher's zero-shot classifier of features (B, D').
    """

    def __init__(self, backbone, projection: nn.Module, text_head: nn.Module):
        super().__init__(backbone, text_head)
        self.projection = projection

    def logits_ce(self, features: Tensor) -> Tensor:
        """Return cos / zeta of the projected features and the teacher's text features, (B, C) float32."""
        return self.ce_head(self.projection(features))

    def learnable(self) -> dict[str, nn.Module]:
        """Return the image encoder; the classifier is the teacher's."""
        return {"backbone": self.backbone}


@TRAINER_REGISTRY.register()
class Distill_KDFeature(WithoutLabels, FeatureDistillation):
    """The features alone follow the teacher's; its text features classify them."""

    method, needs_text = "KD (feature)", True

    def build_student(self, clip, classes: Sequence[ClassInfo]) -> Student:
        """Return the student with its projection."""
        teacher, names = self.load_teacher(), [info.name for info in classes]
        text = class_features(teacher, names, self.templates())
        head = TextHead(text, self.cfg.TRAINER.DHO.ZETA or teacher.zeta)
        return ProjectedStudent(clip, FeatureDistillation.build_kd_head(self, clip), head)

    def build_model(self) -> None:
        """Build the model; the classifier is saved, though nothing of it learns."""
        super().build_model()
        self.register_model("ce_head", self.student.ce_head)

    def build_kd_head(self, clip) -> nn.Module:
        """Return the student's projection."""
        return self.student.projection
