"""PromptSRC: self-regulating prompts in both towers (Khattak et al., ICCV 2023), with and without DHO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from dho_plugin.core.heads import cosine_logits
from dho_plugin.core.losses import self_consistency_loss
from dho_plugin.dho_trainer import DHOTrainer
from dho_plugin.engine.averaging import WeightedSum, gaussian_weights
from dho_plugin.engine.data import ClassInfo
from dho_plugin.engine.registry import TRAINER_REGISTRY
from dho_plugin.errors import ConfigError
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.deep_prompts import DeepPrompts, VisualPrompts, check_depth
from dho_plugin.models.image_tower import vision_layers, vision_width
from dho_plugin.models.prompts import PromptLearner
from dho_plugin.models.student import CLIPStudent, Student
from dho_plugin.models.templates import PROMPTSRC_TEMPLATES
from dho_plugin.models.text_classifier import TextClassifier
from dho_plugin.models.text_tower import TextTower
from dho_plugin.models.zeroshot import class_features


class PromptSRCStudent(CLIPStudent):
    """Prompts in both towers of a frozen CLIP, held near the frozen CLIP's features and logits.

    Args:
        clip: the frozen CLIP.
        prompts: the learned parts: `prompt_learner`, `text_encoder` and, with visual prompts, `image_encoder`.
        weights: the weights of the text and of the image loss.

    Attributes:
        fixed_text: (C, D) text features of the frozen CLIP; set before training, evaluation does without.
    """

    fixed_text: Tensor
    open_vocabulary = True
    wants_frozen = True

    def __init__(self, clip: LoadedCLIP, prompts: nn.ModuleDict, weights: tuple[float, float]):
        super().__init__(clip, dict(prompts).get("image_encoder"))
        self.prompts, self.weights = prompts, weights
        self.text_classifier = TextClassifier(prompts["prompt_learner"], TextTower(clip), prompts["text_encoder"])
        self.text_path = self.text_classifier.path

    def logits_ce(self, features: Tensor) -> Tensor:
        """Return the prompted text classifier's logits, (B, C) float32."""
        self._text = self.text_classifier()
        return cosine_logits(features, self._text, self.zeta)

    def extra_loss(self, images: Tensor, features: Tensor, logits_ce: Tensor, frozen: Tensor | None = None) -> Tensor:
        """Return the weighted self-consistency losses on the labeled batch."""
        fixed = self.frozen_features(images) if frozen is None else frozen
        fixed_logits = cosine_logits(fixed, self.fixed_text, self.zeta)
        loss = self_consistency_loss(self._text, self.fixed_text, features, fixed, logits_ce, fixed_logits)
        return self.weights[0] * loss.text + self.weights[1] * loss.image + loss.logits

    def learnable(self) -> dict[str, nn.Module]:
        """Return the prompts of both towers, under the original's name and keys."""
        return {"VLPromptLearner": self.prompts}


@TRAINER_REGISTRY.register()
class PromptSRC(DHOTrainer):
    """Self-regulating prompts, https://arxiv.org/abs/2307.06948."""

    cfg_node = "PROMPTSRC"

    def check_cfg(self, cfg) -> None:
        """Check TRAINER.PROMPTSRC.*; the depths are checked against the model."""
        super().check_cfg(cfg)
        node = cfg.TRAINER.PROMPTSRC
        for key in ("N_CTX_TEXT", "N_CTX_VISION"):
            if node[key] < 1:
                raise ConfigError(f"TRAINER.PROMPTSRC.{key} is {node[key]}; it must be at least 1")
        gaussian_weights(cfg.OPTIM.MAX_EPOCH, node.GPA_MEAN, node.GPA_STD)

    def build_student(self, clip: LoadedCLIP, classes: Sequence[ClassInfo]) -> Student:
        """Return PromptSRC's student."""
        node, names = self.cfg.TRAINER.PROMPTSRC, [info.name for info in classes]
        return PromptSRCStudent(clip, self.build_prompts(clip, names), (node.TEXT_LOSS_WEIGHT, node.IMAGE_LOSS_WEIGHT))

    def build_prompts(self, clip: LoadedCLIP, names: list[str]) -> nn.ModuleDict:
        """Return the learned parts of both towers, named as in the original's checkpoints."""
        node, tower = self.cfg.TRAINER.PROMPTSRC, TextTower(clip)
        depth_text, depth_vision = node.PROMPT_DEPTH_TEXT, node.PROMPT_DEPTH_VISION
        check_depth("TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", depth_text, tower.layers)
        check_depth("TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", depth_vision, vision_layers(clip), lowest=0)
        init = node.CTX_INIT if node.N_CTX_TEXT <= 4 else ""  # as in the original
        key = "TRAINER.PROMPTSRC.N_CTX_TEXT"
        prompts = nn.ModuleDict({
            "prompt_learner": PromptLearner(names, tower, n_ctx=node.N_CTX_TEXT, ctx_init=init, key=key),
            "text_encoder": DeepPrompts(node.N_CTX_TEXT, tower.width, depth_text),
        })  # fmt: skip
        if depth_vision:
            prompts["image_encoder"] = VisualPrompts(node.N_CTX_VISION, vision_width(clip), depth_vision)
        return prompts

    def build_model(self) -> None:
        """Build the model and the running average of all that learns, the KD head included."""
        super().build_model()
        node = self.cfg.TRAINER.PROMPTSRC
        self.gpa_weights = gaussian_weights(self.max_epoch, node.GPA_MEAN, node.GPA_STD)
        self.average = WeightedSum(self._models)

    def before_train(self) -> None:
        """Encode the fixed text features, then prepare training."""
        own = tuple(self.cfg.TRAINER.PROMPTSRC.TEMPLATES) or tuple(self.cfg.DATASET.TEMPLATES)
        names, templates = [info.name for info in self.classes], own or PROMPTSRC_TEMPLATES
        self.student.fixed_text = class_features(self.clip(), names, templates, normalize_each=False)
        super().before_train()

    def after_epoch(self) -> None:
        """Add the epoch to the average; after the last one the average is the model."""
        self.average.add(self.gpa_weights[self.epoch])
        if self.epoch + 1 == self.max_epoch:
            print("Using the Gaussian-weighted average of all epochs (GPA) for the final inference")
            self.average.copy_to_parameters()
        super().after_epoch()

    def checkpoint_meta(self) -> dict:
        """Return what goes into every checkpoint, with the running average."""
        return {**super().checkpoint_meta(), "gpa": self.average.state_dict()}

    def load_model(self, directory: str | Path, epoch: int | None = None, *, train_state: bool = False) -> dict:
        """Load a run's weights and, to go on with training, its running average."""
        meta = super().load_model(directory, epoch, train_state=train_state)
        if train_state:
            self.average.load_state_dict(meta.get("gpa", {}), sum(self.gpa_weights[: meta["epoch"]]))
        return meta


@TRAINER_REGISTRY.register()
class PromptSRC_DHO(PromptSRC):
    """PromptSRC with a KD head on the prompted image features; lambda weighs PromptSRC's whole loss."""

    dho = True
