"""What a method says of itself (its student), and student and KD head as one module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dho_plugin.models.backbones import LoadedBackbone
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.deep_prompts import VisualPrompts
from dho_plugin.models.image_tower import PromptedImageTower
from dho_plugin.models.text_paths import TextPath, class_path


class Student(nn.Module):
    """What a method says of itself: features, the CE path on them, which parts learn, and any loss of its own.

    A method's student overrides `features`, `logits_ce` and `learnable`; `extra_loss` only where it has one.
    On a frozen CLIP it starts from `CLIPStudent`, which has the features.

    Attributes:
        feature_dim: D.
        open_vocabulary: whether what was learned holds for the names of any classes, not of the trained ones only.
        storable: whether the features are those of a frozen CLIP and nothing else sees the images, so that
            stored features do for them.
        wants_frozen: whether `extra_loss` takes the frozen CLIP's features of the labeled images, which may be stored
            ones, beside the images.
        text_path: how its text features are computed, for the log; None without a text tower.
    """

    feature_dim: int
    open_vocabulary: bool = False
    storable: bool = False
    wants_frozen: bool = False
    text_path: TextPath | None = None

    def features(self, images: Tensor) -> Tensor:
        """Return the features g(x), (B, D), of images (B, 3, H, W)."""
        raise TypeError(f"{type(self).__name__} defines no features")

    def logits_ce(self, features: Tensor) -> Tensor:
        """Return h_CE(z), (B, C) float32, of features (B, D)."""
        raise TypeError(f"{type(self).__name__} defines no logits_ce")

    def learnable(self) -> dict[str, nn.Module]:
        """Return the modules that learn, under the names of their checkpoints."""
        raise TypeError(f"{type(self).__name__} defines no learnable")

    def extra_loss(self, images: Tensor, features: Tensor, logits_ce: Tensor) -> Tensor | None:
        """Return a further term of the method's own loss on the labeled batch, or None; lambda weighs it, too.

        Where the student `wants_frozen`, it takes stored features, (B, D), as a fourth argument.
        """
        return None


class CLIPStudent(Student):
    """A student on a CLIP whose own weights stay frozen, with or without prompts in its image transformer.

    Args:
        clip: the frozen CLIP.
        visual_prompts: prompts that learn beside the image's tokens, or None.
        dropout: rate at which values of these prompts are zeroed in training.
    """

    def __init__(self, clip: LoadedCLIP, visual_prompts: VisualPrompts | None = None, dropout: float = 0.0):
        super().__init__()
        self.clip_model, self.feature_dim, self.zeta = clip.model, clip.feature_dim, clip.zeta
        self.text_path, self._encode_image = class_path(clip), clip.encode_image
        self._merges = clip.tome_r > 0
        self.image_tower = None if visual_prompts is None else PromptedImageTower(clip, visual_prompts, dropout)

    @property
    def storable(self) -> bool:
        """Whether no prompt lies below the features, no token is merged, and neither they nor a loss are its own."""
        own = type(self).features is not CLIPStudent.features or type(self).extra_loss is not Student.extra_loss
        return self.image_tower is None and not own and not self._merges

    def train(self, mode: bool = True) -> CLIPStudent:
        """Set the mode; the CLIP stays in evaluation mode."""
        super().train(mode)
        self.clip_model.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """Return the image features (B, D), not normalized; they carry a gradient where prompts lie below them."""
        return self.frozen_features(images) if self.image_tower is None else self.image_tower(images)

    @torch.no_grad()
    def frozen_features(self, images: Tensor) -> Tensor:
        """Return the features (B, D) of the CLIP as it came, not normalized, without a gradient."""
        return self._encode_image(images)


class BackboneStudent(Student):
    """A student whose whole image encoder learns, under a head: logits = h_CE(g(x)).

    Args:
        backbone: the image encoder, of a CLIP or without text.
        ce_head: (B, D) features -> (B, C) logits.
    """

    def __init__(self, backbone: LoadedCLIP | LoadedBackbone, ce_head: nn.Module):
        super().__init__()
        self.feature_dim, self._encode_image = backbone.feature_dim, backbone.encode_image
        self.backbone, self.ce_head = backbone.visual.requires_grad_(True), ce_head

    def features(self, images: Tensor) -> Tensor:
        """Return the features (B, D), not normalized."""
        return self._encode_image(images)

    def logits_ce(self, features: Tensor) -> Tensor:
        """Return h_CE(z), (B, C) float32."""
        return self.ce_head(features)

    def learnable(self) -> dict[str, nn.Module]:
        """Return the image encoder and the head."""
        return {"backbone": self.backbone, "ce_head": self.ce_head}


class DualHeadNet(nn.Module):
    """Student and KD head as one module, so that one call gives all logits of a step.

    Args:
        student: the method's student.
        kd_head: h_KD on the student's features, or what else a teacher teaches; None without a teacher.
        predicts: False where only training uses it: an evaluation then gets no logits of it.
    """

    def __init__(self, student: Student, kd_head: nn.Module | None, predicts: bool = True):
        super().__init__()
        self.student, self.kd_head, self.predicts = student, kd_head, predicts

    def forward(
        self,
        images: Tensor | None,
        n_labeled: int | None = None,
        features: Tensor | None = None,
        frozen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Run the labeled images and, after them, the unlabeled ones through the student once.

        Args:
            images: (B + B', 3, H, W), labeled ones first; None where their features are given.
            n_labeled: B; None when all of them want CE logits.
            features: (B + B', D), stored features of a student that allows it; see `Student.storable`.
            frozen: (B, D), stored features of the frozen CLIP for a student that `wants_frozen`.

        Returns:
            logits_ce (B, C); logits_kd (B + B', C) or None; the student's extra loss or None.
        """
        z = self.student.features(images) if features is None else features
        labeled = z[:n_labeled]
        logits_ce, extra = self.student.logits_ce(labeled), None
        if self.training and features is None:
            stored = () if frozen is None else (frozen,)
            extra = self.student.extra_loss(images[:n_labeled], labeled, logits_ce, *stored)
        second = self.kd_head if self.predicts or self.training else None
        return logits_ce, None if second is None else second(z), extra
