"""Linear evaluation: a linear head on frozen CLIP image features, with and without DHO (DHO, appendix D.2)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dho_plugin.dho_trainer import DHOTrainer
from dho_plugin.engine.data import ClassInfo
from dho_plugin.engine.registry import TRAINER_REGISTRY
from dho_plugin.engine.rules import INITS, check_rules, one_of
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.student import CLIPStudent, Student


class LinearProbeStudent(CLIPStudent):
    """A frozen CLIP image encoder under a linear head, logits = W z + b, or a non-linear one.

    Args:
        clip: the frozen CLIP.
        ce_head: (B, D) features -> (B, C) logits.
    """

    def __init__(self, clip: LoadedCLIP, ce_head: nn.Module):
        super().__init__(clip)
        self.ce_head = ce_head

    def logits_ce(self, features: Tensor) -> Tensor:
        """Return the head's logits, (B, C) float32."""
        return self.ce_head(features)

    def learnable(self) -> dict[str, nn.Module]:
        """Return the head."""
        return {"ce_head": self.ce_head}


@TRAINER_REGISTRY.register()
class LinearProbe(DHOTrainer):
    """Linear evaluation with language-aware initialization (Li et al., ELEVATER, NeurIPS 2022)."""

    cfg_node = "LINEARPROBE"

    def check_cfg(self, cfg) -> None:
        """Check TRAINER.LINEARPROBE.*."""
        super().check_cfg(cfg)
        node = cfg.TRAINER.LINEARPROBE
        inits = INITS if node.HEAD == "linear" else ("kaiming",)
        check_rules(node, {"HEAD": one_of("linear", "mlp"), "INIT": one_of(*inits)}, "TRAINER.LINEARPROBE.")

    def build_student(self, clip: LoadedCLIP, classes: Sequence[ClassInfo]) -> Student:
        """Return the linear probe."""
        node = self.cfg.TRAINER.LINEARPROBE
        return LinearProbeStudent(clip, self.build_ce_head(clip, node.INIT, node.HEAD))


@TRAINER_REGISTRY.register()
class LinearProbe_DHO(LinearProbe):
    """Linear evaluation with a KD head beside the CE head, on the same frozen features."""

    dho = True
