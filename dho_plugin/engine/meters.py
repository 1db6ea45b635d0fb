"""Running means of what a step reports, kept on the device until somebody reads them."""

from __future__ import annotations

from collections import OrderedDict

import torch


class AverageMeter:
    """Last value and mean of a stream of numbers."""

    def __init__(self) -> None:
        self.val: float | torch.Tensor = 0.0
        self.sum: float | torch.Tensor = 0.0
        self.count = 0

    def update(self, value: float | torch.Tensor) -> None:
        """Add a value; a tensor stays where it is, so that a step does not wait for the device."""
        self.val = value.detach() if isinstance(value, torch.Tensor) else value
        self.sum = self.sum + self.val
        self.count += 1

    @property
    def avg(self) -> float:
        """Mean of all values, 0 before the first."""
        return float(self.sum) / max(1, self.count)


class MetricMeter:
    """One `AverageMeter` for every name; `str()` gives Dassl's `name last (mean)`."""

    def __init__(self) -> None:
        self.meters: OrderedDict[str, AverageMeter] = OrderedDict()

    def update(self, values: dict[str, float | torch.Tensor]) -> None:
        """Add one value under each name."""
        for name, value in values.items():
            self.meters.setdefault(name, AverageMeter()).update(value)

    def __str__(self) -> str:
        return " ".join(f"{name} {float(m.val):.4f} ({m.avg:.4f})" for name, m in self.meters.items())

    @classmethod
    def of(cls, figures: dict[str, tuple[float, float]]) -> MetricMeter:
        """Return meters that show a last value and a mean each."""
        meters = cls()
        for name, (val, mean) in figures.items():
            meter = meters.meters[name] = AverageMeter()
            meter.val, meter.sum, meter.count = val, mean, 1
        return meters
