"""DHO into a compact student that learns as a whole, and its student trained on labels alone."""

from __future__ import annotations

from dho_plugin.distill_trainer import DistillTrainer
from dho_plugin.engine.registry import TRAINER_REGISTRY


@TRAINER_REGISTRY.register()
class Distill_CE(DistillTrainer):
    """Cross-entropy on the labeled images (DHO, Eq. 2)."""

    method = "CE"


@TRAINER_REGISTRY.register()
class Distill_DHO(DistillTrainer):
    """Dual-Head Optimization (DHO, Algorithm 1): h_CE learns the labels, h_KD the teacher, both the encoder."""

    dho, method = True, "DHO"

    def display_name(self) -> str:
        """Return the name; with a few-shot teacher the method is the paper's DHO-F."""
        return super().display_name() + ("-F" if self.cfg.TRAINER.DHO.TEACHER.TYPE == "few_shot" else "")
