"""A finished run of ours as the teacher: CoOp, PromptSRC, VPT, LinearProbe and the others, with and without DHO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dho_plugin.core.inference import interpolate_log
from dho_plugin.data.subsets import columns
from dho_plugin.engine.data import ClassInfo
from dho_plugin.engine.files import read_json
from dho_plugin.engine.model_store import ModelStore
from dho_plugin.engine.registry import TRAINER_REGISTRY
from dho_plugin.engine.run_folder import run_cfg, saved_classes, smallest_checkpoint
from dho_plugin.engine.views import Preprocess
from dho_plugin.errors import CheckpointError, ConfigError, DataError
from dho_plugin.teachers.base import FrozenTeacher

KEY = "TRAINER.DHO.TEACHER.RUN"


@dataclass(frozen=True, eq=False)
class RunEncoder:
    """The image encoder of a finished run, with what `LoadedCLIP` says of one, and the run's trainer around it.

    Attributes:
        directory: the run's folder.
        trainer: the run's trainer, built without data.
        alpha: weight of the CE head; 1 without a KD head.
        beta: temperature of the KD head.
    """

    directory: Path
    trainer: Any
    alpha: float
    beta: float

    @property
    def name(self) -> str:
        """Name of its backbone."""
        return self.trainer.cfg.MODEL.BACKBONE.NAME

    @property
    def preprocess(self) -> Preprocess:
        """Size and normalization of its images."""
        return self.trainer.student_preprocess

    @property
    def storable(self) -> bool:
        """Whether its features are those of a frozen CLIP, and so of any run on this CLIP."""
        return self.trainer.student.storable

    @property
    def model(self) -> nn.Module:
        """The weights of the encoder: a frozen CLIP's, or all of a student that has prompts in it."""
        return self.trainer.clip().model if self.storable else self.trainer.student

    @property
    def feature_dim(self) -> int:
        """Length D of its features."""
        return self.trainer.student.feature_dim

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.trainer.device

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode normalized images (B, 3, H, W) into features (B, D)."""
        return self.trainer.student.features(images)


class RunTeacher(FrozenTeacher):
    """A run's own prediction as logits: log p of both heads' mix (DHO, Eq. 11), at the run's alpha and beta.

    A KL at temperature eta wants logits l with p = softmax(l), of which it takes softmax(l / eta). log p is such an l
    for any prediction, and for a model with one head it is that head's logits. Of the student's classes both heads'
    logits are cut out first, as the run's own evaluation does it.

    Args:
        clip: the run's encoder.
        kept: int64 (C,), the run's column of each class of the student.
    """

    def __init__(self, clip: RunEncoder, kept: Tensor):
        super().__init__(clip.model, clip.encode_image)
        self.net, self.alpha, self.beta = clip.trainer.net, clip.alpha, clip.beta
        self.register_buffer("kept", kept)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, C) fp32 of its features (B, D), fresh or stored."""
        logits_ce, logits_kd, _ = self.net(None, None, features)
        kd = None if logits_kd is None else logits_kd[:, self.kept]
        return interpolate_log(logits_ce[:, self.kept], kd, self.alpha, self.beta)

    def drop_encoder(self) -> None:
        """Let go of the image tower, where all features are stored; a learned text classifier keeps its own."""
        super().drop_encoder()
        self.net.student.clip_model.visual = None


def check_run_key(path: str) -> None:
    """Check that a run is named.

    Raises:
        ConfigError: none is.
    """
    if not path:
        raise ConfigError(
            f"TRAINER.DHO.TEACHER.TYPE is run, and {KEY} is empty: set it to the folder of a finished run, such as "
            "output/imagenet/PromptSRC/CONFIG_16shots/seed1"
        )


