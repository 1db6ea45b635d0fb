"""Class subsets: which outputs of a head trained on all classes belong to a test set that has only some of them."""

from collections.abc import Sequence

import torch

from dho_plugin.errors import DataError


def columns(trained: Sequence[str], target: Sequence[str]) -> torch.Tensor:
    """Find the column of the trained head for every class of a test set, by class key.

    Keys (wnids) decide and never names: "missile" and "sunglasses" each name two of ImageNet's classes. Slice the
    logits before the softmax: `logits[:, columns(trained, target)]`.

    Args:
        trained: class keys of the head's outputs, in order.
        target: class keys of the test set, in label order.

    Returns:
        int64 (len(target),), column of the head for each label of the test set.

    Raises:
        DataError: the head lacks classes of the test set.
    """
    position = {key: column for column, key in enumerate(trained)}
    missing = [key for key in target if key not in position]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"the head was trained on {len(position)} classes and lacks {len(missing)} of the {len(target)} classes of "
            f"the test set: {shown}. Evaluate it on a set whose classes it has learned, or train on all of them."
        )
    return torch.tensor([position[key] for key in target], dtype=torch.int64)
