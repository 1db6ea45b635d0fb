"""Features of a frozen student outside of the steps: passes over training views, and images of an evaluation."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dho_plugin.engine.data import ImageList
from dho_plugin.engine.feature_sets import FeatureBatches
from dho_plugin.engine.loaders import train_loader


@torch.no_grad()
def view_passes(trainer, items: ImageList, count: int) -> tuple[Tensor, Tensor]:
    """Return the student's features of all images in `count` passes, as training shows them in its first passes.

    Pass k shows view k, or k modulo INPUT.VIEWS. By MODEL.FEATURES they are stored, read or computed.

    Args:
        trainer: the run's trainer; its student's image encoder is a frozen CLIP.
        items: n images.
        count: number of passes.

    Returns:
        (count, n, D) features and (n,) int64 labels, on the trainer's device.
    """
    views = min(count, trainer.cfg.INPUT.VIEWS or count)
    found = trainer.find("student", trainer.student_mode(training=True), "train", views, trainer.clip(), items)
    if found is not None:
        print(f"The student's features (train, {views} views) are read from {found.store.folder}")
        skip = trainer.cfg.DATASET.UNREADABLE == "skip"
        batches = FeatureBatches(items, {"features": found}, unreadable="next" if skip else "error")
        positions = np.arange(len(items))
        each = [trainer.to_device(batches(positions, np.full_like(positions, view))) for view in range(views)]
        features, labels = torch.stack([one["features"] for one in each]), each[0]["label"]
    else:
        features, labels = _computed(trainer, items, views)
    return features[torch.arange(count, device=features.device) % views], labels


@torch.no_grad()
def evaluated_features(trainer, items: ImageList, title: str) -> tuple[Tensor, Tensor]:
    """Return the student's features (n, D) and labels (n,) of those images of an evaluation that can be read.

    Args:
        trainer: the run's trainer; its student's image encoder is a frozen CLIP.
        items: the images.
        title: what an evaluation calls them.
    """
    features, labels = [], []
    for batch in trainer.eval_batches(ImageList.of(items), title):
        on = trainer.to_device(batch)
        with trainer.accelerator.autocast():
            features.append(on["features"] if "features" in on else trainer.student.features(on["img"]))
        labels.append(on["label"])
    known = torch.cat(labels) >= 0
    return torch.cat(features)[known].float(), torch.cat(labels)[known]


def _computed(trainer, items: ImageList, views: int) -> tuple[Tensor, Tensor]:
    loader, count = trainer.cfg.DATALOADER, len(items)
    keys = [(position, view) for view in range(views) for position in range(count)]
    size = loader.TEST.BATCH_SIZE
    batches = [keys[start : start + size] for start in range(0, len(keys), size)]
    dataset = trainer.fill_dataset(trainer.clip(), items)
    features, labels = [], []
    for batch in train_loader(dataset, batches, workers=loader.NUM_WORKERS, device=trainer.device):
        on = trainer.to_device(batch)
        with trainer.accelerator.autocast():
            features.append(trainer.student.features(on["img"]).float())
        labels.append(on["label"])
    return torch.cat(features).view(views, count, -1), torch.cat(labels)[:count]
