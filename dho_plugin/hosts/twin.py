"""`dhoify`: any Dassl trainer with a `model.image_encoder` becomes its DHO version, without a line of it edited."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from dho_plugin.core.inference import interpolate
from dho_plugin.dho_trainer import DHOTrainer
from dho_plugin.engine.averaging import WeightedSum
from dho_plugin.engine.data import ClassInfo
from dho_plugin.engine.identity import check_classes
from dho_plugin.errors import CheckpointError, ConfigError
from dho_plugin.hosts.config import check_dho
from dho_plugin.hosts.data import all_training_images, class_keys, show_teacher, unlabeled_stream
from dho_plugin.hosts.head import HostHead
from dho_plugin.hosts.protocol import dassl, host_optimizer, image_encoder, student_clip
from dho_plugin.hosts.routes import Step, choose_route
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.zeroshot import class_features
from dho_plugin.teachers import Teacher, build_teacher, load_teacher

HEAD = "kd_head"  # its folder among the checkpoints


class HostDHO:
    """What a host's trainer gains: a KD head on the image features, the KD loss, and the mix of both heads.

    It stands in front of the host's class, which keeps its loop, its loss, its optimizer and its files.
    """

    host: type  # the trainer that this one is the twin of
    teacher: Teacher | None = None
    alpha_beta = None
    templates = DHOTrainer.templates
    kd_optim_cfg = DHOTrainer.kd_optim_cfg
    mixing = DHOTrainer.mixing
    _images: Iterator[dict] | None = None  # labeled and unlabeled ones
    _teacher_key = "img"
    _tap: list[Tensor] | None = None

    # Set-up -----------------------------------------------------------------------------------------------------

    def check_cfg(self, cfg) -> None:
        """Check TRAINER.DHO, then the host's keys."""
        check_dho(cfg)
        super().check_cfg(cfg)

    def build_model(self) -> None:
        """Build the host's model, then the KD head on its image encoder."""
        super().build_model()
        encoder, optim = image_encoder(self), host_optimizer(self)
        names = self.dm.dataset.classnames
        keys = class_keys(self.dm.dataset.train_x, names)
        self.classes = tuple(ClassInfo(key, name) for key, name in zip(keys, names, strict=True))
        with torch.random.fork_rng(devices=[]):  # the host's own draws stay as they are without DHO
            self.kd_head = self.build_kd_head(student_clip(self.cfg)).to(self.device)
        head_cfg, build = self.kd_optim_cfg(), dassl("dassl.optim")
        head_optim = build.build_optimizer(self.kd_head, head_cfg)
        self.register_model(HEAD, self.kd_head, head_optim, build.build_lr_scheduler(head_optim, head_cfg))
        dho = self.cfg.TRAINER.DHO
        route = choose_route(dho.get("ROUTE", "auto"), dho.LAMBDA)
        self.route = route(encoder, self.kd_head, optim, head_optim, dho, getattr(self, "scaler", None))
        encoder.register_forward_hook(self.tap)
        self.half_weights = any(parameter.dtype is torch.float16 for parameter in encoder.parameters())
        self._average = WeightedSum({HEAD: self.kd_head})
        print(f"{type(self).__name__}: {self.host.__name__} with a {dho.KD_HEAD} KD head, {route.__name__}")

    def build_kd_head(self, clip: LoadedCLIP) -> HostHead:
        """Return h_KD, from the class prompts' features of the host's CLIP or Kaiming's draw."""
        dho, names = self.cfg.TRAINER.DHO, [info.name for info in self.classes]
        clip.model.to(self.device)
        init = class_features(clip, names, self.templates()).cpu() if dho.INIT == "language" else None
        return HostHead(dho.KD_HEAD, clip.feature_dim, self.classes, clip.zeta, init)

    def before_train(self) -> None:
        """Build the teacher and the stream of all training images, then let the host prepare its training."""
        loaded = load_teacher(self.cfg, self.placebo())
        self.teacher = build_teacher(self.cfg, loaded, self.classes, self.templates())
        self._teacher_key = show_teacher(self.cfg, self.train_loader_x, loaded.preprocess)
        if self.cfg.TRAINER.DHO.UNLABELED:
            images = all_training_images(self.cfg, self.dm.dataset)
            self._images = unlabeled_stream(self.cfg, images, self.train_loader_x, lambda: self.start_epoch)
        super().before_train()

    def placebo(self) -> LoadedCLIP | SimpleNamespace:
        """Return the student's CLIP where it is the teacher (the placebo), else only where a teacher is to lie."""
        if self.cfg.TRAINER.DHO.TEACHER.TYPE != "placebo":
            return SimpleNamespace(device=self.device)
        clip = student_clip(self.cfg)
        clip.model.to(self.device)
        return clip

    # Training ---------------------------------------------------------------------------------------------------

    def forward_backward(self, *batches: dict) -> dict[str, Any]:
        """Take the host's step as a DHO step, and add the KD loss to what its log shows."""
        with self.route.step(self.kd_step(batches[0])) as step:
            summary = super().forward_backward(*batches)
        self.average_head()
        return {**summary, "loss_kd": step.loss_kd.item()}

    def kd_step(self, batch: dict) -> Step:
        """Return what the KD loss of a step needs: the unlabeled images and the teacher's logits."""
        further = next(self._images) if self._images is not None else None
        both = [batch] if further is None else [batch, further]
        shown = torch.cat([one[self._teacher_key] for one in both]).to(self.device)
        half = getattr(self, "scaler", None) is not None or self.half_weights
        with torch.no_grad(), torch.autocast(self.device.type, enabled=half and self.device.type == "cuda"):
            features = self.teacher.model.features(shown)
        unlabeled = None if further is None else further["img"].to(self.device)
        return Step(len(batch["label"]), unlabeled, self.teacher.model(features))

    def average_head(self) -> None:
        """Average the head as PromptSRC averages its prompts (GPA): with its weights, and where it does."""
        if not hasattr(self, "previous_model_gpa") or self.batch_idx + 1 != self.num_batches:
            return
        self._average.add(float(self.gauss[self.step_counter - 2]))
        if self.step_counter == self.max_epoch + 1:
            self._average.copy_to_parameters()

    # Evaluation -------------------------------------------------------------------------------------------------

    def tap(self, module: nn.Module, args: tuple, output: Any) -> None:
        """Keep the image features of an inference."""
        if self._tap is not None:
            self._tap.append(output)

    def model_inference(self, *args: Any) -> Tensor:
        """Return log p of Eq. 11, (B, C) float32; the KD head reads the features of the host's own forward.

        Raises:
            ConfigError: the host's inference gives no logits, or does not call the image encoder.
        """
        self._tap = []
        try:
            logits = super().model_inference(*args)
            features = self._tap[0] if self._tap else None
        finally:
            self._tap = None
        alpha, beta = self.mixing()
        if not isinstance(logits, Tensor) or features is None or len(features) != len(logits):
            raise ConfigError(
                f"{self.host.__name__}.model_inference returned {type(logits).__name__} and gave "
                f"{'no' if features is None else len(features)} image features; looked for logits (images, classes) "
                "and one call of self.model.image_encoder on the same images"
            )
        return interpolate(logits, self.kd_head(features) if alpha < 1 else None, alpha, beta).log()

    # Checkpoints ------------------------------------------------------------------------------------------------

    def resume_model_if_exist(self, directory: str) -> int:
        """Resume host and head together.

        Raises:
            CheckpointError: one of them is missing, where Dassl would train from scratch without a word, or of another
                epoch, as a run that is killed between the two leaves them; or the head is one of other classes.
        """
        names = self.get_model_names()
        missing = [name for name in names if not os.path.exists(os.path.join(directory, name))]
        if missing and len(missing) < len(names):
            found = [name for name in names if name not in missing]
            raise CheckpointError(
                f"{directory} holds {', '.join(found)}, but not {', '.join(missing)}: it is no complete run of "
                f"{type(self).__name__}. Restore it, or choose another --output-dir to start over"
            )
        _check_epochs([Path(directory) / name / "checkpoint" for name in names])
        epoch = super().resume_model_if_exist(directory)
        if epoch:
            check_classes(self.kd_head.get_extra_state()["classes"], self.classes, directory)
        return epoch

    def load_model(self, directory: str | Path, epoch: int | None = None) -> None:
        """Load a run for evaluation; the head answers for the classes of the data set that is evaluated.

        Raises:
            DataError: the head was not trained on one of these classes.
        """
        super().load_model(directory, epoch)
        if directory and self.cfg.TRAINER.DHO.ALPHA < 1:
            self.kd_head.choose([info.key for info in self.classes])


