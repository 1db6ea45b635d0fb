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
        self.total = 0.0  # sum of the weights so far

    @torch.no_grad()
    def add(self, weight: float) -> None:
        """Add the parameters as they are now, times `weight`."""
        self.total += weight
        for key, parameter in self._parameters.items():
            self._sums[key].add_(parameter, alpha=weight)

    @torch.no_grad()
    def copy_to_parameters(self) -> None:
        """Put the sums in the place of the parameters."""
        for key, parameter in self._parameters.items():
            parameter.copy_(self._sums[key])

    def state_dict(self) -> dict:
        """Return the sums so far by parameter, and the sum of their weights."""
        return {"total": self.total, "sums": dict(self._sums)}

    def load_state_dict(self, state: Mapping, total: float) -> None:
        """Go on with stored sums.

        Args:
            state: what `state_dict` returned; {} where a checkpoint has none.
            total: what the weights of the epochs so far must add up to.

        Raises:
            CheckpointError: they are missing, of other parameters, or were made with other weights.
        """
        sums: Mapping[str, Tensor] = state.get("sums", {})
        stored = {key: tuple(value.shape) for key, value in sums.items()}
        own = {key: tuple(value.shape) for key, value in self._sums.items()}
        if stored != own:
            raise CheckpointError(
                "the checkpoint holds no running average of this model's parameters, so training cannot go on from it "
                f"as if it had not been interrupted: it has {sorted(stored)[:3]}, needed are {sorted(own)[:3]}"
            )
        if abs(state["total"] - total) > 1e-6:
            raise CheckpointError(
                f"the checkpoint's epochs were averaged with weights that add up to {state['total']:.6f}, this run's "
                f"add up to {total:.6f}: use the OPTIM.MAX_EPOCH and the averaging (GPA_MEAN, GPA_STD) of that run"
            )
        self.total = state["total"]
        for key, value in sums.items():
            self._sums[key].copy_(value)
