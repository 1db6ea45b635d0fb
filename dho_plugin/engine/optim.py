"""Optimizers and learning-rate schedules under Dassl's names and keys, with Dassl's numbers."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from dho_plugin.engine.rules import check_rule, one_of
from dho_plugin.errors import ConfigError


def _adam_keys(cfg: Any) -> dict[str, Any]:
    return {"betas": (cfg.ADAM_BETA1, cfg.ADAM_BETA2)}


def _sgd_keys(cfg: Any) -> dict[str, Any]:
    return {"momentum": cfg.MOMENTUM, "dampening": cfg.SGD_DAMPNING, "nesterov": cfg.SGD_NESTEROV}


# Dassl's RAdam decouples the weight decay, torch's does so only on request
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], Callable[[Any], dict[str, Any]]]] = {
    "adam": (torch.optim.Adam, _adam_keys),
    "amsgrad": (torch.optim.Adam, lambda cfg: {**_adam_keys(cfg), "amsgrad": True}),
    "sgd": (torch.optim.SGD, _sgd_keys),
    "rmsprop": (torch.optim.RMSprop, lambda cfg: {"momentum": cfg.MOMENTUM, "alpha": cfg.RMSPROP_ALPHA}),
    "radam": (torch.optim.RAdam, lambda cfg: {**_adam_keys(cfg), "decoupled_weight_decay": True}),
    "adamw": (torch.optim.AdamW, _adam_keys),
}
FUSED_DEVICES = ("cpu", "cuda")  # where torch's Adam takes its step in one kernel
SCHEDULERS = ("single_step", "multi_step", "cosine")
WARMUPS = ("constant", "linear")


def build_optimizer(
    model_or_params: nn.Module | Iterable[nn.Parameter] | Iterable[dict[str, Any]], optim_cfg: Any
) -> torch.optim.Optimizer:
    """Build the optimizer that `OPTIM.NAME` names, over the parameters that require a gradient.

    With `OPTIM.STAGED_LR` the children named in `OPTIM.NEW_LAYERS` learn at `OPTIM.LR` and everything else, parameters
    of the module itself included, at `OPTIM.LR * OPTIM.BASE_LR_MULT`.

    Args:
        model_or_params: a module, its parameters, or parameter groups as torch's optimizers take them.
        optim_cfg: the `OPTIM` node of the config.

    Returns:
        A torch optimizer.

    Raises:
        ConfigError: unknown name, nothing to train, or staged rates that do not fit the module.
    """
    check_rule("OPTIM.NAME", optim_cfg.NAME, one_of(*OPTIMIZERS))
    groups = _staged_groups(model_or_params, optim_cfg) if optim_cfg.STAGED_LR else _plain_groups(model_or_params)
    groups = [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ConfigError("the optimizer got no parameter that requires a gradient: check what the trainer freezes.")
    kind, keys = OPTIMIZERS[optim_cfg.NAME]
    options = {**keys(optim_cfg), **({"fused": True} if _fuses(kind, groups) else {})}
    return kind(groups, lr=optim_cfg.LR, weight_decay=optim_cfg.WEIGHT_DECAY, **options)


def _fuses(kind: type[torch.optim.Optimizer], groups: list[dict[str, Any]]) -> bool:
    """Whether torch takes a step of all these parameters in one kernel (`benchmarks/optimizer.py`)."""
    devices = {param.device.type for group in groups for param in group["params"]}
    return kind in (torch.optim.Adam, torch.optim.AdamW) and devices <= set(FUSED_DEVICES)


def learning_rate(optim_cfg: Any, epoch: int, base_lr: float) -> float:
    """Learning rate of an epoch under Dassl's schedule, in closed form.

    With warm-up of W epochs, epoch 0 has `WARMUP_MIN_LR` (linear) or `WARMUP_CONS_LR` (constant), epoch e < W has
    base_lr * e / W (linear), and epoch W has base_lr. After it the schedule counts from 0 (`WARMUP_RECOUNT`), or goes
    on at W + 1 with the rate still at base_lr, so that what the schedule would have decayed during the warm-up is
    never made up for.

    Args:
        optim_cfg: the `OPTIM` node of the config.
        epoch: epochs done so far, 0 to `OPTIM.MAX_EPOCH`.
        base_lr: the parameter group's own rate.

    Returns:
        The learning rate.

    Raises:
        ConfigError: unknown `OPTIM.LR_SCHEDULER` or `OPTIM.WARMUP_TYPE`, or a `OPTIM.STEPSIZE` that does not fit it.
    """
    _check_schedule(optim_cfg)
    warmup = max(0, optim_cfg.WARMUP_EPOCH)
    if epoch < warmup:
        return _warmup_rate(optim_cfg, epoch, base_lr)
    if optim_cfg.WARMUP_RECOUNT:
        return base_lr * _decay(optim_cfg, 0, epoch - warmup)
    return base_lr * _decay(optim_cfg, warmup, epoch)


class EpochSchedule(LRScheduler):
    """Sets every group's learning rate to `learning_rate` of the epoch; its state is a count and the base rates.

    Args:
        optimizer: optimizer whose rates are set, from epoch 0 on.
        optim_cfg: the `OPTIM` node of the config.
    """

    per_step = False

    def __init__(self, optimizer: torch.optim.Optimizer, optim_cfg: Any):
        self.optim_cfg = optim_cfg
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """Learning rate of each parameter group in the current epoch."""
        return [learning_rate(self.optim_cfg, self.last_epoch, base_lr) for base_lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """Epochs (or steps) done, which of them, and base rates, as plain values."""
        base_lrs = [float(base_lr) for base_lr in self.base_lrs]
        return {"last_epoch": self.last_epoch, "per_step": self.per_step, "base_lrs": base_lrs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to a stored epoch and set the optimizer's rates to it, whether or not the optimizer is restored too.

        Args:
            state_dict: what `state_dict` returned.
        """
        self.last_epoch = state_dict["last_epoch"]
        self.base_lrs = list(state_dict["base_lrs"])
        self._step_count = self.last_epoch + 1
        self._last_lr = self.get_lr()
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate


