"""The losses of the distillation methods that DHO is compared with; what they share with it is in `losses`."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dho_plugin.core.losses import DHOLoss, ce_loss, kd_loss, weighted, widen
from dho_plugin.errors import ConfigError


def feature_loss(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared difference of the unit features, over all entries (FD of CLIP-KD, Yang et al., CVPR 2024).

    The mean is also over the D entries of a feature, as in that paper's code: it is small, and CLIP-KD weighs it by
    2000 (at D = 512) to bring it to the size of the other losses.

    Args:
        features: (B, D) the student's, projected to the teacher's width, of any length.
        teacher_features: (B, D) the teacher's, of any length; no gradient flows into them.

    Returns:
        Scalar, fp32 (fp64 for fp64 input).

    Raises:
        ConfigError: both differ in their shape.
    """
    if features.shape != teacher_features.shape:
        raise ConfigError(
            f"the student's features have shape {tuple(features.shape)}, the teacher's {tuple(teacher_features.shape)}:"
            " project the student's to the teacher's width"
        )
    return F.mse_loss(*(F.normalize(widen(z), dim=-1) for z in (features, teacher_features.detach())))


def binary_kd_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0, norm: bool = True) -> Tensor:
    """DHKD's loss on logits before the softmax: each class is a binary problem (Yang et al., 2024, arXiv 2411.08937).

    BinaryKL: temperature^2 * sum_k KL[Bernoulli(sigmoid(t_k / T)) || Bernoulli(sigmoid(s_k / T))], averaged over the
    batch. BinaryKL-Norm, the one that the method is trained with, has 1/2 in the place of the first probability and
    sigmoid((s_k - t_k) / T) in that of the second: its gradient depends on the difference of the logits alone.

    Args:
        logits: (B, C) the auxiliary head's.
        teacher_logits: (B, C) the teacher's (cos / zeta); no gradient flows into them.
        temperature: T, > 0.
        norm: BinaryKL-Norm in the place of BinaryKL.

    Returns:
        Scalar, fp32 (fp64 for fp64 input).

    Raises:
        ConfigError: the temperature is not positive.
    """
    if not temperature > 0:
        raise ConfigError(f"TRAINER.DISTILL.BINARY_T is {temperature}; it must be greater than 0 (DHKD uses 2).")
    student, teacher = (widen(values) / temperature for values in (logits, teacher_logits.detach()))
    if norm:
        student, teacher = student - teacher, torch.zeros_like(teacher)
    p = teacher.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(student, p, reduction="none")
    # what of it is the target's own entropy, which has no gradient
    entropy = F.binary_cross_entropy_with_logits(teacher, p, reduction="none")
    return temperature**2 * (cross_entropy - entropy).sum(dim=-1).mean()


def over_batches(loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor, n_labeled: int) -> Tensor:
    """Return a distillation loss of the labeled batch plus that of the unlabeled one behind it, as in DHO, Eq. 3.

    Args:
        loss: (outputs, targets) of a batch -> scalar mean.
        outputs: (B + B', ...) the student's, labeled ones first.
        targets: (B + B', ...) the teacher's.
        n_labeled: B.
    """
    total = loss(outputs[:n_labeled], targets[:n_labeled])
    return total if len(outputs) == n_labeled else total + loss(outputs[n_labeled:], targets[n_labeled:])


def sskd_loss(
    logits_ce: Tensor,
    labels: Tensor,
    teacher_x: Tensor,
    logits_kd_u: Tensor | None = None,
    teacher_u: Tensor | None = None,
    *,
    lambda_: float,
    eta: float,
    eta2: bool = True,
    soft: bool = True,
) -> DHOLoss:
    """SSKD: h_CE learns from the labeled images, an auxiliary head from the teacher on the unlabeled ones.

    He et al., "Semi-Supervised Domain Generalizable Person Re-Identification", 2021: on labeled images the main
    classifier follows the labels and the teacher's soft labels, on unlabeled ones the auxiliary classifier follows
    the teacher. So does their released code, where both KL have weight eta^2 and temperatures of their own (16
    labeled, 6 unlabeled); here both have DHO's eta, as the logits are another teacher's, and lambda balances them.
    DHO, section 4.1, calls it "each head trained on labeled and unlabeled sets respectively".

    Args:
        logits_ce: (B, C) h_CE on the labeled batch.
        labels: (B,) int64.
        teacher_x: (B, C) teacher's logits on the labeled batch.
        logits_kd_u: (B', C) the auxiliary head on the unlabeled batch; None trains on labeled images only.
        teacher_u: (B', C) teacher's logits on the unlabeled batch.
        lambda_: weight of the cross-entropy, in [0, 1].
        eta: distillation temperature, > 0.
        eta2: multiply each KL by eta^2, see `losses.kd_loss`.
        soft: h_CE follows the teacher's soft labels, too.

    Returns:
        DHOLoss(total, ce, kd).
    """
    kd = kd_loss(logits_ce, teacher_x, eta, eta2) if soft else logits_ce.new_zeros((), dtype=torch.float32)
    if logits_kd_u is not None:
        kd = kd + kd_loss(logits_kd_u, teacher_u, eta, eta2)
    return weighted(ce_loss(logits_ce, labels), kd, lambda_)
