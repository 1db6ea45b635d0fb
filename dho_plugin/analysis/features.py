"""What frozen features are worth: linear evaluation (DHO, Table 3) and t-SNE (Fig. 7)."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from dho_plugin.analysis.logistic import Logistic
from dho_plugin.engine.files import atomic_write, read_json, write_json
from dho_plugin.errors import CacheError, DataError

Labeled = tuple[Tensor, Tensor]  # features (N, D) float, labels (N,) int64


class LinearEvaluation(NamedTuple):
    """Accuracy of a linear classifier on frozen features, in percent; top5 is None with fewer than six classes."""

    top1: float
    top5: float | None
    n: int


def linear_evaluation(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    c: float = 1.0,
    device: str | torch.device = "cpu",
) -> LinearEvaluation:
    """Fit a multinomial logistic regression on frozen features and score it (DHO, Table 3; section 4.2, F2).

    Features are standardized by the training features' mean and standard deviation.

    Args:
        train: (N, D) float features of labeled images.
        train_labels: (N,) int64.
        test: (M, D) float.
        test_labels: (M,) int64.
        c: inverse weight of the squared norm.
        device: where it is fitted.

    Returns:
        LinearEvaluation.

    Raises:
        DataError: fewer than two classes to learn.
    """
    classes, learned = train_labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise DataError("linear evaluation needs labeled images of at least two classes")
    std, mean = torch.std_mean(train, dim=0, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    model = Logistic((train - mean) / std, learned, c, device).fit()
    return score_top(model.scores((test - mean) / std), classes, test_labels)


def score_top(scores: Tensor, classes: Tensor, labels: Tensor) -> LinearEvaluation:
    """Return top-1 and top-5 accuracy of scores (M, C) whose columns are `classes` (C,)."""
    order = scores.argsort(dim=1, descending=True, stable=True)
    hits = classes[order] == labels[:, None]
    top5 = 100.0 * hits[:, :5].any(1).double().mean().item() if len(classes) > 5 else None
    return LinearEvaluation(100.0 * hits[:, 0].double().mean().item(), top5, len(labels))


def embed(features: Tensor, seed: int = 0, perplexity: float = 30.0) -> Tensor:
    """Return t-SNE's plane of features (DHO, Fig. 7), (N, 2) float32, the same for the same seed.

    Args:
        features: (N, D) float.
        seed: of its start.
        perplexity: lowered to (N - 1) / 3 where there are few images.

    Raises:
        DataError: fewer than five images.
    """
    from sklearn.manifold import TSNE

    if len(features) < 5:
        raise DataError(f"t-SNE of {len(features)} images says nothing; give at least five")
    perplexity = min(perplexity, (len(features) - 1) / 3)
    found = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(features.float().numpy())
    return torch.from_numpy(found)


def store_features(run_dir: str | Path, train: Labeled, test: Labeled) -> None:
    """Keep the features of a run's training and test images in its folder, as float16."""
    tensors = {"train": train[0].half(), "train_labels": train[1], "test": test[0].half(), "test_labels": test[1]}
    content = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    atomic_write(Path(run_dir) / "features.safetensors", lambda file: file.write(content))


def read_features(run_dir: str | Path) -> tuple[Labeled, Labeled] | None:
    """Return what `store_features` kept, as float32: of training and of test images; None where nothing is.

    Raises:
        CacheError: the file is damaged.
    """
    path = Path(run_dir) / "features.safetensors"
    if not path.is_file():
        return None
    try:
        kept = load_file(str(path))
        return (kept["train"].float(), kept["train_labels"]), (kept["test"].float(), kept["test_labels"])
    except (OSError, SafetensorError, KeyError) as error:
        raise CacheError(f"stored features {path} cannot be read ({error}); delete the file") from error


def store_linear_evaluation(run_dir: str | Path, score: LinearEvaluation) -> None:
    """Keep a linear evaluation beside the features, where the report finds it."""
    write_json(Path(run_dir) / "linear_evaluation.json", score._asdict())


def read_linear_evaluation(run_dir: str | Path) -> LinearEvaluation | None:
    """Return what `store_linear_evaluation` kept, or None."""
    path = Path(run_dir) / "linear_evaluation.json"
    return LinearEvaluation(**read_json(path)) if path.is_file() else None