def step_learning_rate(step: int, warmup: int, total: int, base_lr: float) -> float:
    """Learning rate of a step: linear from 0 over the warm-up, then a cosine to 0 (transformers' cosine schedule).

    Args:
        step: steps done so far, 0 to `total`.
        warmup: `OPTIM.WARMUP_STEPS`.
        total: steps of the whole training.
        base_lr: the parameter group's own rate.
    """
    if step < warmup:
        return base_lr * step / warmup
    return base_lr * _cosine(step - warmup, max(1, total - warmup))


class StepSchedule(EpochSchedule):
    """Sets every group's learning rate to `step_learning_rate` of the training step.

    Args:
        optimizer: optimizer whose rates are set, from step 0 on.
        optim_cfg: the `OPTIM` node of the config.
        total_steps: gives the steps of the whole training.
    """

    per_step = True

    def __init__(self, optimizer: torch.optim.Optimizer, optim_cfg: Any, total_steps: Callable[[], int]):
        self.total_steps = total_steps
        super().__init__(optimizer, optim_cfg)

    def get_lr(self) -> list[float]:
        """Learning rate of each parameter group in the current step."""
        warmup, total = self.optim_cfg.WARMUP_STEPS, self.total_steps()
        return [step_learning_rate(self.last_epoch, warmup, total, base_lr) for base_lr in self.base_lrs]


def build_lr_scheduler(
    optimizer: torch.optim.Optimizer,
    optim_cfg: Any,
    total_steps: Callable[[], int] | None = None,
    *,
    by_step: bool = False,
) -> EpochSchedule:
    """Build the schedule that `OPTIM.LR_SCHEDULER` and `OPTIM.WARMUP_*` describe.

    Args:
        optimizer: optimizer with its base rates set.
        optim_cfg: the `OPTIM` node of the config.
        total_steps: gives the steps of the whole training; needed for `OPTIM.WARMUP_STEPS` above 0 and for `by_step`.
        by_step: a cosine without a warm-up in epochs counts steps, too, as in the released code of DHO and Tip-Adapter.

    Returns:
        A torch scheduler whose rates equal Dassl's epoch by epoch; with `OPTIM.WARMUP_STEPS` or `by_step` one with
        `per_step` True, which counts training steps.

    Raises:
        ConfigError: see `learning_rate`; or a warm-up in steps without a cosine, or beside one in epochs.
    """
    by_step &= optim_cfg.LR_SCHEDULER == "cosine" and optim_cfg.WARMUP_EPOCH <= 0
    if optim_cfg.WARMUP_STEPS <= 0 and not by_step:
        return EpochSchedule(optimizer, optim_cfg)
    if optim_cfg.LR_SCHEDULER != "cosine" or optim_cfg.WARMUP_EPOCH > 0:
        raise ConfigError(
            f"OPTIM.WARMUP_STEPS is {optim_cfg.WARMUP_STEPS}: it needs LR_SCHEDULER cosine, found "
            f"{optim_cfg.LR_SCHEDULER!r}, and no WARMUP_EPOCH, found {optim_cfg.WARMUP_EPOCH}"
        )
    return StepSchedule(optimizer, optim_cfg, total_steps)


