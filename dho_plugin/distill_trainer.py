"""What all distillation methods share: a student whose whole image encoder learns, and which heads it has."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dho_plugin.core.baselines import over_batches
from dho_plugin.core.heads import HEADS
from dho_plugin.core.losses import DHOLoss, ce_loss, kd_loss, weighted
from dho_plugin.dho_trainer import DHOTrainer
from dho_plugin.engine.data import ClassInfo, ImageList
from dho_plugin.engine.rules import INITS, POSITIVE, check_rules, one_of
from dho_plugin.errors import ConfigError
from dho_plugin.models.backbones import LoadedBackbone, is_backbone, load_backbone, merging, require_known
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.student import BackboneStudent, Student


class DistillTrainer(DHOTrainer):
    """Distillation into a student that learns as a whole; a method says what its teacher teaches.

    The student is timm's of any name, or a CLIP's image encoder. Labeled and unlabeled images go through it in one
    batch, so that BatchNorm sees both. Several processes have BatchNorm statistics of their own shares; the running
    ones, with which is evaluated, are averaged after each epoch.
    """

    cfg_node = "DISTILL"
    encoder_learns, cosine_by_step = True, True
    method = ""  # the method's name in tables

    # Set-up -----------------------------------------------------------------------------------------------------

    def check_cfg(self, cfg) -> None:
        """Check TRAINER.DISTILL.*, and what a student without text cannot have."""
        super().check_cfg(cfg)
        node, dho, student = cfg.TRAINER.DISTILL, cfg.TRAINER.DHO, cfg.MODEL.BACKBONE
        rules = {"CE_HEAD": one_of(*HEADS), "INIT": one_of(*INITS)}
        rules |= dict.fromkeys(("FEATURE_WEIGHT", "BINARY_WEIGHT", "BINARY_T"), POSITIVE)
        check_rules(node, rules, "TRAINER.DISTILL.")
        inits = {"TRAINER.DISTILL.INIT": node.INIT}
        if self.dho and self.kd_name == "kd_head":
            inits["TRAINER.DHO.INIT"] = dho.INIT
        if is_backbone(student.NAME, student.TAG) and (wrong := [key for key in inits if inits[key] == "language"]):
            raise ConfigError(
                f"{' and '.join(wrong)} language: {student.NAME} has no text encoder whose class features heads could "
                "start from; use kaiming, or a CLIP student such as ViT-B/16"
            )
        if self.dho and dho.TEACHER.TYPE == "placebo":
            raise ConfigError(
                f"TRAINER.DHO.TEACHER.TYPE placebo: the student of {type(self).__name__} learns as a whole: it is no "
                "fixed teacher of its own; name another teacher"
            )

    def load_student(self) -> LoadedCLIP | LoadedBackbone:
        """Load the student that MODEL.BACKBONE names: timm's, or a CLIP."""
        node = self.cfg.MODEL.BACKBONE
        if not is_backbone(node.NAME, node.TAG):
            require_known(node.NAME, "MODEL.BACKBONE")
            if not node.PRETRAINED:
                raise ConfigError(
                    f"MODEL.BACKBONE.PRETRAINED False: {node.NAME} is a CLIP, which comes with its weights"
                )
            if node.SIZE:
                raise ConfigError(f"MODEL.BACKBONE.SIZE {node.SIZE}: {node.NAME} is a CLIP, whose weights say its size")
            return super().load_student()
        of_file = {"pretrained": node.PRETRAINED, "ckpt": node.CKPT, "size": node.SIZE}
        return merging(load_backbone(node.NAME, **of_file, weights=self.initial_weights), self.cfg.MODEL.TOME_R)

    def build_student(self, clip: LoadedCLIP | LoadedBackbone, classes: Sequence[ClassInfo]) -> Student:
        """Return the encoder under a CE head."""
        return BackboneStudent(clip, self.build_ce_head(clip, self.cfg.TRAINER.DISTILL.INIT))

    def build_ce_head(self, clip: LoadedCLIP | LoadedBackbone, init: str) -> nn.Module:
        """Return h_CE of the kind TRAINER.DISTILL.CE_HEAD; language-aware, a linear one has unit rows."""
        return self.head(self.cfg.TRAINER.DISTILL.CE_HEAD, clip, init, clip.feature_dim)

    def display_name(self) -> str:
        """Return the method's name behind its student's, as `resnet18 CE + KD (logit)`; unusual heads stand between."""
        node, heads = self.cfg.MODEL.BACKBONE, ", ".join(self.unusual_heads())
        scratch = is_backbone(node.NAME, node.TAG) and not node.PRETRAINED and not node.CKPT
        return f"{node.NAME}{' from scratch' if scratch else ''}{f' ({heads})' if heads else ''} {self.method}"

    def unusual_heads(self) -> list[str]:
        """Return how the heads differ from the paper's main runs, as in its Tables 5 and 14: `h_KD kaiming linear`."""
        node, dho, student = self.cfg.TRAINER.DISTILL, self.cfg.TRAINER.DHO, self.cfg.MODEL.BACKBONE
        kind, init = ("linear", "kaiming") if is_backbone(student.NAME, student.TAG) else ("cosine", "language")
        heads = {"h_CE": ((node.INIT, init), (node.CE_HEAD, "linear"))}
        if self.dho and self.kd_name == "kd_head":
            heads["h_KD"] = ((dho.INIT, init), (dho.KD_HEAD, kind))
        unusual = {name: [own for own, usual in pairs if own != usual] for name, pairs in heads.items()}
        return [" ".join([name, *words]) for name, words in unusual.items() if words]

    # Training ---------------------------------------------------------------------------------------------------

    def after_epoch(self) -> None:
        """Let all processes have the same running statistics, then validate and save."""
        if self.accelerator.num_processes > 1:
            for buffer in self.student.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.accelerator.reduce(buffer, reduction="mean"))
        super().after_epoch()


class OneHeadTrainer(DistillTrainer):
    """A method that predicts with one head: lambda * CE + (1 - lambda) * what the teacher teaches."""

    dho, predicts_with_kd = True, False

    def distillation(self, taught: Tensor, targets: Tensor) -> Tensor:
        """Return L_KD of one batch: that of the logits (DHO, Eq. 3)."""
        return kd_loss(taught, targets, self.cfg.TRAINER.DHO.ETA, self.cfg.TRAINER.DHO.KD_ETA2)

    def objective(self, logits_ce: Tensor, labels: Tensor, taught: Tensor, targets: Tensor) -> DHOLoss:
        """Return the loss of a step."""
        kd = over_batches(self.distillation, taught, targets, len(labels))
        return weighted(ce_loss(logits_ce, labels), kd, self.lambda_())


class WithoutLabels(OneHeadTrainer):
    """A method that looks at no label: both streams show all training images, so a step has as many as DHO's."""

    learns_labels = False

    def lambda_(self) -> float:
        """Return 0: nothing is supervised."""
        return 0.0

    def first_stream(self) -> ImageList:
        """Return all training images."""
        return self.dataset.train_x + self.dataset.train_u

    def objective(self, logits_ce: Tensor, labels: Tensor, taught: Tensor, targets: Tensor) -> DHOLoss:
        """Return the distillation loss alone."""
        kd = over_batches(self.distillation, taught, targets, len(labels))
        return weighted(kd.new_zeros(()), kd, 0.0)
