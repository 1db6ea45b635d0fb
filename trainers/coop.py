"""CoOp: learned context words in front of the class names (Zhou et al., IJCV 2022), with and without DHO."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dho_plugin.core.heads import cosine_logits
from dho_plugin.dho_trainer import DHOTrainer
from dho_plugin.engine.data import ClassInfo
from dho_plugin.engine.registry import TRAINER_REGISTRY
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.prompts import PromptLearner, check_prompts
from dho_plugin.models.student import CLIPStudent, Student
from dho_plugin.models.text_classifier import TextClassifier
from dho_plugin.models.text_tower import TextTower


class CoOpStudent(CLIPStudent):
    """A frozen CLIP whose text classifier is built from learned prompts: logits = cos(f_X(x), f_T(prompt_c)) / zeta.

    Args:
        clip: the frozen CLIP.
        prompt_learner: the prompts of C classes.
        tower: the text tower that encodes them.
    """

    def __init__(self, clip: LoadedCLIP, prompt_learner: PromptLearner, tower: TextTower):
        super().__init__(clip)
        self.prompt_learner = prompt_learner
        self.text_classifier = TextClassifier(prompt_learner, tower)
        self.text_path = self.text_classifier.path
        self.open_vocabulary = prompt_learner.ctx.dim() == 2  # one context for all classes

    def logits_ce(self, features: Tensor) -> Tensor:
        """Return the prompted text classifier's logits, (B, C) float32."""
        return cosine_logits(features, self.text_classifier(), self.zeta)

    def learnable(self) -> dict[str, nn.Module]:
        """Return the prompt learner, under the original's name."""
        return {"prompt_learner": self.prompt_learner}


@TRAINER_REGISTRY.register()
class CoOp(DHOTrainer):
    """Context Optimization, https://arxiv.org/abs/2109.01134."""

    cfg_node = "COOP"

    def check_cfg(self, cfg) -> None:
        """Check TRAINER.COOP.*."""
        super().check_cfg(cfg)
        node = cfg.TRAINER.COOP
        check_prompts(node.N_CTX, node.CTX_INIT, node.CSC, node.CLASS_TOKEN_POSITION)

    def build_student(self, clip: LoadedCLIP, classes: Sequence[ClassInfo]) -> Student:
        """Return CoOp's student."""
        node, tower = self.cfg.TRAINER.COOP, TextTower(clip)
        prompts = PromptLearner(
            [info.name for info in classes],
            tower,
            n_ctx=None if node.CTX_INIT else node.N_CTX,
            ctx_init=node.CTX_INIT,
            class_specific=node.CSC,
            position=node.CLASS_TOKEN_POSITION,
        )
        return CoOpStudent(clip, prompts, tower)


@TRAINER_REGISTRY.register()
class CoOp_DHO(CoOp):
    """CoOp with a KD head on the frozen image features, trained jointly (DHO, appendix D.2)."""

    dho = True