def load_run(where: str, device: torch.device) -> RunEncoder:
    """Build a finished run's model by its own config, on its own classes, without its data.

    Args:
        where: the run's folder.
        device: where it goes.

    Raises:
        CheckpointError: the folder holds no finished run, no checkpoint, or one that does not fit its config.
        ConfigError: the run learned nothing, or is of a trainer that is not here.
    """
    directory = Path(where).expanduser()
    results = _results(directory)
    cfg = run_cfg(directory)
    cfg.MODEL.TEXT_CHECKPOINTING = cfg.MODEL.IMAGE_CHECKPOINTING = False
    cfg.freeze()
    trainer = _bare(TRAINER_REGISTRY.get(results["trainer"]), cfg, device)
    try:
        trainer.classes = _classes(directory)
        trainer.build_model()
        trainer.load_model(directory)
    except CheckpointError as error:
        raise CheckpointError(f"{KEY}: {error}") from error
    mixed = results["alpha"] is not None  # with two heads that predict
    return RunEncoder(directory, trainer, *((results["alpha"], results["beta"]) if mixed else (1.0, 1.0)))


def build_run_teacher(clip: RunEncoder, classes: Sequence[ClassInfo]) -> RunTeacher:
    """Build the teacher of a loaded run; one that knows no fixed classes is built for the student's, where need be.

    Raises:
        DataError: the run was trained on other classes.
    """
    trainer = clip.trainer
    if {info.key for info in classes} - {info.key for info in trainer.classes}:
        trainer.classes = tuple(classes)
        trainer.forget_models()
        trainer.build_model()
        trainer.load_model(clip.directory)  # goes back to the run's own classes where it can answer for no others
    try:
        kept = columns([info.key for info in trainer.classes], [info.key for info in classes])
    except DataError as error:
        raise DataError(
            f"{KEY}: the run in {clip.directory} was trained on {len(trainer.classes)} classes, and the student has "
            f"{len(classes)}, some of them others. Teacher and student need the same data set and half of the classes"
        ) from error
    return RunTeacher(clip, kept).to(clip.device)


def run_label(where: str) -> str:
    """Return what results call the teacher, as `CoOp + DHO, ViT-B/16 (run)`; a folder that is gone, by its path."""
    path = Path(where).expanduser() / "results.json"
    if not path.is_file():
        return f"{where} (run)"
    results = read_json(path)
    backbone = results["config"]["MODEL"]["BACKBONE"]["NAME"]
    method = results["method"].removesuffix(f" {backbone}")
    return f"{method} (run)" if backbone in method else f"{method}, {backbone} (run)"


class _Alone:
    """In an accelerator's place: a teacher is computed where its student is, and never trained."""

    def prepare_model(self, net: nn.Module, **_) -> nn.Module:
        return net

    unwrap_model = prepare_model


def _bare(kind: Any, cfg, device: torch.device) -> Any:
    """Return a trainer that can build and load its model; no data set is opened and no state of the process changed."""
    trainer = kind.__new__(kind)
    ModelStore.__init__(trainer)
    trainer.cfg, trainer.device, trainer.accelerator = cfg, device, _Alone()
    trainer.max_epoch, trainer.total_steps = cfg.OPTIM.MAX_EPOCH, lambda: 1  # for schedules, which nobody steps
    trainer.dataset, trainer.initial_weights = None, False  # its checkpoint brings them
    return trainer


def _results(directory: Path) -> dict:
    if (directory / "results.json").is_file():
        results = read_json(directory / "results.json")
        if not results.get("model_dir"):
            return results
        raise CheckpointError(f"{KEY}: {directory} is an evaluation of {results['model_dir']}: name that folder")
    if (directory / "config.json").is_file():
        raise CheckpointError(f"{KEY}: the run in {directory} is not finished: start its command again, it goes on")
    raise CheckpointError(f"{KEY}: {directory} is no run's folder (no results.json): name that of a finished run")


def _classes(directory: Path) -> tuple[ClassInfo, ...]:
    """Return the classes that a run was trained on, as its checkpoints say."""
    path = smallest_checkpoint(directory)
    if path is None:
        raise CheckpointError(
            f"{directory} holds no checkpoint; a CLIP as it came is TRAINER.DHO.TEACHER.TYPE zero_shot"
        )
    if classes := saved_classes(path):
        return classes
    raise CheckpointError(f"{path} does not say which classes it was trained on")
