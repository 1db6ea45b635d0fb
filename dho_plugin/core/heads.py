"""Prediction heads: linear (h_CE, h_KD), cosine-aligned (h_KD of a VLM student) and non-linear (DHO, Table 14)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dho_plugin.errors import ConfigError

HEADS = ("linear", "cosine", "unit", "mlp")


class LinearHead(nn.Linear):
    """W z + b, the heads of DHO, section 3.2.

    Without `init` the parameters are drawn as `nn.Linear` draws them (Kaiming-uniform). With it the head starts
    language-aware: rows are the unit class features, and b is 0. With CLIP's features, which are not unit, it so begins
    with CLIP's decisions, but not with its temperature: that is what the alignment of Eq. 10 brings.

    Args:
        feature_dim: D, width of the features.
        num_classes: C.
        init: (C, D) class features of the prompts, of any length.

    Raises:
        ConfigError: `init` has another shape than (C, D).
    """

    def __init__(self, feature_dim: int, num_classes: int, init: Tensor | None = None):
        super().__init__(feature_dim, num_classes)
        if init is not None:
            _copy_rows(self.weight, init)
            nn.init.zeros_(self.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of a batch, in the head's own precision (fp32) also under autocast.

        Args:
            features: (B, D) float of any width.

        Returns:
            (B, C), fp32 (fp64 for an fp64 head).
        """
        with torch.autocast(device_type=features.device.type, enabled=False):
            return super().forward(features.to(self.weight.dtype))


def cosine_logits(features: Tensor, weight: Tensor, zeta: float) -> Tensor:
    """cos(z, w_c) / zeta for every class (DHO, Eq. 1 and 10), in fp32 or wider also under autocast.

    Divided by zeta = 0.01, half precision would be wrong by up to 0.4 a logit.

    Args:
        features: (B, D) float of any width and length.
        weight: (C, D) float, a row a class, of any length; zero rows and features have cosine 0 with everything.
        zeta: temperature, > 0.

    Returns:
        (B, C), fp32 (fp64 for fp64 weights).
    """
    dtype = torch.promote_types(weight.dtype, torch.float32)
    with torch.autocast(device_type=features.device.type, enabled=False):
        return F.linear(_unit(features.to(dtype)), _unit(weight.to(dtype))) / zeta


class CosineHead(nn.Module):
    """cos(z, w_c) / zeta, the KD head aligned with a CLIP teacher (DHO, Eq. 10).

    A feature or row of zero length has cosine 0 with everything and receives no gradient.

    Args:
        feature_dim: D, width of the features.
        num_classes: C.
        zeta: CLIP's temperature, > 0; fixed, not learned.
        init: (C, D) class features of the prompts; None draws the rows as `nn.Linear` does.

    Raises:
        ConfigError: zeta is not positive, or `init` has another shape than (C, D).
    """

    def __init__(self, feature_dim: int, num_classes: int, zeta: float, init: Tensor | None = None):
        super().__init__()
        self.zeta = _positive(zeta)
        self.weight = nn.Linear(feature_dim, num_classes, bias=False).weight
        if init is not None:
            _copy_rows(self.weight, init)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of a batch.

        Args:
            features: (B, D) float of any width and length.

        Returns:
            (B, C), fp32 (fp64 for an fp64 head).
        """
        return cosine_logits(features, self.weight, self.zeta)

    def extra_repr(self) -> str:
        """Sizes and zeta, for `print(model)`."""
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}, zeta={self.zeta}"


class UnitHead(LinearHead):
    """(W z / |z| + b) / zeta: the KD head of the CLIP students whose checkpoints the authors of DHO released.

    Other than in Eq. 10 and `CosineHead`, whose arguments it takes, the rows keep their length, and there is a bias.

    Raises:
        ConfigError: zeta is not positive, or `init` has another shape than (C, D).
    """

    def __init__(self, feature_dim: int, num_classes: int, zeta: float, init: Tensor | None = None):
        super().__init__(feature_dim, num_classes, init)
        self.zeta = _positive(zeta)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of a batch.

        Args:
            features: (B, D) float of any width and length.

        Returns:
            (B, C), fp32 (fp64 for an fp64 head).
        """
        return super().forward(_unit(features.to(self.weight.dtype))) / self.zeta


