"""What is relied on in a host: Dassl's modules, and the parts of a trainer."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from dho_plugin.errors import ConfigError
from dho_plugin.models.clip import LoadedCLIP, load_clip

# What is used of each of Dassl's modules.
DASSL = {
    "dassl.config.defaults": ("_C",),
    "dassl.engine": ("TRAINER_REGISTRY", "SimpleTrainer"),
    "dassl.data.data_manager": ("DatasetWrapper",),
    "dassl.data.datasets": ("DATASET_REGISTRY", "build_dataset"),
    "dassl.data.transforms": ("build_transform",),
    "dassl.optim": ("build_optimizer", "build_lr_scheduler"),
    "dassl.optim.lr_scheduler": ("_BaseWarmupScheduler", "ConstantWarmupScheduler", "LinearWarmupScheduler"),
}


def dassl(module: str) -> ModuleType:
    """Import one of Dassl's modules.

    Args:
        module: a key of DASSL.

    Raises:
        ConfigError: there is no Dassl, or another one than 0.6.
    """
    names = DASSL[module]
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "dassl":
            raise ConfigError(
                f"Dassl was found, but importing {module} needs the package {error.name!r}: install what Dassl's "
                "requirements.txt names, or start the host with dho-host"
            ) from error
        raise ConfigError(
            f"no Dassl: looked for {module} with {', '.join(names)} on sys.path. Install Dassl.pytorch as the host's "
            "README says, or start the host with: dho-host --dassl /path/to/Dassl.pytorch train.py ..."
        ) from error
    missing = [name for name in names if not hasattr(found, name)]
    if missing:
        version = getattr(sys.modules["dassl"], "__version__", "of unknown version")
        raise ConfigError(f"Dassl {version}: {module} has no {', '.join(missing)}; written for Dassl 0.6.3")
    return found


def image_encoder(trainer: Any) -> nn.Module:
    """Return a host trainer's image encoder, `trainer.model.image_encoder`.

    Raises:
        ConfigError: it has none, or runs on several GPUs.
    """
    name, model = type(trainer).__name__, getattr(trainer, "model", None)
    if isinstance(model, nn.DataParallel):
        raise ConfigError(
            f"{name} put its model into nn.DataParallel (several GPUs), whose replicas DHO cannot reach: let it see "
            "one GPU, for example with CUDA_VISIBLE_DEVICES=0"
        )
    encoder = getattr(model, "image_encoder", None)
    if not isinstance(encoder, nn.Module):
        parts = [part for part, _ in model.named_children()] if isinstance(model, nn.Module) else []
        raise ConfigError(
            f"{name}: looked for the module self.model.image_encoder, on whose features the KD head lies, and found "
            f"{'no self.model' if model is None else f'self.model with {parts}'}. Only trainers with it have a DHO twin"
        )
    return encoder


def host_optimizer(trainer: Any) -> Optimizer:
    """Return the one optimizer of a host trainer.

    Raises:
        ConfigError: it has none or several.
    """
    found = {name: optim for name, optim in trainer._optims.items() if optim is not None}
    if len(found) != 1:
        raise ConfigError(
            f"{type(trainer).__name__}: looked for one optimizer given to register_model, and found "
            f"{len(found)} ({', '.join(found) or 'none'}). Only trainers with one have a DHO twin"
        )
    return next(iter(found.values()))


def host_weights(name: str) -> str:
    """Return the file from which the host's own copy of OpenAI's CLIP loads a backbone, "" if it has no such copy."""
    clip = sys.modules.get("clip.clip")
    urls, download = getattr(clip, "_MODELS", {}), getattr(clip, "_download", None)
    return download(urls[name]) if download and name in urls else ""


def student_clip(cfg) -> LoadedCLIP:
    """Load the CLIP that the host adapts: MODEL.BACKBONE.CKPT, else the host's own file, else by its name."""
    node = cfg.MODEL.BACKBONE
    ckpt = node.CKPT or ("" if node.TAG else host_weights(node.NAME))
    if ckpt and not Path(ckpt).is_file():
        ckpt = ""
    return load_clip(node.NAME, tag=node.TAG, ckpt=ckpt, text_tower=cfg.MODEL.TEXT_TOWER)