def _check_epochs(pointers: Sequence[Path]) -> None:
    """Raise CheckpointError where Dassl's files that name the last checkpoint name different ones."""
    named = {str(path): path.read_text().split("\n")[0] for path in pointers if path.is_file()}
    if len(set(named.values())) > 1:
        raise CheckpointError(
            f"the last checkpoints are of different epochs: {named}. The run was killed while it saved; write the "
            "older name into the first line of each of these files"
        )


def dhoify(trainer: type) -> type:
    """Return the DHO twin of a host's trainer, named with `_DHO` behind its name.

    Args:
        trainer: a class on Dassl's SimpleTrainer whose model has an `image_encoder`.

    Raises:
        ConfigError: it is no such class, or evaluates in a way of its own; the message says what was looked for.
    """
    base = dassl("dassl.engine").SimpleTrainer
    if not isinstance(trainer, type) or not issubclass(trainer, base):
        raise ConfigError(f"{getattr(trainer, '__name__', trainer)!r}: looked for a class on Dassl's SimpleTrainer")
    if issubclass(trainer, HostDHO):
        raise ConfigError(f"{trainer.__name__} is a DHO trainer already")
    own = next((cls for cls in trainer.__mro__ if "test" in vars(cls)), base)
    if own is not base and issubclass(own, base):
        raise ConfigError(
            f"{trainer.__name__} has a test() of its own ({own.__module__}.{own.__name__}.test): the mix of both heads "
            "enters through model_inference, which Dassl's test() calls, so it would be scored without its KD head. "
            "Trainers that override test(), such as PromptKD, have no DHO twin"
        )
    body = {"host": trainer, "__module__": trainer.__module__, "__doc__": f"{trainer.__name__} with DHO."}
    return type(f"{trainer.__name__}_DHO", (HostDHO, trainer), body)
