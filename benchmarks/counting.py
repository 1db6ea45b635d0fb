"""FLOPs of a training step: the project's own trainers take it on the meta device, where nothing is computed.

Class features, which a run computes once, are random; all that a step does goes through the trainer's own code. The
counter finds matrix products, convolutions and attention; what works on each number alone (norms, activations,
optimizers) counts nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import open_clip
import torch
from common import Encoder, build_clip, flops, run_config, run_words, saved_bytes, start
from torch import Tensor, nn

from dho_plugin.engine.config import get_cfg_default
from dho_plugin.engine.views import Preprocess
from dho_plugin.models.clip import LoadedCLIP

# Nothing is looked for on disk, nothing loaded: the batches are made here.
BARE = ("TRAINER.DHO.TEACHER.MODE", "online", "MODEL.FEATURES", "online", "DATALOADER.NUM_WORKERS", "0")


class Way(NamedTuple):
    """A way to take a step: the towers' plain or default paths, and whose features are read in place of images."""

    name: str
    towers: str = "auto"
    cached: tuple[str, ...] = ()


def tower_options(way: str) -> list[str]:
    """Return the KEY VALUE pairs that run both towers in a way, "plain" or "auto"; of the keys that there are."""
    keys = [key for key in ("TEXT_TOWER", "IMAGE_TOWER") if key in get_cfg_default().MODEL]
    return [word for key in keys for word in (f"MODEL.{key}", way)]


def ways(trainer) -> list[Way]:
    """Return the ways of a trainer's step, the plain one first, each cheaper than those before."""
    who, own = ("teacher",) if trainer.dho else (), ()
    if trainer.student.storable:
        own = ("student",)
    elif getattr(trainer.student, "wants_frozen", False):  # a loss that looks at the frozen CLIP's features, too
        own = ("frozen CLIP",)
    cached = [way for way in (who, who + own if own else ()) if way]
    return [Way("plain", "plain"), Way("default"), *(Way(" and ".join(c) + " cached", cached=c) for c in cached)]


def batches(trainer, cached: tuple[str, ...], device: torch.device | str) -> list[dict[str, Tensor]]:
    """Return the batches of a step, labeled and, where it is used, unlabeled: noise in the shapes of the streams'."""
    sizes = [trainer.cfg.DATALOADER.TRAIN_X.BATCH_SIZE]
    sizes += [trainer.unlabeled_batch_size()] if trainer.uses_unlabeled() else []
    made = [_batch(trainer, n, cached, device) for n in sizes]
    if "frozen CLIP" in cached:
        made[0]["features_frozen"] = torch.randn(sizes[0], trainer.student.feature_dim, device=device)
    return made


def _batch(trainer, n: int, cached: tuple[str, ...], device: torch.device | str) -> dict[str, Tensor]:
    def images(preprocess: Preprocess) -> Tensor:
        return torch.randn(n, 3, preprocess.size, preprocess.size, device=device)

    batch = {"label": torch.randint(len(trainer.classes), (n,), device=device)}
    if "student" in cached:
        batch["features"] = torch.randn(n, trainer.student.feature_dim, device=device)
    else:
        batch["img"] = images(trainer.student_preprocess)
    if "teacher" in cached:
        batch["teacher_features"] = torch.randn(n, trainer.teacher.model.head.weight.shape[1], device=device)
    elif trainer.dho and trainer.teacher_preprocess is not None:
        batch["img_teacher"] = images(trainer.teacher_preprocess)
    return batch


# On the meta device -----------------------------------------------------------------------------------------------


def empty_clip(encoder: Encoder) -> nn.Module:
    """Return a CLIP that has no weights worth the name, but what the choice of its paths looks at."""
    with torch.device("meta"):
        clip = build_clip(encoder)
    clip = clip.to_empty(device="cpu").eval().requires_grad_(False)
    nn.init.normal_(clip.token_embedding.weight)
    clip.logit_scale.data.fill_(4.6)
    clip.attn_mask.fill_(-torch.inf).triu_(1)
    return clip


def loaded_clip(encoder: Encoder, name: str = "", **options) -> LoadedCLIP:
    """Return the same as the package's own loader does; options that this version does not know are left out."""
    known = {field.name for field in fields(LoadedCLIP)} & options.keys()
    tokenizer, preprocess = open_clip.get_tokenizer("ViT-B-16"), Preprocess(encoder.size, (0.0,) * 3, (1.0,) * 3)
    return LoadedCLIP(name, empty_clip(encoder), tokenizer, preprocess, **{key: options[key] for key in known})


@contextmanager
def without_weights(student: Encoder, teacher: Encoder) -> Iterator[None]:
    """Let every CLIP that is loaded have one of these sizes, and no weights."""

    def load_clip(name: str, *, key: str = "MODEL.BACKBONE", **options) -> LoadedCLIP:
        encoder = student if key == "MODEL.BACKBONE" else teacher
        return loaded_clip(encoder, name, **options)

    def class_features(clip: LoadedCLIP, names, *_, **__) -> Tensor:
        return torch.randn(len(names), clip.feature_dim)

    import dho_plugin.trainers  # noqa: F401 (what is replaced must have been imported)

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch, "autocast", autocast))
        for replacement in (load_clip, class_features):
            stack.enter_context(replaced(replacement))
        yield


@contextmanager
def replaced(replacement: Callable) -> Iterator[None]:
    """Put a function in the place of that of its name in all of the package's modules that have it."""
    with ExitStack() as stack:
        for module in [m for name, m in sys.modules.items() if name.startswith("dho_plugin.")]:
            if hasattr(module, replacement.__name__):
                stack.enter_context(patch.object(module, replacement.__name__, replacement))
        yield


_torch_autocast = torch.autocast


def autocast(device_type: str, *args, **kwargs) -> AbstractContextManager:
    """Do as torch's own, which does not know the meta device."""
    return nullcontext() if device_type == "meta" else _torch_autocast(device_type, *args, **kwargs)


def meta_trainer(root: Path, name: str, config: str, *options: str):
    """Return a trainer on the meta device, ready for a step; the step ends with the backward."""
    trainer = start(run_config(run_words(root, name, config, "USE_CUDA", "False", *BARE, *options)))
    for module in (trainer.net, getattr(trainer.teacher, "model", None)):
        if module is not None:
            _to_meta(module)
    # The loss, which has no value here, is not looked at, and no step is taken with the gradients.
    name = "model_backward" if hasattr(trainer, "model_backward") else "model_backward_and_update"
    setattr(trainer, name, lambda loss: loss.backward())
    return trainer


def _to_meta(module: nn.Module) -> None:
    module.to("meta")
    for part in module.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, Tensor):
                setattr(part, name, value.to("meta"))


def counted_step(trainer, way: Way) -> dict[str, int]:
    """Return the FLOPs of a trainer's step on the meta device, and the bytes that it keeps for the backward."""
    given, count = batches(trainer, way.cached, "meta"), []
    kept = saved_bytes(lambda: count.append(flops(lambda: trainer.forward_backward(*given))), trainer.net)
    return {"flops": count[0], "kept_bytes": kept}


def counted(root: Path, name: str, config: str, *options: str) -> dict[str, dict[str, int]]:
    """Return what a trainer's step takes in each of its ways."""
    trainers = {t: meta_trainer(root, name, config, *tower_options(t), *options) for t in ("plain", "auto")}
    return {way.name: counted_step(trainers[way.towers], way) for way in ways(trainers["auto"])}
