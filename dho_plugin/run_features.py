"""Features of trained runs: computed once from their models and data, and kept in the runs' folders."""

from __future__ import annotations

from pathlib import Path

import torch
from tqdm import tqdm
from yacs.config import CfgNode

from dho_plugin.analysis.features import (
    Labeled,
    LinearEvaluation,
    linear_evaluation,
    read_features,
    store_features,
    store_linear_evaluation,
)
from dho_plugin.engine.data import ImageList
from dho_plugin.engine.run_folder import run_cfg
from dho_plugin.train import build_trainer, check_names


def evaluate_features(run_dir: Path, root: str = "") -> LinearEvaluation:
    """Fit a linear classifier on a run's frozen features and score it (DHO, Table 3); both are kept in its folder.

    It learns from all training images that have a label, as the paper's does, and is scored on the data set's own test
    images.

    Args:
        run_dir: the run's folder.
        root: where the data lie, "" for where they lay in training.

    Raises:
        DHOError: data or model cannot be read.
    """
    kept = read_features(run_dir)
    if kept is None:
        store_features(run_dir, *compute_features(run_dir, root))
        kept = read_features(run_dir)  # rounded as the next evaluation finds them
    score = linear_evaluation(*kept[0], *kept[1], device="cuda" if torch.cuda.is_available() else "cpu")
    store_linear_evaluation(run_dir, score)
    return score


def run_config(run_dir: Path, root: str = "") -> CfgNode:
    """Return a run's frozen config, its data set and trainer registered.

    Args:
        run_dir: the run's folder.
        root: where the data lie, "" for where they lay in training.

    Raises:
        ConfigError: the file is missing, or has unknown keys or names.
    """
    cfg = run_cfg(run_dir, ["DATASET.ROOT", root] if root else [])
    cfg.freeze()
    check_names(cfg)
    return cfg


@torch.no_grad()
def compute_features(run_dir: Path, root: str = "") -> tuple[Labeled, Labeled]:
    """Return features and labels of a run's training images and of its test images, as its model sees them.

    Args:
        run_dir: the run's folder.
        root: where the data lie, "" for where they lay in training.

    Raises:
        DHOError: data or model cannot be read.
    """
    trainer = build_trainer(run_config(run_dir, root))
    trainer.load_model(run_dir)
    trainer.set_model_mode("eval")
    data = trainer.dataset
    return _features(trainer, data.train_x + data.train_u, "train"), _features(trainer, data.test, "test")


def _features(trainer, items: ImageList, title: str) -> Labeled:
    items = ImageList.of([item for item in items if item.label >= 0])
    features, labels = [], []
    for batch in tqdm(trainer.eval_batches(items, title), desc=title, unit="batch"):
        on = trainer.to_device(batch)
        z = on["features"] if "features" in on else trainer.student.features(on["img"])
        features.append(z.float().cpu())
        labels.append(batch["label"].cpu())  # stored features come with labels on the device
    kept = torch.cat(labels) >= 0  # -1: unreadable
    return torch.cat(features)[kept], torch.cat(labels)[kept]
