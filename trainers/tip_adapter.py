"""Tip-Adapter: a cache model of the labeled images beside CLIP's zero-shot classifier (Zhang et al., ECCV 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dho_plugin.core.tip_adapter import mean_keys, search_cache
from dho_plugin.dho_trainer import DHOTrainer
from dho_plugin.engine.data import ClassInfo
from dho_plugin.engine.fingerprint import weights_fingerprint
from dho_plugin.engine.registry import TRAINER_REGISTRY
from dho_plugin.engine.rules import POSITIVE, Rule, check_rules
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.student import CLIPStudent, Student
from dho_plugin.models.zeroshot import class_features
from dho_plugin.passes import evaluated_features, view_passes
from dho_plugin.teachers.cache_adapter import FILE_NAME, CacheAdapter, write_adapter

TWO_NUMBERS = Rule(lambda pair: len(pair) == 2 and min(pair) > 0, "two numbers above 0, of beta and of alpha")


class TipAdapterStudent(CLIPStudent):
    """A frozen CLIP under f W^T / zeta + alpha exp(-beta (1 - f F_train^T)) L_train.

    Args:
        clip: the frozen CLIP.
        text: (C, D) W, the class prompts' unit features.
        adapter: the cache model.
        training: alpha and beta of training; an evaluation has those of the adapter, which may have been searched.
    """

    def __init__(self, clip: LoadedCLIP, text: Tensor, adapter: CacheAdapter, training: tuple[float, float]):
        super().__init__(clip)
        self.adapter, self.at = adapter, training
        self.register_buffer("text", text, persistent=False)

    def logits_ce(self, features: Tensor) -> Tensor:
        """Return the logits, (B, C) float32."""
        return self.adapter(features, self.text, self.zeta, self.at if self.training else None)

    def learnable(self) -> dict[str, nn.Module]:
        """Return the cache model; of it, the keys learn."""
        return {"adapter": self.adapter}


@TRAINER_REGISTRY.register()
class TipAdapter(DHOTrainer):
    """Tip-Adapter without training, https://arxiv.org/abs/2207.09519."""

    cfg_node = "TIPADAPTER"
    title, learns = "Tip-Adapter", False
    cosine_by_step = True

    def check_cfg(self, cfg) -> None:
        """Check TRAINER.TIPADAPTER.*."""
        super().check_cfg(cfg)
        rules = dict.fromkeys(("ALPHA", "BETA", "PASSES", "EPS"), POSITIVE)
        rules |= dict.fromkeys(("SEARCH_SCALE", "SEARCH_STEP"), TWO_NUMBERS)
        check_rules(cfg.TRAINER.TIPADAPTER, rules, "TRAINER.TIPADAPTER.")

    def display_name(self) -> str:
        """Return the row's name, with the model: a student's table may hold the teacher's as well."""
        return f"{self.title} {self.cfg.MODEL.BACKBONE.NAME}"

    def build_student(self, clip: LoadedCLIP, classes: Sequence[ClassInfo]) -> Student:
        """Return the student with an empty cache model."""
        at = self.cfg.TRAINER.TIPADAPTER.ALPHA, self.cfg.TRAINER.TIPADAPTER.BETA
        keys = len(self.dataset.train_x) if self.dataset else 0  # one without data is about to be loaded
        text = class_features(clip, [info.name for info in classes], self.templates())
        return TipAdapterStudent(clip, text, CacheAdapter(keys, clip.feature_dim, len(classes), *at), at)

    def register_learnable(self, name: str, module: nn.Module, optim_cfg) -> None:
        """Register the cache model, its AdamW with the published epsilon."""
        super().register_learnable(name, module, optim_cfg)
        for group in self._optims[name].param_groups:
            group["eps"] = self.cfg.TRAINER.TIPADAPTER.EPS

    def before_train(self) -> None:
        """Make the cache model, then prepare training; a run that goes on loads it."""
        if len(self.dataset.train_x) and self.common_epoch(self.output_dir) is None:
            features, labels = view_passes(self, self.dataset.train_x, self.cfg.TRAINER.TIPADAPTER.PASSES)
            self.student.adapter.fill(mean_keys(features), labels)
        super().before_train()

    def train_streams(self, start_step: int) -> list[Iterator[dict]]:
        """Return the stream of labeled images, where something is learned from it."""
        return super().train_streams(start_step) if self.learns else []

    def run_epoch(self) -> None:
        """Run one epoch, where something is learned."""
        if self.learns:
            super().run_epoch()

    def after_epoch(self) -> None:
        """Search alpha and beta where this epoch's model may be the last one, then validate and save."""
        final = self.epoch + 1 == self.max_epoch or self.cfg.TEST.FINAL_MODEL == "best_val"
        wanted = self.cfg.TRAINER.TIPADAPTER.SEARCH and self.cfg.TEST.SPLIT == "test"  # not on what is then scored
        if final and wanted and len(self.dataset.val):
            self.search()
        super().after_epoch()

    @torch.no_grad()
    def search(self) -> None:
        """Choose alpha and beta on the validation images."""
        self.set_model_mode("eval")
        student, node = self.student, self.cfg.TRAINER.TIPADAPTER
        features, labels = evaluated_features(self, self.dataset.val, "validation")
        unit = F.normalize(features.float(), dim=-1)
        parts = F.linear(unit, student.text) / student.zeta, F.linear(unit, student.adapter.keys)
        found = search_cache(*parts, student.adapter.values, labels, node.SEARCH_SCALE, node.SEARCH_STEP)
        student.adapter.alpha.fill_(found.alpha)
        student.adapter.beta.fill_(found.beta)
        at = f"alpha {found.alpha:.3f}, beta {found.beta:.3f}"
        print(f"Tip-Adapter's {at}: {found.accuracy:.1f}% on {len(labels):,} validation images")

    def write_results(self) -> None:
        """Write the file that a few-shot teacher is made of, then results.json."""
        if self.accelerator.is_main_process and not self.model_dir:
            clip, classes = self.clip(), [[info.key, info.name] for info in self.classes]
            facts = {"weights": weights_fingerprint(clip.model.visual), "backbone": clip.name}
            path = self.output_dir / FILE_NAME
            write_adapter(path, self.student.adapter, self.student.text, zeta=clip.zeta, classes=classes, **facts)
            print(f"A few-shot teacher can be made of {path}")
        super().write_results()

    def _load_weights(self, name: str, state: dict, path: Path) -> None:
        if "keys" in state and state["keys"].shape[0] != self.student.adapter.keys.shape[0]:
            self.student.adapter.resize(state["keys"].shape[0])
        super()._load_weights(name, state, path)


@TRAINER_REGISTRY.register()
class TipAdapterF(TipAdapter):
    """Tip-Adapter-F: the keys learn."""

    title, learns = "Tip-Adapter-F", True

    def steps_per_epoch(self) -> int:
        """Return as many steps as the released loader takes, whose last batch may be a smaller one; ours are full."""
        return math.ceil(len(self.dataset.train_x) / self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE)
