"""How the gradients of L_CE and L_KD relate in training, recorded every so many steps (DHO, Fig. 4 and 13)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dho_plugin.core.gradients import alignment, discrepancy, dominant_eigenvalue, image_alignment, residuals
from dho_plugin.errors import ConfigError


class GradientProbing:
    """The part of a DHO trainer that looks at gradients; the training's own numbers stay the same to the last bit."""

    def probe_gradients(self, batch_x: dict, batch_u: dict | None = None) -> None:
        """Record the gradients of this step's batches before the step is taken, where it is the turn of that.

        Of a step that is computed in parts (TRAIN.ACCUMULATION) the first part is looked at, of several processes the
        main one's share; both in fp32. One line of JSON goes to `gradients.jsonl` in the run's folder.

        Raises:
            ConfigError: the method has no KD loss, or its features do not learn.
        """
        every = self.cfg.TRAINER.DHO.PROBE_GRADIENTS
        if not every or (step := self.epoch * self.num_batches + self.batch_idx) % every:
            return
        if self.teacher is None:
            raise self._unfit("has no KD loss")
        if "features" in batch_x:
            raise self._unfit("has frozen features, which are stored ones")
        if not self.accelerator.is_main_process:
            return
        batches, _ = next(self.parts([batch_x] if batch_u is None else [batch_x, batch_u]))
        net = self.accelerator.unwrap_model(self.net)
        with unchanged(net):
            record = self.gradient_record(net, batches)
        with (self.output_dir / "gradients.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **record}) + "\n")

    def gradient_record(self, net: nn.Module, batches: Sequence[dict]) -> dict[str, float | None]:
        """Return the quantities of DHO, Fig. 4 and 13, by the method's own losses on the step's batches.

        Returns:
            cosine_parameters, inner_parameters: of the gradients of L_CE and L_KD (Eq. 6 and 7) with respect to the
            parameters below the features; the same with `_labeled` for the labeled images' part of L_KD alone;
            cosine_features, inner_features: means over the labeled images of Eq. 5 or 9; discrepancy: mean of
            (p_CE - y)^T (p_KD - p) at the training's temperature; eigenvalue: of W W^T or W_CE W_KD^T, None where the
            heads have no weight matrices.
        """
        labels, n = batches[0]["label"], len(batches[0]["label"])
        with torch.no_grad():
            targets = self.teacher_targets(batches)
        z = net.student.features(torch.cat([batch["img"] for batch in batches]))
        below = self._below(net, z)
        logits_ce, taught = net.student.logits_ce(z[:n]), net.kd_head(z)
        both, of_n = (self.objective(logits_ce, labels, taught[:k], targets[:k]) for k in (len(z), n))
        if not both.ce.requires_grad:
            raise self._unfit("learns no labels")
        losses = both.ce, both.kd, of_n.kd
        ce, full, labeled = (torch.autograd.grad(x, [z, *below], retain_graph=True, allow_unused=True) for x in losses)
        of_all, of_labeled = alignment(ce[1:], full[1:]), alignment(ce[1:], labeled[1:])
        of_features = image_alignment(n * ce[0][:n], n * labeled[0][:n])
        return {
            "cosine_parameters": of_all.cosine,
            "inner_parameters": of_all.inner,
            "cosine_parameters_labeled": of_labeled.cosine,
            "inner_parameters_labeled": of_labeled.inner,
            "cosine_features": of_features.cosine,
            "inner_features": of_features.inner,
            "discrepancy": self._discrepancy(logits_ce.detach(), labels, taught[:n].detach(), targets[:n]),
            "eigenvalue": _eigenvalue(getattr(net.student, "ce_head", None), net.kd_head),
        }

    def _discrepancy(self, logits_ce: Tensor, labels: Tensor, taught: Tensor, targets: Tensor) -> float | None:
        """Return the prediction-level discrepancy, None where the teacher teaches no logits of the classes."""
        if not logits_ce.shape == taught.shape == targets.shape:
            return None
        return discrepancy(*residuals(logits_ce, labels, taught, targets, eta=self.cfg.TRAINER.DHO.ETA))

    def _below(self, net: nn.Module, z: Tensor) -> list[nn.Parameter]:
        """Return the parameters that the features depend on."""
        learning = [parameter for parameter in net.parameters() if parameter.requires_grad]
        if not z.requires_grad:
            raise self._unfit("has features that do not learn")
        found = torch.autograd.grad(z.sum(), learning, retain_graph=True, allow_unused=True)
        return [parameter for parameter, grad in zip(learning, found, strict=True) if grad is not None]

    def _unfit(self, why: str) -> ConfigError:
        every = self.cfg.TRAINER.DHO.PROBE_GRADIENTS
        return ConfigError(
            f"TRAINER.DHO.PROBE_GRADIENTS is {every}, but {type(self).__name__} {why}: there are no two gradients of "
            "the features to compare. Set it to 0, or train a method that distils into features that learn"
        )


@contextmanager
def unchanged(net: nn.Module) -> Iterator[None]:
    """Give a module's buffers (running statistics) and the random state back as they were."""
    kept = [buffer.clone() for buffer in net.buffers()]
    devices = {parameter.device.index for parameter in net.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        yield
    with torch.no_grad():
        for buffer, value in zip(net.buffers(), kept, strict=True):
            buffer.copy_(value)


def _eigenvalue(ce_head: nn.Module | None, kd_head: nn.Module) -> float | None:
    """Return the dominant eigenvalue of two linear or cosine heads' weights, or of one head's in both roles."""
    weights = [getattr(head, "weight", None) for head in (ce_head, kd_head)]
    if not all(isinstance(weight, Tensor) and weight.ndim == 2 for weight in weights):
        return None
    if weights[0].shape != weights[1].shape:  # what teaches features has no classes
        return None
    return dominant_eigenvalue(weights[0], None if ce_head is kd_head else weights[1])
