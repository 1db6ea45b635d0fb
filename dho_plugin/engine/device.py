"""Where a run computes, and in which precision."""

from __future__ import annotations

import os
import re
import warnings

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from dho_plugin.engine.config import PRECISIONS
from dho_plugin.engine.processes import PATIENCE
from dho_plugin.errors import ConfigError


def on_cpu(cfg) -> bool:
    """Say whether a run computes on the CPU: there is nothing else, or USE_CUDA is False."""
    return not (cfg.USE_CUDA and torch.cuda.is_available())


def check_devices(cfg) -> None:
    """Check that a run which is to compute on GPUs finds them, and each of its processes one of its own.

    Raises:
        ConfigError: more processes than GPUs, or the GPUs that CUDA_VISIBLE_DEVICES (the scripts' `GPUS`) names are
            not there.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if on_cpu(cfg):
        if cfg.USE_CUDA and re.match(r"\s*(\d|GPU-|MIG-)", named):
            raise ConfigError(
                f"CUDA_VISIBLE_DEVICES is {named!r}, and there is no such GPU; USE_CUDA False computes on the CPU"
            )
        return
    if (processes := int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) > torch.cuda.device_count():
        raise ConfigError(
            f"{processes} processes (the scripts' PROCESSES) for {torch.cuda.device_count()} GPUs: each wants its own"
        )


def build_accelerator(cfg, precision: str) -> Accelerator:
    """Return the Accelerator of a run: the accelerator where there is one and USE_CUDA allows it, else the CPU.

    Started by torchrun, it is one of several, each on its own device. `fp16` and `amp` are fp16 autocast with a
    gradient scaler; a CPU, which has no such thing, computes in fp32. Another Accelerator of this process, whose
    precision and device may be others, is not to be used any more.

    Raises:
        ConfigError: unknown precision, or the devices are not there; see `check_devices`.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"TRAINER.*.PREC is {precision!r}; allowed: {', '.join(PRECISIONS)}")
    check_devices(cfg)
    cpu = on_cpu(cfg)
    mixed = {"fp32": "no", "bf16": "bf16"}.get(precision, "no" if cpu else "fp16")
    if cpu and precision in ("fp16", "amp"):
        print(f"Precision {precision} needs a GPU: computing in fp32")
    # A second trainer in this process may have another precision and device; the processes stay together.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    # Nothing that learns lies in a buffer: all processes make the same ones, and prompts have large ones.
    options = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    waits = InitProcessGroupKwargs(timeout=PATIENCE)
    return Accelerator(mixed_precision=mixed, cpu=cpu, kwargs_handlers=[options, waits])


def prepared(net: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Return a module that computes in the run's precision, and averages its gradients over the run's processes."""
    learns = any(parameter.requires_grad for parameter in net.parameters())
    with warnings.catch_warnings():
        # Its successor is not known to the oldest torch that this runs on.
        warnings.filterwarnings("ignore", message=".broadcast_buffers. is deprecated", category=FutureWarning)
        return accelerator.prepare_model(net, evaluation_mode=not learns)
