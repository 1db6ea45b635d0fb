"""VPT: learned prompts in the image transformer (Jia et al., ECCV 2022), with and without DHO."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dho_plugin.dho_trainer import DHOTrainer
from dho_plugin.engine.data import ClassInfo
from dho_plugin.engine.registry import TRAINER_REGISTRY
from dho_plugin.engine.rules import BELOW_ONE, INITS, at_least, check_rules, one_of
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.deep_prompts import VisualPrompts, check_depth
from dho_plugin.models.image_tower import vision_layers, vision_width
from dho_plugin.models.student import CLIPStudent, Student
from dho_plugin.models.zeroshot import zero_shot_head


class VPTStudent(CLIPStudent):
    """Visual prompts in a frozen CLIP's image transformer under a linear head or a fixed text classifier.

    Args:
        clip: the frozen CLIP.
        prompts: the visual prompts.
        ce_head: (B, D) features -> (B, C) logits; it learns where its parameters require a gradient.
        dropout: rate at which values of the prompts are zeroed in training.
    """

    def __init__(self, clip: LoadedCLIP, prompts: VisualPrompts, ce_head: nn.Module, dropout: float = 0.0):
        super().__init__(clip, prompts, dropout)
        self.prompt_learner = nn.ModuleDict({"image_encoder": prompts})
        self.ce_head = ce_head
        self.open_vocabulary = "ce_head" not in self.learnable()

    def logits_ce(self, features: Tensor) -> Tensor:
        """Return W z + b, or cos / zeta to the text features, (B, C) float32."""
        return self.ce_head(features)

    def learnable(self) -> dict[str, nn.Module]:
        """Return the prompts, under the name and keys that MaPLe's code gives them, and the head if it learns."""
        learns = any(parameter.requires_grad for parameter in self.ce_head.parameters())
        return {"prompt_learner": self.prompt_learner} | ({"ce_head": self.ce_head} if learns else {})


@TRAINER_REGISTRY.register()
class VPT(DHOTrainer):
    """Visual Prompt Tuning, https://arxiv.org/abs/2203.12119: prompts in the first PROMPT_DEPTH_VISION layers."""

    cfg_node = "VPT"

    def check_cfg(self, cfg) -> None:
        """Check TRAINER.VPT.*; the depth is checked against the model."""
        super().check_cfg(cfg)
        node = cfg.TRAINER.VPT
        heads = {"INIT": one_of(*INITS), "HEAD": one_of("linear", "text")}
        check_rules(node, {**heads, "N_CTX_VISION": at_least(1), "DROPOUT": BELOW_ONE}, "TRAINER.VPT.")

    def display_name(self) -> str:
        """Return the name with the depth, as the paper's Table 13 has it."""
        return super().display_name().replace("VPT", f"VPT-{self.cfg.TRAINER.VPT.PROMPT_DEPTH_VISION}")

    def build_student(self, clip: LoadedCLIP, classes: Sequence[ClassInfo]) -> Student:
        """Return VPT's student."""
        node = self.cfg.TRAINER.VPT
        check_depth("TRAINER.VPT.PROMPT_DEPTH_VISION", node.PROMPT_DEPTH_VISION, vision_layers(clip))
        prompts = VisualPrompts(node.N_CTX_VISION, vision_width(clip), node.PROMPT_DEPTH_VISION)
        head = self.build_ce_head(clip, node.INIT) if node.HEAD == "linear" else self.text_head(clip, classes)
        return VPTStudent(clip, prompts, head, node.DROPOUT)

    def text_head(self, clip: LoadedCLIP, classes: Sequence[ClassInfo]) -> nn.Module:
        """Return the frozen classifier cos / zeta to the text features of CTX_INIT and the class names."""
        template = self.cfg.TRAINER.VPT.CTX_INIT.replace("_", " ") + " {}."
        return zero_shot_head(clip, [info.name for info in classes], [template.strip()])


@TRAINER_REGISTRY.register()
class VPT_DHO(VPT):
    """VPT with a KD head: both losses reach the prompts through the shared features."""

    dho = True
