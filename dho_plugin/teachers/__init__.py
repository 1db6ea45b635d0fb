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
from dho_plugin.teachers.base import FrozenTeacher
from dho_plugin.teachers.few_shot import build_few_shot, check_adapter_key
from dho_plugin.teachers.run import RunEncoder, build_run_teacher, check_run_key, load_run, run_label
from dho_plugin.teachers.zeroshot import ZeroShotTeacher

TYPES = ("zero_shot", "few_shot", "run", "placebo")


class Teacher(NamedTuple):
    """A teacher ready for use: (B, 3, H, W) images -> (B, D) features -> (B, C) logits.

    Attributes:
        model: the module.
        preprocess: size and normalization of its images.
    """

    model: FrozenTeacher
    preprocess: Preprocess


def check_teacher(cfg) -> None:
    """Check what can be checked of a teacher before anything is loaded.

    Raises:
        ConfigError: unknown TRAINER.DHO.TEACHER.TYPE, or one whose file or run is not named.
    """
    node = cfg.TRAINER.DHO.TEACHER
    if node.TYPE not in TYPES:
        raise ConfigError(f"TRAINER.DHO.TEACHER.TYPE is {node.TYPE!r}; allowed: {', '.join(TYPES)}")
    if node.TYPE == "few_shot":
        check_adapter_key(node.ADAPTER)
    if node.TYPE == "run":
        check_run_key(node.RUN)
        if node.CLASSNAMES:
            raise ConfigError("TRAINER.DHO.TEACHER.CLASSNAMES: a run has its own names of the classes; leave it empty")


def load_teacher(cfg, student: LoadedCLIP) -> LoadedCLIP | RunEncoder:
    """Load the image encoder of the teacher that `TRAINER.DHO.TEACHER` asks for, to where the student lies.

    The placebo is the student's own zero-shot classifier: it knows nothing that the student does not, so what remains
    of a gain with it is not knowledge of a teacher.

    Raises:
        ConfigError: unknown TRAINER.DHO.TEACHER.TYPE or model.
        CheckpointError: the run that is to teach is not there, or not finished.
    """
    check_teacher(cfg)
    node = cfg.TRAINER.DHO.TEACHER
    if node.TYPE == "placebo":
        return student
    if node.TYPE == "run":
        return load_run(_of_seed(node.RUN, cfg), student.device)
    text = "plain" if cfg.MODEL.TEXT_TOWER == "plain" else "auto"  # other ways are forced on the student's prompts
    ways = {"text_tower": text, "image_tower": cfg.MODEL.IMAGE_TOWER, "compile": cfg.MODEL.COMPILE}
    clip = load_clip(node.NAME, tag=node.TAG, ckpt=node.CKPT, key="TRAINER.DHO.TEACHER", **ways)
    if cfg.MODEL.CHANNELS_LAST:
        channels_last(clip)
    clip.model.to(student.device)  # before its class features: thousands of prompts are slow on a CPU
    return clip


def build_teacher(
    cfg, clip: LoadedCLIP | RunEncoder, classes: Sequence[ClassInfo], templates: Sequence[str]
) -> Teacher:
    """Build the teacher on its encoder.

    Raises:
        DataError: TRAINER.DHO.TEACHER.CLASSNAMES, or the run that is to teach, has other classes than the student.
        CheckpointError: the few-shot teacher's file does not fit its CLIP or the classes, or is no such file.
    """
    node = cfg.TRAINER.DHO.TEACHER
    if node.TYPE == "run":
        return Teacher(build_run_teacher(clip, classes), clip.preprocess)
    names = _class_names(node.CLASSNAMES, classes)
    if node.TYPE == "few_shot":
        model = build_few_shot(_of_seed(node.ADAPTER, cfg), clip, classes, names, templates, cfg)
    else:
        model = ZeroShotTeacher(clip, names, templates, cfg.TRAINER.DHO.ZETA).to(clip.device)
    return Teacher(model, clip.preprocess)


def storable(clip: LoadedCLIP | RunEncoder) -> bool:
    """Say whether an encoder is a frozen CLIP as it came, whose features are stored and read for many runs."""
    return not isinstance(clip, RunEncoder) or clip.storable


def teacher_label(cfg) -> str:
    """Return what results call the teacher, as `ViT-L/14@336px (zero-shot)`."""
    node = cfg.TRAINER.DHO.TEACHER
    if node.TYPE == "placebo":
        return f"{cfg.MODEL.BACKBONE.NAME} (placebo)"
    if node.TYPE == "run":
        return run_label(_of_seed(node.RUN, cfg))
    return f"{node.NAME} ({node.TYPE.replace('_', '-')})"


def _of_seed(path: str, cfg) -> str:
    """Return a path with the run's seed in the place of `{seed}`: each seed has its own shots."""
    return path.replace("{seed}", str(cfg.SEED))


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
