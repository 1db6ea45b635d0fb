"""Gaussian-weighted averages of what learns over the epochs (PromptSRC's prompt aggregation)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dho_plugin.errors import CheckpointError, ConfigError


def gaussian_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Return w_1 ... w_E with w_e proportional to N(e; mean, std^2) and sum 1 (PromptSRC, "prompt self-ensembling").

    Raises:
        ConfigError: std is not positive, or the mean lies so far outside of the epochs that all weights vanish.
    """
    if not std > 0:
        raise ConfigError(f"TRAINER.PROMPTSRC.GPA_STD is {std}; it must be greater than 0")
    raw = [math.exp(-0.5 * ((epoch - mean) / std) ** 2) for epoch in range(1, epochs + 1)]
    if epochs and not sum(raw) > 0:
        raise ConfigError(
            f"TRAINER.PROMPTSRC.GPA_MEAN is {mean}, too far from the epochs 1 to {epochs} for a GPA_STD of {std}: all "
            "weights vanish"
        )
    return [weight / sum(raw) for weight in raw]


class WeightedSum:
    """The sum of w_e theta_e over epochs e, for everything that learns in some modules and nothing else.

    Args:
        modules: modules by name; of each, the parameters that require a gradient.
    """

    def __init__(self, modules: Mapping[str, nn.Module]):
        self._parameters = {
            f"{name}.{key}": parameter
            for name, module in modules.items()
            for key, parameter in module.named_parameters()
            if parameter.requires_grad
        }
        self._sums = {key: torch.zeros_like(parameter.data) for key, parameter in self._parameters.items()}

    @torch.no_grad()
    def add(self, weight: float) -> None:
        """Add the parameters as they are now, times `weight`."""
        for key, parameter in self._parameters.items():
            self._sums[key].add_(parameter.data, alpha=weight)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Put the sums in the place of the parameters."""
        for key, parameter in self._parameters.items():
            parameter.data.copy_(self._sums[key])

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums so far, by parameter."""
        return dict(self._sums)

    def load_state_dict(self, state: Mapping[str, Tensor] | None) -> None:
        """Go on with stored sums.

        Raises:
            CheckpointError: they are missing, or of other parameters.
        """
        stored = {key: tuple(value.shape) for key, value in (state or {}).items()}
        own = {key: tuple(value.shape) for key, value in self._sums.items()}
        if stored != own:
            raise CheckpointError(
                "the checkpoint holds no running average of this model's parameters, so training cannot go on from it "
                f"as if it had not been interrupted: it has {sorted(stored)[:3]}, needed are {sorted(own)[:3]}"
            )
        for key, value in (state or {}).items():
            self._sums[key].copy_(value)