def _check_schedule(optim_cfg: Any) -> None:
    check_rule("OPTIM.LR_SCHEDULER", optim_cfg.LR_SCHEDULER, one_of(*SCHEDULERS))
    if optim_cfg.WARMUP_EPOCH > 0:
        check_rule("OPTIM.WARMUP_TYPE", optim_cfg.WARMUP_TYPE, one_of(*WARMUPS))
    steps = _stepsizes(optim_cfg)
    if not steps or not all(isinstance(step, int) for step in steps):
        raise ConfigError(
            f"OPTIM.STEPSIZE is {optim_cfg.STEPSIZE!r}; it must hold whole epochs, for example (30,) or (30, 60)."
        )


def _stepsizes(optim_cfg: Any) -> list[int]:
    return list(optim_cfg.STEPSIZE) if isinstance(optim_cfg.STEPSIZE, list | tuple) else [optim_cfg.STEPSIZE]


def _warmup_rate(optim_cfg: Any, epoch: int, base_lr: float) -> float:
    if optim_cfg.WARMUP_TYPE == "constant":
        return optim_cfg.WARMUP_CONS_LR
    return base_lr * epoch / optim_cfg.WARMUP_EPOCH if epoch else optim_cfg.WARMUP_MIN_LR


def _decay(optim_cfg: Any, start: int, epoch: int) -> float:
    """Factor from the rate at `start`, where it is the base rate, to the rate at `epoch`."""
    if optim_cfg.LR_SCHEDULER != "cosine":
        return optim_cfg.GAMMA ** _count_steps(optim_cfg, start, epoch)
    if epoch == start:
        return 1.0
    # torch's recursive cosine forgets where it started once the rate has been 0
    start = start if epoch <= optim_cfg.MAX_EPOCH else 0
    return _cosine(epoch, optim_cfg.MAX_EPOCH) / _cosine(start, optim_cfg.MAX_EPOCH)


def _cosine(epoch: int, max_epoch: int) -> float:
    return (1 + math.cos(math.pi * epoch / max_epoch)) / 2


def _count_steps(optim_cfg: Any, start: int, epoch: int) -> int:
    """How often GAMMA was applied after `start`, `epoch` included."""
    steps = _stepsizes(optim_cfg)
    if optim_cfg.LR_SCHEDULER == "multi_step":
        # torch applies a milestone 0 when the schedule is built, before any warm-up
        return sum(step == 0 or start < step <= epoch for step in steps)
    size = steps[-1] if steps[-1] > 0 else optim_cfg.MAX_EPOCH
    return epoch // size - start // size


def _plain_groups(model_or_params: Any) -> list[dict[str, Any]]:
    params = list(model_or_params.parameters() if isinstance(model_or_params, nn.Module) else model_or_params)
    if params and isinstance(params[0], dict):
        return [{**group, "params": list(group["params"])} for group in params]
    return [{"params": params}]


def _staged_groups(model: Any, optim_cfg: Any) -> list[dict[str, Any]]:
    if not isinstance(model, nn.Module):
        raise ConfigError("OPTIM.STAGED_LR is True but the optimizer was given parameters; it needs the module.")
    children = [name for name, _ in model.named_children()]
    if not children:  # a head has no layers to tell apart
        return _plain_groups(model)
    new_layers = [optim_cfg.NEW_LAYERS] if isinstance(optim_cfg.NEW_LAYERS, str) else list(optim_cfg.NEW_LAYERS)
    if not new_layers or not set(new_layers) <= set(children):
        raise ConfigError(
            f"OPTIM.STAGED_LR is True and OPTIM.NEW_LAYERS is {new_layers}; name at least one of: "
            f"{', '.join(children)}."
        )
    named = list(model.named_parameters())
    return [
        {
            "params": [p for name, p in named if name.split(".")[0] not in new_layers],
            "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT,
        },
        {"params": [p for name, p in named if name.split(".")[0] in new_layers]},
    ]
