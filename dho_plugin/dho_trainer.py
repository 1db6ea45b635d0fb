"""The DHO step, exactly once: every method, with and without DHO, is this trainer over another student."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from dho_plugin.caching import FeatureCaching
from dho_plugin.core.heads import build_head
from dho_plugin.core.losses import DHOLoss, dho_loss
from dho_plugin.engine.checkpoint import load_checkpoint, model_path
from dho_plugin.engine.data import ClassInfo
from dho_plugin.engine.device import prepared
from dho_plugin.engine.optim import build_lr_scheduler, build_optimizer
from dho_plugin.engine.probing import GradientProbing
from dho_plugin.engine.trainer import TrainerXU
from dho_plugin.errors import ConfigError
from dho_plugin.evaluation import HeadEvaluation
from dho_plugin.models.backbones import LoadedBackbone
from dho_plugin.models.clip import LoadedCLIP, load_clip
from dho_plugin.models.image_tower import channels_last, checkpoint_images
from dho_plugin.models.student import DualHeadNet, Student
from dho_plugin.models.templates import templates_for
from dho_plugin.models.text_tower import checkpoint_text
from dho_plugin.models.zeroshot import class_features
from dho_plugin.teachers import Teacher, build_teacher, check_teacher, load_teacher, teacher_label


def joined(batches: Sequence[dict], key: str) -> Tensor | None:
    """Return what some batches have under a key as one tensor, None if it is not in them."""
    return torch.cat([batch[key] for batch in batches]) if key in batches[0] else None


class DHOTrainer(FeatureCaching, GradientProbing, HeadEvaluation, TrainerXU):
    """Dual-Head Optimization around a student; without `dho` it is lambda = 1 and no KD head.

    A method gives `build_student` and the config node of its precision; see `trainers/coop.py`.
    """

    dho = False  # a method's `_DHO` twin sets it
    cfg_node = "DHO"  # the method's own node below TRAINER
    kd_name = "kd_head"  # of the checkpoints of what the teacher teaches; "" where it is saved with the student
    encoder_learns = False  # whether all of the image encoder learns, not prompts or heads alone
    cosine_by_step = False  # whether a cosine rate changes with each step, not with each epoch as in Dassl
    predicts_with_kd = True  # whether it is a head that predictions are mixed with (Eq. 11)
    _clip: LoadedCLIP | LoadedBackbone | None = None
    _language: tuple[Sequence[ClassInfo], Tensor] | None = None  # classes, and what heads start from

    def build_student(self, clip: LoadedCLIP, classes: Sequence[ClassInfo]) -> Student:
        """Return the method's student over a frozen CLIP."""
        raise TypeError(f"{type(self).__name__} defines no build_student")

    # Set-up -----------------------------------------------------------------------------------------------------

    def check_cfg(self, cfg) -> None:
        """Check the config, and with DHO that a teacher is named."""
        super().check_cfg(cfg)
        if self.dho:
            check_teacher(cfg)

    def precision(self) -> str:
        """Return the method's PREC.

        Raises:
            ConfigError: the config has no such key.
        """
        if "PREC" not in self.cfg.TRAINER.get(self.cfg_node, {}):
            raise ConfigError(
                f"{type(self).__name__} needs TRAINER.{self.cfg_node}.PREC: add it to dho_plugin/engine/defaults.py, "
                "or set cfg_node to a node that has it"
            )
        return self.cfg.TRAINER[self.cfg_node].PREC

    def uses_unlabeled(self) -> bool:
        """Say whether the KD loss also sees the stream drawn from D(l) and D(u)."""
        return self.dho and self.cfg.TRAINER.DHO.UNLABELED

    def templates(self) -> tuple[str, ...]:
        """Return the prompt templates of the class features: DATASET.TEMPLATES, else the data set's published ones."""
        return tuple(self.cfg.DATASET.TEMPLATES) or templates_for(self.cfg.DATASET.NAME)

    def clip(self) -> LoadedCLIP | LoadedBackbone:
        """Return what the student is built on, loaded once: a CLIP, or an image encoder without text."""
        if self._clip is None:
            self._clip = self.load_student()
            if self.cfg.MODEL.IMAGE_CHECKPOINTING:
                checkpoint_images(self._clip, learns=self.encoder_learns)
            if self.cfg.MODEL.CHANNELS_LAST:
                channels_last(self._clip)
            self._clip.model.to(self.device)  # before its class features: thousands of prompts are slow on a CPU
        return self._clip

    def load_student(self) -> LoadedCLIP | LoadedBackbone:
        """Load the CLIP that MODEL.BACKBONE names."""
        cfg, node = self.cfg.MODEL, self.cfg.MODEL.BACKBONE
        ways = {"text_tower": cfg.TEXT_TOWER, "image_tower": cfg.IMAGE_TOWER, "compile": cfg.COMPILE}
        ways["tome_r"] = cfg.TOME_R
        clip = load_clip(node.NAME, tag=node.TAG, ckpt=node.CKPT, **ways)
        if cfg.TEXT_CHECKPOINTING:
            checkpoint_text(clip)
        return clip

    def build_model(self) -> None:
        """Build the student, the KD head and the teacher, and register what learns."""
        clip = self.clip()
        self.student_preprocess = clip.preprocess
        self.student = self.build_student(clip, self.classes)
        print(f"Image tower: {clip.image_path.name} ({clip.image_path.reason})")
        if self.student.text_path is not None:
            print(f"Text tower: {self.student.text_path.name} ({self.student.text_path.reason})")
        taught = self.build_kd_head(clip) if self.dho else None
        self.kd_head = taught if self.predicts_with_kd else None
        net = DualHeadNet(self.student, taught, self.predicts_with_kd)
        self.net = prepared(net.to(self.device), self.accelerator)
        for name, module in self.student.learnable().items():
            self.register_learnable(name, module, self.cfg.OPTIM)
        if taught is not None and self.kd_name:
            self.register_learnable(self.kd_name, taught, self.kd_optim_cfg())
        self.teacher: Teacher | None = None  # built when training starts; evaluation does without
        self.teacher_label = teacher_label(self.cfg) if self.dho else None

    def build_kd_head(self, clip: LoadedCLIP) -> nn.Module:
        """Return h_KD: cosine-aligned (Eq. 10), linear or non-linear, from class features or Kaiming's draw."""
        dho = self.cfg.TRAINER.DHO
        return self.head(dho.KD_HEAD, clip, dho.INIT, self.student.feature_dim)

    def head(self, kind: str, clip: LoadedCLIP, init: str, width: int) -> nn.Module:
        """Return a head on features of some width; language-aware, its rows are unit text features (section 3.2)."""
        mlp, classes = self.cfg.TRAINER.DHO.MLP, len(self.classes)
        sizes = {"hidden": mlp.HIDDEN, "dropout": mlp.DROPOUT}
        return build_head(kind, width, classes, zeta=clip.zeta, init=self.head_init(clip, init), **sizes)

    def build_ce_head(self, clip: LoadedCLIP, init: str, kind: str = "linear") -> nn.Module:
        """Return h_CE; language-aware, a linear one's rows are unit text features and b is 0 (DHO, section 3.2).

        It takes features of any length, as the authors' released code does: with OpenAI's CLIP, whose image features
        have a length of about 10, training starts from CLIP's zero-shot decisions at a tenth of its scale.
        """
        return self.head(kind, clip, init, clip.feature_dim)

    def head_init(self, clip: LoadedCLIP, init: str) -> Tensor | None:
        """Return the class features (C, D) from which a head starts, encoded once, or None for Kaiming's draw."""
        if init != "language":
            return None
        if self._language is None or self._language[0] != self.classes:
            self._language = self.classes, class_features(clip, [i.name for i in self.classes], self.templates())
        return self._language[1]

    def kd_optim_cfg(self):
        """Return the KD head's optimizer settings: OPTIM's, with TRAINER.DHO.OPTIM's name, rate and decay if named."""
        own, optim = self.cfg.TRAINER.DHO.OPTIM, self.cfg.OPTIM.clone()
        if own.NAME:
            optim.defrost()
            optim.NAME, optim.LR, optim.WEIGHT_DECAY = own.NAME, own.LR, own.WEIGHT_DECAY
        return optim

    def register_learnable(self, name: str, module: nn.Module, optim_cfg) -> None:
        """Register a module with its optimizer and schedule."""
        optim = build_optimizer(module, optim_cfg)
        schedule = build_lr_scheduler(optim, optim_cfg, self.total_steps, by_step=self.cosine_by_step)
        self.register_model(name, module, optim, schedule)

    def before_train(self) -> None:
        """Build the teacher, then prepare training.

        Raises:
            ConfigError: the method has nothing to train.
        """
        if not self.get_model_names():
            raise ConfigError(f"{type(self).__name__} has nothing to train; use --eval-only")
        if self.cfg.MODEL.TOME_R:
            raise ConfigError(f"MODEL.TOME_R is {self.cfg.MODEL.TOME_R}: train with 0, tokens are merged at inference")
        self.check_validation()
        if self.dho:
            clip = self.load_teacher()
            self.teacher = build_teacher(self.cfg, clip, self.classes, self.templates())
        self.open_stores(clip if self.dho else None)
        super().before_train()

    def load_teacher(self) -> LoadedCLIP:
        """Load the teacher's CLIP, and note which images it wants."""
        clip = load_teacher(self.cfg, self.clip())
        self.teacher_preprocess = None if clip.preprocess == self.student_preprocess else clip.preprocess
        return clip

    # Training ---------------------------------------------------------------------------------------------------

    def forward_backward(self, batch_x: dict, batch_u: dict | None = None) -> dict[str, float | Tensor]:
        """Take one DHO step (DHO, Algorithm 1, lines 7 to 25) and return its losses and accuracy."""
        self.probe_gradients(batch_x, batch_u)
        summaries = []
        self.model_zero_grad()
        for part, context in self.parts([batch_x] if batch_u is None else [batch_x, batch_u]):
            with context:
                loss, summary = self.loss(*part)
                self.model_backward(loss / self.cfg.TRAIN.ACCUMULATION)
            summaries.append(summary)
        self.model_update()
        return {key: sum(one[key].detach() for one in summaries) / len(summaries) for key in summaries[0]}

    def loss(self, batch_x: dict, batch_u: dict | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return lambda * (CE + the method's own loss) + (1 - lambda) * KD of some images, and what the log shows."""
        labels, n = batch_x["label"], len(batch_x["label"])
        both = [batch_x] if batch_u is None else [batch_x, batch_u]
        frozen = batch_x.get("features_frozen")
        logits_ce, taught, extra = self.net(joined(both, "img"), n, joined(both, "features"), frozen)
        loss = self.objective(logits_ce, labels, taught, self.teacher_targets(both))
        total = loss.total if extra is None else loss.total + self.lambda_() * extra
        summary = {"loss": total, "acc": 100 * (logits_ce.argmax(1) == labels).float().mean()}
        summary |= {"loss_ce": loss.ce, "loss_kd": loss.kd} if self.dho else {}
        return total, summary if extra is None else {**summary, "loss_extra": extra}

    def lambda_(self) -> float:
        """Return the weight of the cross-entropy; without a teacher there is nothing beside it."""
        return self.cfg.TRAINER.DHO.LAMBDA if self.dho else 1.0

    def objective(self, logits_ce: Tensor, labels: Tensor, taught: Tensor | None, targets: Tensor | None) -> DHOLoss:
        """Return the loss of a step (DHO, Eq. 6 and 7).

        Args:
            logits_ce: (B, C) of the labeled images.
            labels: (B,) int64.
            taught: (B + B', C) what the teacher teaches, the KD head's logits; None without a teacher.
            targets: (B + B', C) what `teacher_targets` gives.
        """
        dho, n, kd = self.cfg.TRAINER.DHO, len(labels), ()
        if taught is not None:
            kd = taught[:n], targets[:n], *((taught[n:], targets[n:]) if len(taught) > n else ())
        return dho_loss(logits_ce, labels, *kd, lambda_=self.lambda_(), eta=dho.ETA, eta2=dho.KD_ETA2)

    def teacher_targets(self, batches: Sequence[dict]) -> Tensor | None:
        """Return what the teacher teaches on these images: its logits; None without a teacher."""
        return self.teacher_logits(batches)

    def teacher_logits(self, batches: Sequence[dict]) -> Tensor | None:
        """Return the teacher's logits (B + B', C) on the same views, or None without a teacher."""
        return None if self.teacher is None else self.teacher.model(self.teacher_features(batches))

    def teacher_features(self, batches: Sequence[dict]) -> Tensor:
        """Return the teacher's features (B + B', D) on the same views, stored ones where they are there."""
        if (features := joined(batches, "teacher_features")) is not None:
            return features
        with self.accelerator.autocast():
            features = self.teacher.model.features(joined(batches, "img_teacher" if self.teacher_preprocess else "img"))
        # As they are stored where a run has a fixed number of views, so that a stored run gives the same numbers.
        return features.half().float() if self.cfg.INPUT.VIEWS else features

    def set_model_mode(self, mode: str) -> None:
        """Put student and heads into "train" or "eval" mode."""
        self.net.train(mode == "train")

    def after_train(self) -> None:
        """Test on the data set's own and the shifted test sets, then write results.json."""
        super().after_train()
        if not self.cfg.TEST.NO_TEST:
            self.test_shifted()
            self.write_results()

    def display_name(self) -> str:
        """Return the method's name as tables show it."""
        return type(self).__name__.replace("_DHO", " + DHO")

    # Checkpoints ------------------------------------------------------------------------------------------------

    def load_model(self, directory: str | Path, epoch: int | None = None, *, train_state: bool = False) -> dict:
        """Load a run's weights; for evaluation the model is first rebuilt for the classes it was trained on.

        Prompts without a KD head keep the data set's classes where some are new, as in CoOp's base-to-new evaluation.

        Raises:
            CheckpointError: a file is missing, damaged or of another model.
        """
        if not directory:
            print("Note that load_model() is skipped as no pretrained model is given")
            return {}
        if Path(directory).is_file():
            return self.load_file(directory)
        if not train_state and self._models:
            path = model_path(directory, self.get_model_names()[0], self.epoch_to_load(directory, epoch))
            saved = tuple(ClassInfo(*pair) for pair in load_checkpoint(path).get("meta", {}).get("classes", []))
            if saved and saved != self.classes and not self.meets_new_classes(saved):
                self.classes = saved
                self.forget_models()
                self.build_model()
        return super().load_model(directory, epoch, train_state=train_state)

    def meets_new_classes(self, trained: Sequence[ClassInfo]) -> bool:
        """Say whether some of the data set's classes were not trained on, and the model can answer for them."""
        new = {info.key for info in self.classes} - {info.key for info in trained}
        return bool(new) and self.kd_head is None and self.student.open_vocabulary
