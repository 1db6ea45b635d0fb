"""How an optimizer step is taken: in one piece or in parts, on one process or several."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dho_plugin.engine.meters import MetricMeter
from dho_plugin.errors import TrainingError


class Stepping:
    """The part of a trainer that computes gradients and takes steps with them, under Dassl's names.

    Attributes:
        net: what `forward_backward` calls; on several processes it averages their gradients.
    """

    accelerator: Accelerator
    net: nn.Module | None = None
    epoch = 0
    batch_idx = 0
    _optims: OrderedDict[str, torch.optim.Optimizer | None]

    def parts(self, batches: Sequence[Mapping]) -> Iterator[tuple[list[dict], AbstractContextManager]]:
        """Cut a step's batches into TRAIN.ACCUMULATION equal parts.

        Yields:
            The batches of a part, and the context in which it runs: only the last one makes the processes average
            their gradients.
        """
        count = self.cfg.TRAIN.ACCUMULATION
        for number in range(count):
            last = number + 1 == count or self.net is None
            cut = [{key: _part(values, number, count) for key, values in batch.items()} for batch in batches]
            yield cut, nullcontext() if last else self.accelerator.no_sync(self.net)

    def model_zero_grad(self) -> None:
        """Drop all gradients."""
        for optim in self.optimizers():
            optim.zero_grad(set_to_none=True)

    def model_backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those that are there.

        Raises:
            TrainingError: the loss is infinite or NaN.
        """
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at epoch {self.epoch + 1}, step {self.batch_idx + 1}; lower OPTIM.LR "
                "or TRAINER.DHO.OPTIM.LR, or use another TRAINER.*.PREC"
            )
        self.accelerator.backward(loss)

    def model_update(self) -> None:
        """Take a step with every optimizer."""
        scaler = self.accelerator.scaler
        for optim in self.optimizers():
            if scaler is None:
                optim.step()
            else:
                scaler.step(optim)
        if scaler is not None:  # once for all optimizers: an update in between would unscale the next ones wrongly
            scaler.update()

    def model_backward_and_update(self, loss: Tensor) -> None:
        """Take one optimizer step on a loss with every registered optimizer.

        Raises:
            TrainingError: the loss is infinite or NaN.
        """
        self.model_zero_grad()
        self.model_backward(loss)
        self.model_update()

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the registered optimizers."""
        return [optim for optim in self._optims.values() if optim is not None]

    def over_processes(self, meters: MetricMeter) -> MetricMeter:
        """Return the means of running means over all processes; each of them calls this at the same step."""
        if self.accelerator.num_processes == 1:
            return meters
        pairs = torch.tensor([[float(m.val), m.avg] for m in meters.meters.values()], device=self.accelerator.device)
        means = self.accelerator.reduce(pairs, reduction="mean").tolist()
        return MetricMeter.of(dict(zip(meters.meters, means, strict=True)))


def _part(values, number: int, count: int):
    """Return part `number` of `count` equal parts of a tensor or a list."""
    if count == 1:
        return values
    size = len(values) // count
    return values[number * size : (number + 1) * size]
