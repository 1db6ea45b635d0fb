"""The few-shot teacher of DHO-F: a frozen CLIP with a cache model of labeled images beside its zero-shot classifier."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dho_plugin.core.tip_adapter import tip_logits
from dho_plugin.data.subsets import half
from dho_plugin.engine.data import ClassInfo
from dho_plugin.engine.fingerprint import weights_fingerprint
from dho_plugin.errors import CheckpointError, ConfigError
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.zeroshot import class_features
from dho_plugin.teachers.base import FrozenTeacher
from dho_plugin.teachers.cache_adapter import MAKE_ONE, AdapterFile, read_adapter

KEY = "TRAINER.DHO.TEACHER.ADAPTER"
_ALIKE = 0.5  # share of the classes whose own prompts a released file's classifier must know best


class FewShotTeacher(FrozenTeacher):
    """Logits f W^T / zeta + alpha phi(x) of Tip-Adapter-F on a frozen CLIP's image features, fresh or stored.

    Args:
        clip: the teacher.
        adapter: its file.
        columns: int64 (C,), the file's column of each class of the student.
        zeta: temperature; 0 takes the file's, or the one that comes with the weights.
    """

    def __init__(self, clip: LoadedCLIP, adapter: AdapterFile, columns: Tensor, zeta: float = 0.0):
        super().__init__(clip.model, clip.encode_image)
        values = adapter.values[:, columns]
        kept = values.any(dim=1)  # keys of other classes add nothing to these
        self.register_buffer("keys", adapter.keys[kept])
        self.register_buffer("values", values[kept])
        self.register_buffer("text", adapter.text[columns])
        self.at = {"alpha": adapter.alpha, "beta": adapter.beta, "zeta": zeta or adapter.zeta or clip.zeta}
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, C) fp32 of its features (B, D), fresh or stored."""
        return tip_logits(features, self.text, self.keys, self.values, **self.at)


def check_adapter_key(path: str) -> None:
    """Check that a few-shot teacher has a file; without one the released code trains with a zero-shot teacher.

    Raises:
        ConfigError: it has none.
    """
    if not path:
        raise ConfigError(
            f"TRAINER.DHO.TEACHER.TYPE is few_shot, and {KEY} is empty: set it to the folder of a finished run of "
            f"`{MAKE_ONE}`, or to a file of the released implementation"
        )


def build_few_shot(
    path: str, clip: LoadedCLIP, classes: Sequence[ClassInfo], names: Sequence[str], templates: Sequence[str], cfg
) -> FewShotTeacher:
    """Build the teacher of a file and its CLIP.

    Args:
        path: a run's folder, or a file of ours or of the released implementation.
        clip: the CLIP that TRAINER.DHO.TEACHER names.
        classes: the student's classes.
        names: what the teacher calls them.
        templates: prompt templates.
        cfg: the run's config.

    Raises:
        CheckpointError: the file does not fit the CLIP or the classes, or is no such file.
        ConfigError: a file of ours was made with names of its own, and TRAINER.DHO.TEACHER.CLASSNAMES gives others.
    """
    adapter = read_adapter(path)
    _check_backbone(adapter, clip)
    if adapter.classes and cfg.TRAINER.DHO.TEACHER.CLASSNAMES:
        raise ConfigError(f"TRAINER.DHO.TEACHER.CLASSNAMES: {adapter.path} has its own classifier; leave it empty")
    columns = _own_columns(adapter, classes) if adapter.classes else _released_columns(adapter, len(classes), cfg)
    if not adapter.classes:
        _check_text(adapter, columns, class_features(clip, names, templates).cpu())
    counts = f"{len(adapter.keys):,} labeled images, alpha {adapter.alpha:.4g}, beta {adapter.beta:.4g}"
    print(f"The few-shot teacher is read from {adapter.path}: {counts}")
    return FewShotTeacher(clip, adapter, columns, cfg.TRAINER.DHO.ZETA).to(clip.device)


def _check_backbone(adapter: AdapterFile, clip: LoadedCLIP) -> None:
    width = adapter.keys.shape[1]
    other = adapter.weights and adapter.weights != weights_fingerprint(clip.model.visual)
    if width == clip.feature_dim and not other:
        return
    made = f"on the image encoder of {adapter.backbone}" if adapter.backbone else f"on features of {width} numbers"
    raise CheckpointError(
        f"{KEY}: {adapter.path} was made {made}, and TRAINER.DHO.TEACHER.NAME {clip.name} has features of "
        f"{clip.feature_dim} numbers{' from other weights' if other else ''}: name the CLIP that it was made on "
        "(TRAINER.DHO.TEACHER.NAME, .TAG, .CKPT), or another file"
    )


def _own_columns(adapter: AdapterFile, classes: Sequence[ClassInfo]) -> Tensor:
    place = {info.key: column for column, info in enumerate(adapter.classes)}
    if missing := [info.key for info in classes if info.key not in place]:
        raise CheckpointError(
            f"{KEY}: {adapter.path} knows {len(place)} classes, of which the student's {missing[:3]} are none "
            f"({len(missing)} of {len(classes)} are missing): make one of the student's data set and half of classes"
        )
    return torch.tensor([place[info.key] for info in classes])


def _released_columns(adapter: AdapterFile, count: int, cfg) -> Tensor:
    """Return the columns of a file that does not name its classes: all of the data set's, or those of the same half."""
    known, which = adapter.text.shape[0], cfg.DATASET.SUBSAMPLE_CLASSES
    if known == count:
        return torch.arange(known)
    kept = half(known, which) if known > 1 else range(known)
    if which == "all" or len(kept) != count:
        raise CheckpointError(
            f"{KEY}: {adapter.path} has {known} classes, the student {count} (DATASET.SUBSAMPLE_CLASSES {which}): it "
            "is of another data set"
        )
    return torch.tensor(kept)


def _check_text(adapter: AdapterFile, columns: Tensor, text: Tensor) -> None:
    """Check by the text features that a file without class names has the student's classes, in their order."""
    nearest = (text @ adapter.text[columns].T).argmax(dim=1)
    alike = (nearest == torch.arange(len(columns))).float().mean().item()
    if alike < _ALIKE:
        raise CheckpointError(
            f"{KEY}: the classifier (clip_weights) of {adapter.path} is of other classes or in another order, or of "
            f"another CLIP: only {100 * alike:.0f}% of the student's class prompts are nearest to their own column. "
            "Name the CLIP that it was made on (TRAINER.DHO.TEACHER.NAME), or another file"
        )
