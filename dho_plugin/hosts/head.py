"""The KD head beside a host's model: saved with its classes, cut to the classes of a test set."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dho_plugin.core.heads import build_head
from dho_plugin.data.subsets import columns
from dho_plugin.engine.data import ClassInfo
from dho_plugin.errors import CheckpointError, DataError


class HostHead(nn.Module):
    """A KD head that knows its classes; loading another run's weights takes over that run's classes.

    Args:
        kind: "linear" or "cosine".
        feature_dim: D.
        classes: C classes in label order; their keys are wnids where the data set has them.
        zeta: CLIP's temperature.
        init: (C, D) class features to start from, or None.
    """

    def __init__(
        self,
        kind: str,
        feature_dim: int,
        classes: Sequence[ClassInfo],
        zeta: float,
        init: Tensor | None = None,
    ):
        super().__init__()
        self.kind, self.feature_dim, self.zeta, self.classes = kind, feature_dim, zeta, tuple(classes)
        self.head = build_head(kind, feature_dim, len(classes), zeta=zeta, init=init)
        self.columns: Tensor | None = None  # of the classes that are asked for; None: all

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits (B, C) fp32 of features (B, D); of the chosen classes only where some are chosen."""
        logits = self.head(features)
        return logits if self.columns is None else logits[:, self.columns.to(logits.device)]

    def choose(self, keys: Sequence[str]) -> None:
        """Answer for these classes from now on.

        Args:
            keys: class keys of a test set in label order. Numbers 0, 1, ... (ImageNetV2's folders) are places.

        Raises:
            DataError: the head was not trained on one of the classes.
        """
        wanted, own = list(keys), [info.key for info in self.classes]
        if wanted == [str(number) for number in range(len(own))]:
            wanted = own
        try:
            self.columns = None if wanted == own else columns(own, wanted)
        except DataError as error:
            raise DataError(
                f"the KD head: {error}. Set TRAINER.DHO.ALPHA 1.0 to score the host's own head alone"
            ) from error

    def get_extra_state(self) -> dict:
        """Return what is saved beside the weights."""
        return {"classes": [[info.key, info.name] for info in self.classes], "kind": self.kind}

    def set_extra_state(self, state: dict) -> None:
        """Take over a saved head's classes."""
        self.classes = tuple(ClassInfo(*pair) for pair in state["classes"])

    def load_state_dict(self, state_dict: dict, strict: bool = True, assign: bool = False):
        """Load a run's head: one of another number of classes replaces this one.

        Raises:
            CheckpointError: it is another kind of head, or of another width.
        """
        kind, weight = state_dict.get("_extra_state", {}).get("kind"), state_dict.get("head.weight")
        if kind is None or weight is None:
            raise CheckpointError(
                f"kd_head: the file holds {', '.join(state_dict)}, and no head of a host's trainer with DHO: evaluate "
                "or resume a run with the trainer that wrote it (ours, X_DHO, and the host's, X_DHO_twin, are two)"
            )
        if kind != self.kind or weight.shape[1] != self.feature_dim:
            raise CheckpointError(
                f"kd_head: the saved head is {kind!r} with weights {tuple(weight.shape)}, "
                f"this run's is {self.kind!r} on features of width {self.feature_dim}: set TRAINER.DHO.KD_HEAD and "
                "MODEL.BACKBONE.NAME as they were"
            )
        if len(weight) != len(self.classes):
            device = next(self.parameters()).device
            self.head = build_head(self.kind, self.feature_dim, len(weight), zeta=self.zeta).to(device)
        self.columns = None
        return super().load_state_dict(state_dict, strict=True, assign=assign)
