"""One run on several processes, as torchrun starts them: which one this is, and what they tell each other.

This module imports no torch: a command that skips a complete run must not wait for it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from dho_plugin.errors import ConfigError

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

T = TypeVar("T")
# How long processes wait for each other: while one of them lists ImageNet on a cold disk, NCCL's own ten minutes pass.
PATIENCE = timedelta(hours=6)
ROWS_AT_ONCE = 4096  # rows that each process hands over at once: bounds what lies on the device


def world_size() -> int:
    """Return the number of processes of this run; torchrun sets it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process; 0 is the main one, which prints and writes what belongs to the run."""
    return int(os.environ.get("RANK", "0"))


@contextlib.contextmanager
def only_main_prints() -> Iterator[None]:
    """Drop what the other processes print while the block runs; their errors and warnings are still seen."""
    with contextlib.ExitStack() as stack:
        if rank():
            stream = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(stream))
        yield


def agreed(value: T, *, on_cpu: bool) -> T:
    """Return the main process's value on all processes.

    Args:
        value: a plain value.
        on_cpu: whether the run computes on the CPU.
    """
    if world_size() == 1:
        return value
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=on_cpu, timeout=PATIENCE)
    return broadcast_object_list([value])[0]


def check_divides(key: str, batch: int, parts: int) -> None:
    """Check that processes, and the parts of a step, get equal shares of a batch: then their mean is the batch's.

    Args:
        key: the config key of the batch size.
        batch: images of a step.
        parts: processes times TRAIN.ACCUMULATION.

    Raises:
        ConfigError: they do not.
    """
    if batch % parts:
        allowed = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
        raise ConfigError(
            f"{key} is {batch}, the images of a step over all processes, and cannot be shared equally among {parts} "
            f"({world_size()} processes x TRAIN.ACCUMULATION {parts // world_size()}); allowed: {allowed}"
        )


def share(total: int, accelerator: Accelerator) -> slice:
    """Return which of `total` rows this process takes: neighbours, and every row exactly once over all processes."""
    length = -(-total // accelerator.num_processes)
    start = min(accelerator.process_index * length, total)
    return slice(start, min(start + length, total))


def gather_rows(mine: Tensor, total: int, accelerator: Accelerator) -> Tensor:
    """Return the rows of all processes in order, on each of them.

    Args:
        mine: (n, ...) on the CPU, the rows of this process's `share`.
        total: rows of all processes.
        accelerator: the run's.

    Returns:
        (total, ...) on the CPU.
    """
    world = accelerator.num_processes
    if world == 1:
        return mine
    length = -(-total // world)
    rows = mine.new_zeros((world, length, *mine.shape[1:]))
    padded = mine.new_zeros(rows.shape[1:])
    padded[: len(mine)] = mine
    for start in range(0, length, ROWS_AT_ONCE):
        part = padded[start : start + ROWS_AT_ONCE].to(accelerator.device)
        rows[:, start : start + len(part)] = accelerator.gather(part).view(world, *part.shape).cpu()
    return rows.flatten(0, 1)[:total]
