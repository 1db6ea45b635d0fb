"""What the folder of a run says of it: its config, and the classes of its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from yacs.config import CfgNode

from dho_plugin.engine.checkpoint import load_checkpoint
from dho_plugin.engine.config import get_cfg_default, merge_file, merge_pairs
from dho_plugin.engine.data import ClassInfo


def run_cfg(folder: str | Path, pairs: Sequence[str] = ()) -> CfgNode:
    """Return a run's config, not frozen, with KEY VALUE pairs in the place of its own.

    Raises:
        ConfigError: the file is missing, has a key that this version does not know, or a value of another type.
    """
    cfg = get_cfg_default()
    merge_file(cfg, Path(folder) / "config.json")
    merge_pairs(cfg, pairs)
    return cfg


def smallest_checkpoint(folder: str | Path) -> Path | None:
    """Return the checkpoint of a run that is read soonest: all of them name the same classes; None without one."""
    files = sorted(file for file in Path(folder).glob("*/model*.pth.tar*") if file.is_file())
    return min(files, key=lambda file: file.stat().st_size, default=None)


def saved_classes(checkpoint: Path) -> tuple[ClassInfo, ...]:
    """Return the classes that a run was trained on, as its checkpoint says; () of one that other code wrote.

    Raises:
        CheckpointError: the file is damaged.
    """
    return tuple(ClassInfo(*pair) for pair in load_checkpoint(checkpoint).get("meta", {}).get("classes", []))
