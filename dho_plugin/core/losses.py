"""The losses of DHO: cross-entropy on the CE head, distillation on the KD head, and their weighted sum."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dho_plugin.errors import ConfigError


class DHOLoss(NamedTuple):
    """The parts of one training step's loss; each a scalar tensor, fp32 or wider."""

    total: Tensor
    ce: Tensor
    kd: Tensor


class SelfConsistency(NamedTuple):
    """PromptSRC's three regularisers before their weights; each a scalar tensor, fp32 or wider."""

    text: Tensor
    image: Tensor
    logits: Tensor


def teacher_probs(teacher_logits: Tensor, eta: float) -> Tensor:
    """Teacher's class probabilities at temperature zeta * eta (DHO, Algorithm 1, line 13).

    Args:
        teacher_logits: (B, C) float, cosine similarities already divided by the teacher's zeta.
        eta: distillation temperature, > 0.

    Returns:
        (B, C) fp32 (fp64 for fp64 input); rows sum to 1.

    Raises:
        ConfigError: eta is not positive.
    """
    return _log_probs(teacher_logits, eta).exp()


def ce_loss(logits_ce: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the CE head, averaged over the batch (DHO, Eq. 2 and 6).

    Args:
        logits_ce: (B, C) float of any width.
        labels: (B,) int64 class indices.

    Returns:
        Scalar, fp32 (fp64 for fp64 input).
    """
    return F.cross_entropy(widen(logits_ce), labels)


def kd_loss(logits_kd: Tensor, teacher_logits: Tensor, eta: float, eta2: bool = True) -> Tensor:
    """KL[p || softmax(logits_kd / eta)], averaged over the batch: one of the two sums of DHO, Eq. 3 and 7.

    The teacher is the first argument of the divergence, as in Eq. 7. Algorithm 1, line 23, prints the arguments the
    other way round; Eq. 7 is followed because Theorem A.1 is proved for it and the authors' released code computes it.
    The equations have no factor eta^2; the released code has it (Hinton's convention: gradients keep their size when
    eta changes), so it is the default and `eta2=False` is the plain equation.

    Args:
        logits_kd: (B, C) float of any width.
        teacher_logits: (B, C) float, cosine similarities divided by zeta; no gradient flows into them.
        eta: distillation temperature of both distributions, > 0.
        eta2: multiply by eta^2.

    Returns:
        Scalar, fp32 (fp64 for fp64 input).

    Raises:
        ConfigError: eta is not positive, or student and teacher differ in their number of classes.
    """
    _check_classes(logits_kd, teacher_logits)
    log_q = _log_probs(logits_kd, eta)
    log_p = _log_probs(teacher_logits.detach(), eta)
    loss = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return loss * eta**2 if eta2 else loss


def dho_loss(
    logits_ce: Tensor,
    labels: Tensor,
    logits_kd_x: Tensor | None = None,
    teacher_x: Tensor | None = None,
    logits_kd_u: Tensor | None = None,
    teacher_u: Tensor | None = None,
    *,
    lambda_: float,
    eta: float,
    eta2: bool = True,
) -> DHOLoss:
    """lambda * L_CE + (1 - lambda) * L_KD over a labeled and an unlabeled batch (DHO, Eq. 6 and 7; Algorithm 1).

    Passing the logits of one head twice gives the single-head baseline (DHO, Eq. 2 and 3). Without a KD head
    (`logits_kd_x` is None, lambda is 1) the loss is the cross-entropy alone.

    Args:
        logits_ce: (B, C) CE head on the labeled batch.
        labels: (B,) int64.
        logits_kd_x: (B, C) KD head on the labeled batch.
        teacher_x: (B, C) teacher's logits (cos / zeta) on the labeled batch.
        logits_kd_u: (B', C) KD head on the unlabeled batch; None trains on labeled images only.
        teacher_u: (B', C) teacher's logits on the unlabeled batch.
        lambda_: weight of the cross-entropy, in [0, 1].
        eta: distillation temperature, > 0.
        eta2: multiply each KL by eta^2, see `kd_loss`.

    Returns:
        DHOLoss(total, ce, kd); kd is the sum of the labeled and the unlabeled mean.

    Raises:
        ConfigError: lambda or eta out of range, lambda below 1 without a KD head, or class counts differ.
    """
    ce = ce_loss(logits_ce, labels)
    if logits_kd_x is None:
        if lambda_ != 1:
            raise ConfigError(f"TRAINER.DHO.LAMBDA is {lambda_} but there is no KD head; without one it must be 1.")
        return DHOLoss(ce, ce, ce.new_zeros(()))
    kd = kd_loss(logits_kd_x, teacher_x, eta, eta2)
    if logits_kd_u is not None:
        kd = kd + kd_loss(logits_kd_u, teacher_u, eta, eta2)
    return weighted(ce, kd, lambda_)


def weighted(ce: Tensor, kd: Tensor, lambda_: float) -> DHOLoss:
    """lambda * L_CE + (1 - lambda) * L_KD (DHO, section 3.1 and Algorithm 1, line 24).

    Args:
        ce: scalar, the supervised loss.
        kd: scalar, the distillation loss over both batches.
        lambda_: weight of the supervised loss, in [0, 1].

    Returns:
        DHOLoss(total, ce, kd).

    Raises:
        ConfigError: lambda out of range.
    """
    if not 0 <= lambda_ <= 1:
        raise ConfigError(f"TRAINER.DHO.LAMBDA is {lambda_}; it must lie in [0, 1] (the paper uses 0.5).")
    return DHOLoss(lambda_ * ce + (1 - lambda_) * kd, ce, kd)


def self_consistency_loss(
    text: Tensor, fixed_text: Tensor, image: Tensor, fixed_image: Tensor, logits: Tensor, fixed_logits: Tensor
) -> SelfConsistency:
    """How far prompted features and logits are from the frozen CLIP's (PromptSRC, "mutual agreement maximization").

    text and image: mean |a - b| over all entries of the unit features; logits: KL[softmax(fixed) || softmax(logits)],
    summed over the batch and divided by B * C, as the original's code does (its paper's KL has no such factor).

    Args:
        text: (C, D) prompted text features, of any length.
        fixed_text: (C, D) the frozen CLIP's, averaged over templates.
        image: (B, D) prompted image features, of any length.
        fixed_image: (B, D) the frozen CLIP's.
        logits: (B, C) cos / zeta of the prompted features.
        fixed_logits: (B, C) cos / zeta of the frozen ones.

    Returns:
        SelfConsistency(text, image, logits), without weights.
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return F.l1_loss(F.normalize(widen(a), dim=-1), F.normalize(widen(b), dim=-1))

    log_q, log_p = _log_probs(logits, 1.0), _log_probs(fixed_logits, 1.0)
    kl = F.kl_div(log_q, log_p, reduction="sum", log_target=True) / logits.numel()
    return SelfConsistency(distance(text, fixed_text), distance(image, fixed_image), kl)


def _log_probs(logits: Tensor, eta: float) -> Tensor:
    if not eta > 0:
        raise ConfigError(f"TRAINER.DHO.ETA is {eta}; it must be greater than 0 (the paper uses 2).")
    return F.log_softmax(widen(logits) / eta, dim=-1)


def widen(logits: Tensor) -> Tensor:
    """Return a tensor in fp32, or in fp64 if it is fp64: what losses are computed in."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check_classes(logits_kd: Tensor, teacher_logits: Tensor) -> None:
    student, teacher = logits_kd.shape[-1], teacher_logits.shape[-1]
    if student != teacher:
        raise ConfigError(
            f"the student's KD head has {student} classes and the teacher {teacher}: both must be built from the same "
            "class list. Check DATASET.NAME and DATASET.SUBSAMPLE_CLASSES, and rebuild the teacher's class features."
        )
    if logits_kd.shape != teacher_logits.shape:
        raise ConfigError(
            f"the KD head's logits have shape {tuple(logits_kd.shape)}, the teacher's {tuple(teacher_logits.shape)}: "
            "both must come from the same batch of images."
        )
