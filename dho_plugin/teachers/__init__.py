"""Teachers, and the function that builds the one a config asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dho_plugin.data.folders import nfc, read_classnames
from dho_plugin.engine.data import ClassInfo
from dho_plugin.engine.views import Preprocess
from dho_plugin.errors import ConfigError, DataError
from dho_plugin.models.clip import LoadedCLIP, load_clip
from dho_plugin.models.image_tower import channels_last
from dho_plugin.teachers.zeroshot import ZeroShotTeacher

TYPES = ("zero_shot", "placebo")


class Teacher(NamedTuple):
    """A teacher ready for use: (B, 3, H, W) images -> (B, D) features -> (B, C) logits.

    Attributes:
        model: the module.
        preprocess: size and normalization of its images.
    """

    model: ZeroShotTeacher
    preprocess: Preprocess


def load_teacher(cfg, student: LoadedCLIP) -> LoadedCLIP:
    """Load the CLIP of the teacher that `TRAINER.DHO.TEACHER` asks for, to where the student lies.

    The placebo is the student's own zero-shot classifier: it knows nothing that the student does not, so what remains
    of a gain with it is not knowledge of a teacher.

    Raises:
        ConfigError: unknown TRAINER.DHO.TEACHER.TYPE or model.
    """
    node = cfg.TRAINER.DHO.TEACHER
    if node.TYPE not in TYPES:
        raise ConfigError(f"TRAINER.DHO.TEACHER.TYPE is {node.TYPE!r}; allowed: {', '.join(TYPES)}")
    if node.TYPE == "placebo":
        return student
    text = "plain" if cfg.MODEL.TEXT_TOWER == "plain" else "auto"  # other ways are forced on the student's prompts
    ways = {"text_tower": text, "image_tower": cfg.MODEL.IMAGE_TOWER, "compile": cfg.MODEL.COMPILE}
    clip = load_clip(node.NAME, tag=node.TAG, ckpt=node.CKPT, key="TRAINER.DHO.TEACHER", **ways)
    if cfg.MODEL.CHANNELS_LAST:
        channels_last(clip)
    clip.model.to(student.device)  # before its class features: thousands of prompts are slow on a CPU
    return clip


def build_teacher(cfg, clip: LoadedCLIP, classes: Sequence[ClassInfo], templates: Sequence[str]) -> Teacher:
    """Build the teacher on its CLIP.

    Raises:
        DataError: TRAINER.DHO.TEACHER.CLASSNAMES names other classes than the student's.
    """
    names = _class_names(cfg.TRAINER.DHO.TEACHER.CLASSNAMES, classes)
    model = ZeroShotTeacher(clip, names, templates, cfg.TRAINER.DHO.ZETA).to(clip.device)
    return Teacher(model, clip.preprocess)


def teacher_label(cfg) -> str:
    """Return what results call the teacher, as `ViT-L/14@336px (zero-shot)`."""
    if cfg.TRAINER.DHO.TEACHER.TYPE == "placebo":
        return f"{cfg.MODEL.BACKBONE.NAME} (placebo)"
    return f"{cfg.TRAINER.DHO.TEACHER.NAME} (zero-shot)"


def _class_names(path: str, classes: Sequence[ClassInfo]) -> list[str]:
    if not path:
        return [info.name for info in classes]
    try:
        given = read_classnames(Path(path))
    except DataError as error:
        raise DataError(f"TRAINER.DHO.TEACHER.CLASSNAMES: {error}") from error
    keys = [nfc(info.key) for info in classes]
    missing, surplus = sorted(set(keys) - given.keys()), sorted(given.keys() - set(keys))
    if missing or surplus:
        raise DataError(
            f"TRAINER.DHO.TEACHER.CLASSNAMES: {path!r} names {len(given)} classes, the student has {len(keys)}; "
            f"the student's {missing[:3]} are missing there and {surplus[:3]} are unknown to the student. "
            "Teacher and student need the same class list"
        )
    return [given[key] for key in keys]
