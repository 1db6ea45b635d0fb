"""Named run-time patches for what current stacks break in Dassl; each is applied only where it is broken."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections import OrderedDict
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from dho_plugin.errors import ConfigError
from dho_plugin.hosts.protocol import dassl


class Patch(NamedTuple):
    """One patch.

    Attributes:
        name: as `--no-patch` takes it.
        what: what is broken, and what is done.
        needed: says whether it is broken here.
        apply: mends it, in this process only.
    """

    name: str
    what: str
    needed: Callable[[], bool]
    apply: Callable[[], None]


def _lacks(module: str) -> bool:
    return module not in sys.modules and importlib.util.find_spec(module) is None


def _stand_in(name: str, **content: Any) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module


def _no_download(*_, **__) -> None:
    raise ConfigError("the host wants to download data with gdown, which is not installed: pip install gdown")


# The warm-up scheduler ----------------------------------------------------------------------------------------------


def _schedulers() -> ModuleType:
    return dassl("dassl.optim.lr_scheduler")


def _warmup() -> LRScheduler:
    """Return a scheduler as Dassl builds it for WARMUP_EPOCH 1, on an optimizer with momentum."""
    parameter = nn.Parameter(torch.zeros(1))
    optim = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.grad = torch.ones(1)
    optim.step()
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optim, 4.0)
    return _schedulers().ConstantWarmupScheduler(optim, successor, 1, 1e-5)


def _warmup_fails() -> bool:
    try:
        _warmup()
    except TypeError:
        return True
    return False


def _mend_warmup() -> None:
    def init(self, optimizer, successor, warmup_epoch, last_epoch=-1, verbose=False):
        self.successor, self.warmup_epoch = successor, warmup_epoch
        LRScheduler.__init__(self, optimizer, last_epoch)

    _schedulers()._BaseWarmupScheduler.__init__ = init


# Its checkpoints ----------------------------------------------------------------------------------------------------


def _unreadable() -> bool:
    if _warmup_fails():  # left out by --no-patch: there is no scheduler to look at
        return False
    file = io.BytesIO()
    torch.save(_warmup().state_dict(), file)
    file.seek(0)
    try:
        torch.load(file)
    except Exception:  # whatever the reader raises
        return True
    return False


def _read_schedulers() -> None:
    """Let torch's restricted reader build the classes that Dassl pickles: its schedulers and torch's optimizers."""
    theirs, optim = _schedulers(), torch.optim
    known = [theirs.ConstantWarmupScheduler, theirs.LinearWarmupScheduler]
    known += [optim.lr_scheduler.CosineAnnealingLR, optim.lr_scheduler.StepLR, optim.lr_scheduler.MultiStepLR]
    known += [optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop]
    # Its reader fills plain dicts only, and a momentum lies in a defaultdict.
    plain = [(lambda *_: OrderedDict(), "collections.defaultdict"), dict]
    torch.serialization.add_safe_globals([*known, *plain])


def _successor_is_copied() -> bool:
    return not _warmup_fails() and isinstance(_warmup().state_dict().get("successor"), LRScheduler)


def _keep_successor() -> None:
    """Store and restore the scheduler behind the warm-up as plain numbers, on the optimizer that is there."""

    def state_dict(self) -> dict:
        plain = {k: v for k, v in vars(self).items() if k not in ("optimizer", "successor") and not callable(v)}
        return {**plain, "successor": self.successor.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        successor = state["successor"]
        if isinstance(successor, LRScheduler):  # written without this patch
            successor = {k: v for k, v in vars(successor).items() if k != "optimizer" and not callable(v)}
        vars(self).update({k: v for k, v in state.items() if k not in ("successor", "optimizer")})
        self.successor.load_state_dict(successor)

    base = _schedulers()._BaseWarmupScheduler
    base.state_dict, base.load_state_dict = state_dict, load_state_dict


# A machine without a GPU --------------------------------------------------------------------------------------------


def _stay_on_cpu() -> None:
    torch.Tensor.cuda = nn.Module.cuda = lambda self, *_, **__: self


def _stay_in_fp32() -> None:
    torch.Tensor.half = nn.Module.half = lambda self, *_, **__: self


PATCHES = (
    Patch(
        "wilds",
        "Dassl imports the package wilds, which is missing: its three data sets are left out",
        lambda: _lacks("wilds"),
        lambda: _stand_in("dassl.data.datasets.dg.wilds", __all__=[]),
    ),
    Patch(
        "gdown",
        "Dassl imports the package gdown, which is missing: data sets cannot download themselves",
        lambda: _lacks("gdown"),
        lambda: _stand_in("gdown", download=_no_download),
    ),
    Patch(
        "warmup",
        "Dassl's warm-up schedulers pass `verbose`, which torch's no longer take: TypeError with OPTIM.WARMUP_EPOCH",
        _warmup_fails,
        _mend_warmup,
    ),
    Patch(
        "checkpoints",
        "torch.load refuses the schedulers in Dassl's checkpoints: these classes are allowed, nothing else is",
        _unreadable,
        _read_schedulers,
    ),
    Patch(
        "resume-lr",
        "after a resume Dassl's schedule runs on a copy of the optimizer, so that the learning rate stays constant",
        _successor_is_copied,
        _keep_successor,
    ),
    Patch(
        "no-gpu",
        "some hosts call .cuda(), and there is no GPU: it then does nothing",
        lambda: not torch.cuda.is_available(),
        _stay_on_cpu,
    ),
    Patch(
        "no-half",
        "MaPLe and PromptSRC mix half and single precision unless PREC is fp16, in which a CPU is very slow: there is "
        "no GPU, so .half() does nothing and all is computed in fp32",
        lambda: not torch.cuda.is_available(),
        _stay_in_fp32,
    ),
)


def apply_patches(leave_out: list[str]) -> list[Patch]:
    """Apply the patches that are needed here, in order.

    Args:
        leave_out: names of patches that are not applied.

    Returns:
        Those that were applied.

    Raises:
        ConfigError: a name that no patch has.
    """
    if unknown := set(leave_out) - {patch.name for patch in PATCHES}:
        names = ", ".join(patch.name for patch in PATCHES)
        raise ConfigError(f"--no-patch: there is no {', '.join(sorted(unknown))}; there are: {names}")
    applied = []
    for patch in PATCHES:
        if patch.name not in leave_out and patch.needed():
            patch.apply()
            applied.append(patch)
    return applied
