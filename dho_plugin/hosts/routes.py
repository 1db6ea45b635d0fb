"""How a host's own training step gets the gradient of lambda CE + (1 - lambda) KD without knowing of it.

A tensor hook makes lambda g of each parameter's gradient g of the host's loss, so that the gradient is the combined one
wherever the host looks at it: when it unscales, clips or logs. The two routes differ in how the KD loss joins:

- route B puts the unlabeled images into the host's own image batch and adds the KD loss's gradient to that of the
  features, divided by lambda, which the tensor hooks take away again: one forward and one backward, for lambda > 0.
- route A encodes labeled and unlabeled images once more, in the middle of the host's forward, and adds the gradients to
  the parameters': for every lambda, at the price of a second forward and backward of the image encoder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dho_plugin.core.losses import kd_loss
from dho_plugin.errors import ConfigError, TrainingError


class Step:
    """One training step: what the KD loss needs, and what it gave.

    Args:
        labeled: number of labeled images.
        unlabeled: (B', 3, H, W) further images as the host's own arrive, or None.
        targets: (B + B', C) teacher's logits.
    """

    def __init__(self, labeled: int, unlabeled: Tensor | None, targets: Tensor):
        self.labeled, self.unlabeled, self.targets = labeled, unlabeled, targets
        self.joined = False  # the host's call of the encoder has begun
        self.used = False  # and its features have been seen
        self.kd_backward = False  # the gradients that are computed just now are the KD loss's own
        self.loss_kd: Tensor | None = None
        self.parameter_grads: dict[nn.Parameter, Tensor] = {}  # route A, times the scale
        self.head_grads: list[Tensor] = []
        self.scale = 1.0


class Route:
    """What both routes share.

    Args:
        encoder: the host's image encoder, called as (images, ...) -> (B, D).
        head: the KD head.
        optim: the host's optimizer.
        head_optim: the head's, stepped together with the host's.
        dho: TRAINER.DHO.
        scaler: the host's GradScaler, or None.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, optim: Optimizer, head_optim: Optimizer, dho, scaler=None):
        self.encoder, self.head, self.head_optim, self.dho, self.scaler = encoder, head, head_optim, dho, scaler
        self.current: Step | None = None
        self.parameters = [p for group in optim.param_groups for p in group["params"] if p.requires_grad]
        encoder.register_forward_pre_hook(self.before_encoder)
        encoder.register_forward_hook(self.after_encoder, with_kwargs=True)
        for parameter in self.parameters:
            parameter.register_hook(partial(self.weigh, parameter))
        optim.register_step_pre_hook(self.before_update)

    @contextlib.contextmanager
    def step(self, step: Step) -> Iterator[Step]:
        """Let the block, a host's forward_backward, be a DHO step.

        Raises:
            ConfigError: the host's image encoder was not called.
        """
        self.current = step
        try:
            yield step
        finally:
            self.current = None
        if step.loss_kd is None:
            raise ConfigError(
                "the host's forward_backward did not call self.model.image_encoder, whose features DHO needs: a host "
                "that reads stored features has no DHO twin"
            )

    def before_encoder(self, module: nn.Module, args: tuple) -> tuple | None:
        """Take the host's batch over, at its first call in a step."""
        step = self.current
        if step is None or step.joined:
            return None
        if not args or not isinstance(args[0], Tensor) or len(args[0]) != step.labeled:
            found = (
                tuple(args[0].shape) if args and isinstance(args[0], Tensor) else [type(arg).__name__ for arg in args]
            )
            raise ConfigError(
                f"self.model.image_encoder was called with {found}; looked for the batch's {step.labeled} images as "
                "the first positional argument"
            )
        step.joined = True
        return self.take_over(step, args)

    def take_over(self, step: Step, args: tuple) -> tuple | None:
        """Return other arguments for the encoder, or None."""
        return None

    def together(self, step: Step, images: Tensor) -> Tensor:
        """Return the host's images with the unlabeled ones behind them."""
        return images if step.unlabeled is None else torch.cat([images, step.unlabeled.to(images)])

    def after_encoder(self, module: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor | None:
        """Use the features of the host's first call in a step."""
        step = self.current
        if step is None or step.used:
            return None
        if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] != self.head.feature_dim:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ConfigError(
                f"self.model.image_encoder returned {found}; looked for features (images, {self.head.feature_dim})"
            )
        step.scale = self.scaler.get_scale() if self.scaler is not None and self.scaler.is_enabled() else 1.0
        step.used = True
        return self.use(step, module, args, kwargs, output)

    def use(self, step: Step, module: nn.Module, args: tuple, kwargs: dict, features: Tensor) -> Tensor | None:
        """Compute the KD loss and its gradients; return what the host sees of the features, None for all."""
        raise TypeError(f"{type(self).__name__} defines no use")

    def kd(self, step: Step, features: Tensor) -> Tensor:
        """Return the KD loss: the labeled images' mean and the unlabeled ones' (DHO, Eq. 7)."""
        logits, n, dho = self.head(features), step.labeled, self.dho
        loss = kd_loss(logits[:n], step.targets[:n], dho.ETA, dho.KD_ETA2)
        if step.unlabeled is not None:
            loss = loss + kd_loss(logits[n:], step.targets[n:], dho.ETA, dho.KD_ETA2)
        if not torch.isfinite(loss):
            raise TrainingError(f"the KD loss is {loss.item()}; lower OPTIM.LR or TRAINER.DHO.OPTIM.LR, or use fp32")
        step.loss_kd = loss.detach()
        return loss

    def weigh(self, parameter: nn.Parameter, grad: Tensor) -> Tensor | None:
        """Return lambda times a parameter's gradient, with what route A has for it."""
        step = self.current
        if step is None or step.kd_backward:
            return None
        grad = grad * self.dho.LAMBDA
        own = step.parameter_grads.pop(parameter, None)  # once, also where the host runs backward twice
        return grad if own is None else grad + ((1 - self.dho.LAMBDA) * own).to(grad.dtype)

    def before_update(self, optim: Optimizer, args: tuple, kwargs: dict) -> None:
        """Step the head with the host's optimizer: not where a GradScaler leaves the step out."""
        step = self.current
        if step is None:
            return
        for parameter, grad in step.parameter_grads.items():  # which the host's loss did not reach
            parameter.grad = ((1 - self.dho.LAMBDA) / step.scale * grad).to(parameter.dtype)
        for parameter, grad in zip(self.head.parameters(), step.head_grads, strict=False):
            parameter.grad = (1 - self.dho.LAMBDA) * grad
        self.head_optim.step()
        self.head_optim.zero_grad(set_to_none=True)  # a host that steps every optimizer must not step it again
        step.parameter_grads, step.head_grads = {}, []


class RouteB(Route):
    """The unlabeled images ride in the host's own batch; needs lambda > 0."""

    def take_over(self, step: Step, args: tuple) -> tuple:
        """Append the unlabeled images to the host's."""
        return (self.together(step, args[0]), *args[1:])

    def use(self, step: Step, module: nn.Module, args: tuple, kwargs: dict, features: Tensor) -> Tensor:
        """Add the KD loss's gradient to the features', and show the host its own images' features."""
        leaf = features.detach().float().requires_grad_()
        with torch.enable_grad():
            to_features, *step.head_grads = torch.autograd.grad(self.kd(step, leaf), [leaf, *self.head.parameters()])
        if features.requires_grad:
            factor = step.scale * (1 - self.dho.LAMBDA) / self.dho.LAMBDA
            features.register_hook(lambda grad: grad + (factor * to_features).to(grad.dtype))
        return features[: step.labeled]


class RouteA(Route):
    """The encoder runs a second time over all images; for any lambda."""

    def use(self, step: Step, module: nn.Module, args: tuple, kwargs: dict, features: Tensor) -> None:
        """Compute the KD loss's gradients of all parameters; the host's own features stay as they are."""
        with torch.enable_grad():
            second = module(self.together(step, args[0]), *args[1:], **kwargs)
            loss = step.scale * self.kd(step, second.float())
            every = [*self.parameters, *self.head.parameters()]
            step.kd_backward = True
            # The graph stays: learned prompts that the encoder was called with belong to the host's forward, too.
            grads = torch.autograd.grad(loss, every, retain_graph=True, allow_unused=True)
            step.kd_backward = False
        own, to_head = grads[: len(self.parameters)], grads[len(self.parameters) :]
        step.parameter_grads = {p: g for p, g in zip(self.parameters, own, strict=True) if g is not None}
        step.head_grads = [grad / step.scale for grad in to_head]


ROUTES: dict[str, Callable[..., Route]] = {"A": RouteA, "B": RouteB}


def choose_route(name: str, lambda_: float) -> Callable[..., Route]:
    """Return the route that TRAINER.DHO.ROUTE asks for: auto is B, and A for lambda = 0.

    Raises:
        ConfigError: unknown route, or B with lambda = 0.
    """
    if name not in ("auto", *ROUTES):
        raise ConfigError(f"TRAINER.DHO.ROUTE is {name!r}; allowed: auto, {', '.join(ROUTES)}")
    if name == "B" and lambda_ == 0:
        raise ConfigError("TRAINER.DHO.ROUTE B divides by TRAINER.DHO.LAMBDA, which is 0: use auto or A")
    return ROUTES["A" if name == "A" or lambda_ == 0 else "B"]
