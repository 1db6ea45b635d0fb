"""Where a run computes, and in which precision."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from dho_plugin.engine.config import PRECISIONS
from dho_plugin.errors import ConfigError


def build_accelerator(cfg, precision: str) -> Accelerator:
    """Return the Accelerator of a run: the accelerator where there is one and USE_CUDA allows it, else the CPU.

    `fp16` and `amp` are fp16 autocast with a gradient scaler; a CPU, which has no such thing, computes in fp32.

    Raises:
        ConfigError: unknown precision.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"TRAINER.*.PREC is {precision!r}; allowed: {', '.join(PRECISIONS)}")
    on_cpu = not (cfg.USE_CUDA and torch.cuda.is_available())
    mixed = {"fp32": "no", "bf16": "bf16"}.get(precision, "no" if on_cpu else "fp16")
    if on_cpu and precision in ("fp16", "amp"):
        print(f"Precision {precision} needs a GPU: computing in fp32")
    AcceleratorState._reset_state()  # a second trainer in this process may have another precision
    return Accelerator(mixed_precision=mixed, cpu=on_cpu)