class MLPHead(nn.Sequential):
    """Linear, LayerNorm, GELU, Dropout, Linear: the non-linear head of DHO, section E.2 and Table 14.

    The paper names these layers, but neither their width nor the rate. The parameters are drawn as `nn.Linear` draws
    them (Kaiming-uniform): class features fit none of its layers.

    Args:
        feature_dim: D, width of the features.
        num_classes: C.
        hidden: width H of the layers between; 0 takes D.
        dropout: rate at which hidden values are zeroed in training, in [0, 1).
    """

    def __init__(self, feature_dim: int, num_classes: int, hidden: int = 0, dropout: float = 0.1):
        hidden = hidden or feature_dim
        within = nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(dropout)
        super().__init__(nn.Linear(feature_dim, hidden), *within, nn.Linear(hidden, num_classes))

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, C) of features (B, D), in the head's own precision (fp32) also under autocast."""
        with torch.autocast(device_type=features.device.type, enabled=False):
            return super().forward(features.to(self[0].weight.dtype))


def build_head(
    kind: str,
    feature_dim: int,
    num_classes: int,
    *,
    zeta: float,
    init: Tensor | None = None,
    hidden: int = 0,
    dropout: float = 0.1,
) -> nn.Module:
    """Build a prediction head by name.

    Args:
        kind: "linear", "cosine", "unit" or "mlp".
        feature_dim: D.
        num_classes: C.
        zeta: CLIP's temperature; used by the cosine and the unit head.
        init: (C, D) class features for language-aware initialization, or None.
        hidden: width of the non-linear head; 0 takes D.
        dropout: of the non-linear head.

    Returns:
        A module that maps (B, D) features to (B, C) logits.

    Raises:
        ConfigError: unknown kind, zeta not positive, `init` of another shape, or for a head that has no use for it.
    """
    if kind == "linear":
        return LinearHead(feature_dim, num_classes, init)
    if kind == "cosine":
        return CosineHead(feature_dim, num_classes, zeta, init)
    if kind == "unit":
        return UnitHead(feature_dim, num_classes, zeta, init)
    if kind == "mlp" and init is not None:
        raise ConfigError(
            "a non-linear head cannot start from class features: beside KD_HEAD mlp set TRAINER.DHO.INIT kaiming, "
            "beside a method's HEAD mlp its own INIT kaiming."
        )
    if kind == "mlp":
        return MLPHead(feature_dim, num_classes, hidden, dropout)
    raise ConfigError(f"unknown head {kind!r}; choose one of: {', '.join(HEADS)}.")


def _copy_rows(weight: nn.Parameter, init: Tensor) -> None:
    if init.shape != weight.shape:
        raise ConfigError(
            f"the class features that initialize a head have shape {tuple(init.shape)}, the head (classes, width) is "
            f"{tuple(weight.shape)}: use the text features of the same class list from a CLIP with the same embedding."
        )
    with torch.no_grad():
        weight.copy_(_unit(init.float()))


def _positive(zeta: float) -> float:
    if not zeta > 0:
        raise ConfigError(f"zeta is {zeta}; TRAINER.DHO.ZETA must be greater than 0 (OpenAI's CLIP has 0.01).")
    return float(zeta)


def _unit(rows: Tensor) -> Tensor:
    norm = rows.norm(dim=-1, keepdim=True)
    # the mask, not the clamp, keeps a zero row's gradient at 0 in place of 1e12
    return rows / norm.clamp_min(1e-12) * (norm > 1e-12)
