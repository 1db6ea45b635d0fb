"""Logit distillation that DHO is compared with (DHO, section 4.1), on its data, teacher and budget."""

from __future__ import annotations

from torch import Tensor, nn

from dho_plugin.core.baselines import binary_kd_loss, sskd_loss
from dho_plugin.core.losses import DHOLoss
from dho_plugin.distill_trainer import OneHeadTrainer, WithoutLabels
from dho_plugin.engine.registry import TRAINER_REGISTRY
from dho_plugin.errors import ConfigError


@TRAINER_REGISTRY.register()
class Distill_CEKD(OneHeadTrainer):
    """One head learns labels and teacher (DHO, Eq. 2 and 3; its "SHO")."""

    method, kd_name = "CE + KD (logit)", ""

    def build_kd_head(self, clip) -> nn.Module:
        """Return the one head, in its second role."""
        return self.student.ce_head


@TRAINER_REGISTRY.register()
class Distill_KD(WithoutLabels, Distill_CEKD):
    """One head learns the teacher (DHO, Eq. 3)."""

    method = "KD (logit)"


@TRAINER_REGISTRY.register()
class Distill_SSKD(OneHeadTrainer):
    """Two heads, one for labeled and one for unlabeled images (He et al., 2021); the first one predicts."""

    method = "SSKD"

    def check_cfg(self, cfg) -> None:
        """Check that there are unlabeled images: the second head learns from nothing else."""
        super().check_cfg(cfg)
        if not cfg.TRAINER.DHO.UNLABELED:
            raise ConfigError(
                "TRAINER.DHO.UNLABELED False: Distill_SSKD's second head learns from unlabeled images alone; "
                "Distill_CEKD is SSKD without them"
            )

    def objective(self, logits_ce: Tensor, labels: Tensor, taught: Tensor, targets: Tensor) -> DHOLoss:
        """Return the loss of a step."""
        dho, n = self.cfg.TRAINER.DHO, len(labels)
        unlabeled = (taught[n:], targets[n:]) if len(taught) > n else ()
        options = {"eta": dho.ETA, "eta2": dho.KD_ETA2, "soft": self.cfg.TRAINER.DISTILL.SOFT_LABELS}
        return sskd_loss(logits_ce, labels, targets[:n], *unlabeled, lambda_=self.lambda_(), **options)


@TRAINER_REGISTRY.register()
class Distill_DHKD(OneHeadTrainer):
    """The second head learns the teacher's logits, class by class (DHKD, Yang et al., 2024); the first one predicts."""

    method = "DHKD"

    def distillation(self, taught: Tensor, targets: Tensor) -> Tensor:
        """Return the weighted binary loss."""
        node = self.cfg.TRAINER.DISTILL
        return node.BINARY_WEIGHT * binary_kd_loss(taught, targets, node.BINARY_T, node.BINARY_NORM)
