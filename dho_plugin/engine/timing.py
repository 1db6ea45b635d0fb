"""How long the steps of a training take, and how much of that they wait for data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from dho_plugin.engine.meters import AverageMeter

MUCH = 0.1  # share of an epoch from which on waiting for data is worth a hint
NOTICED = 1.0  # seconds of an epoch below which it is not


class StepClock:
    """Times of steps on the host, over an epoch and over the whole training.

    A device computes while the host goes on, so a step's own time says little; but the time that the host waits for the
    next batch is time in which it gives the device nothing to do, and that is what counts here.

    Args:
        now: what tells the time in seconds.

    Attributes:
        batch: seconds of the epoch's steps, from the end of one to the end of the next.
        data: seconds that they waited for data.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self.now, self.total, self.waited = now, 0.0, 0.0
        self.start_epoch()

    def start_epoch(self) -> None:
        """Begin an epoch."""
        self.batch, self.data = AverageMeter(), AverageMeter()
        self._end, self._waits = self.now(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the block as waiting for data."""
        begin = self.now()
        yield
        self._waits += self.now() - begin

    def step_done(self) -> None:
        """End a step."""
        end = self.now()
        self.batch.update(end - self._end)
        self.data.update(self._waits)
        self.total, self.waited = self.total + self.batch.val, self.waited + self.data.val
        self._end, self._waits = end, 0.0

    def epoch_line(self, workers: int) -> str:
        """Return the share of the epoch that waited for data, and where it is much, what to do.

        Args:
            workers: `DATALOADER.NUM_WORKERS` of the run.
        """
        share = _share(self.data.sum, self.batch.sum)
        line = f"data wait {100 * share:.1f}% of the epoch"
        if share <= MUCH or self.data.sum < NOTICED:
            return line
        return (
            f"{line}: raise DATALOADER.NUM_WORKERS ({workers}) up to the number of cores, or store features "
            "(python -m dho_plugin.cache), which leaves less to decode or nothing"
        )

    def state(self) -> dict[str, float]:
        """Return the times of the training so far, for a checkpoint."""
        return {"seconds": self.total, "waited": self.waited}

    def load_state(self, state: dict[str, float] | None) -> None:
        """Go on from the times of an interrupted run; None: it stored none."""
        state = state or {}
        self.total, self.waited = state.get("seconds", 0.0), state.get("waited", 0.0)

    def summary(self) -> dict[str, Any] | None:
        """Return how long the training waited for data, in seconds and as a share of its steps; None without steps."""
        if not self.total:
            return None
        return {"seconds": round(self.waited, 3), "share": round(_share(self.waited, self.total), 5)}


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
