"""Multinomial logistic regression on any number of frozen features, on the CPU or a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

CHUNK = 65536  # rows at a time: of ImageNet's 1.28 million images, the scores of all would take 5 GB
ROUND = 20  # steps between two looks at the progress


class Logistic:
    """min over W, b of the mean cross-entropy of softmax(x W^T + b) plus |W|^2 / (2 c n): scikit-learn's objective.

    Args:
        x: (N, D) float features.
        y: (N,) int64 classes in [0, C).
        c: inverse weight of the squared norm.
        device: where the sums are computed; x may lie elsewhere and goes there in parts.
    """

    def __init__(self, x: Tensor, y: Tensor, c: float = 1.0, device: str | torch.device = "cpu"):
        self.x, self.y, self.decay, self.device = x, y, 1.0 / (c * len(x)), device
        shape = {"dtype": x.dtype, "device": device}
        self.weight = torch.zeros(int(y.max()) + 1, x.shape[1], **shape)
        self.bias = torch.zeros(len(self.weight), **shape)

    def fit(self, steps: int = 1000) -> Logistic:
        """Minimize by L-BFGS, to the end or for so many steps."""
        solver = torch.optim.LBFGS(
            [self.weight, self.bias], max_iter=ROUND, history_size=10, line_search_fn="strong_wolfe"
        )
        before = float("inf")
        with tqdm(range(0, steps, ROUND), desc="linear evaluation", unit_scale=ROUND, unit="step") as bar:
            for _ in bar:
                loss = float(solver.step(self.closure))  # at the start of these steps
                bar.set_postfix_str(f"loss {loss:.4f}")
                if not before - loss > 1e-6 * abs(loss):
                    break
                before = loss
        return self

    @torch.no_grad()
    def closure(self) -> float:
        """Return the objective and leave its gradient in weight.grad and bias.grad."""
        loss = self.decay / 2 * self.weight.square().sum().item()
        self.weight.grad, self.bias.grad = self.decay * self.weight, torch.zeros_like(self.bias)
        for x, y in zip(self.x.split(CHUNK), self.y.split(CHUNK), strict=True):
            x, y = x.to(self.device), y.to(self.device)
            scores = F.linear(x, self.weight, self.bias).log_softmax(dim=1)
            loss += F.nll_loss(scores, y, reduction="sum").item() / len(self.x)
            slope = scores.exp_()
            slope[torch.arange(len(y), device=y.device), y] -= 1
            self.weight.grad.addmm_(slope.T, x, alpha=1 / len(self.x))
            self.bias.grad.add_(slope.sum(dim=0), alpha=1 / len(self.x))
        return loss

    @torch.no_grad()
    def scores(self, x: Tensor) -> Tensor:
        """Return the scores (M, C) of features (M, D), on the CPU."""
        return torch.cat([F.linear(part.to(self.device), self.weight, self.bias).cpu() for part in x.split(CHUNK)])
