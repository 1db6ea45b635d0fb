"""A finished run as a model that answers: its config, classes, weights, alpha and beta, but not its data."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dho_plugin.dho_trainer import DHOTrainer
from dho_plugin.engine.data import ClassInfo, DatasetBase
from dho_plugin.engine.evaluator import TestLogits
from dho_plugin.engine.files import named_path, read_json
from dho_plugin.engine.registry import TRAINER_REGISTRY
from dho_plugin.engine.run_folder import run_cfg, saved_classes, smallest_checkpoint
from dho_plugin.errors import CacheError, CheckpointError
from dho_plugin.ood import stored_sets


@dataclass(frozen=True)
class Run:
    """What a run's folder says.

    Attributes:
        folder: the run's folder.
        weights: the folder with its weights: another one where the run evaluated a model that was trained before.
        results: its results.json, {} where it has not come to its end.
    """

    folder: Path
    weights: Path
    results: dict[str, Any]

    @classmethod
    def of(cls, folder: str | Path) -> Run:
        """Read a run's folder.

        Raises:
            CheckpointError: it is none.
        """
        folder = Path(folder).expanduser()
        if not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder} holds no config.json: it is not a run's folder (those end in seed<S>). Weights from "
                "elsewhere become a run with --eval-only --model-dir"
            )
        results = read_json(folder / "results.json") if (folder / "results.json").is_file() else {}
        named = results.get("model_dir")
        weights = named_path(folder, named, results.get("model_dir_from_here")) if named else folder
        return cls(folder, weights, results)

    def cfg(self, pairs: Sequence[str] = ()):
        """Return the run's frozen config, with some options in the place of its own.

        Raises:
            ConfigError: a key that this version does not know, or a value of another type.
        """
        cfg = run_cfg(self.folder, pairs)
        cfg.freeze()
        return cfg

    def classes(self) -> tuple[ClassInfo, ...]:
        """Return the classes that the model answers for: its checkpoints', else, by name, those of its stored logits.

        Raises:
            CheckpointError: neither is there.
        """
        if (path := smallest_checkpoint(self.weights)) and (classes := saved_classes(path)):
            return classes
        try:
            names = TestLogits.load(next(iter(stored_sets(self.folder).values()))).classnames
        except CacheError as error:
            raise CheckpointError(
                f"{self.folder}: nothing says which classes it knows: it holds neither checkpoints of ours nor stored "
                "logits; train or evaluate it first"
            ) from error
        return tuple(ClassInfo(name, name) for name in names)


def load_run(
    folder: str | Path,
    pairs: Sequence[str] = (),
    *,
    epoch: int | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    exact: bool = False,
) -> DHOTrainer:
    """Load a run's model, ready to answer; its data set and its teacher are not looked for.

    Args:
        folder: the run's folder.
        pairs: KEY VALUE pairs in the place of the run's own options.
        epoch: which epoch's weights; None for the best ones on validation or, where there are none, the last ones.
        alpha: weight of the CE head; None takes the one that the run was scored with.
        beta: temperature of the KD head; None takes the one that the run was scored with.
        exact: compute on the CPU in fp32, whatever the run's precision and device.

    Returns:
        The run's trainer in evaluation mode.

    Raises:
        DHOError: no run's folder, weights that are missing or damaged, options that are wrong.
    """
    import dho_plugin.trainers  # noqa: F401 (fills the registry)

    run = Run.of(folder)
    cfg = run.cfg(pairs := [*pairs, "MODEL.FEATURES", "online"])
    build = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if exact:
        precision = f"TRAINER.{build.cfg_node}.PREC"
        cfg = run.cfg([*pairs, "USE_CUDA", "False", "MODEL.COMPILE", "False", precision, "fp32"])
    with contextlib.redirect_stdout(io.StringIO()):  # what a training prints
        trainer = build(cfg, DatasetBase(classes=run.classes()), initial_weights=False)
        if trainer.get_model_names():
            trainer.load_model(run.weights, epoch)
    own = cfg.TRAINER.DHO
    chosen = [value if value is not None else run.results.get(key) for key, value in (("alpha", alpha), ("beta", beta))]
    trainer.alpha_beta = tuple(b if a is None else a for a, b in zip(chosen, (own.ALPHA, own.BETA), strict=True))
    trainer.set_model_mode("eval")
    return trainer


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Add what a command that loads a run takes."""
    parser.add_argument("run_dir", help="folder of a run (it holds config.json and its weights)")
    parser.add_argument("--alpha", type=float, help="weight of the CE head in [0, 1]; default: the run's own")
    parser.add_argument("--beta", type=float, help="temperature of the KD head above 0; default: the run's own")
    parser.add_argument("--epoch", type=int, help="epoch of the weights; default: the best one, else the last one")
    parser.add_argument(
        "--set",
        nargs=2,
        action="append",
        default=[],
        metavar=("KEY", "VALUE"),
        help="a config option in the place of the run's own, such as MODEL.BACKBONE.CKPT FILE; it may be repeated",
    )


def run_of(args: argparse.Namespace, *, exact: bool = False) -> DHOTrainer:
    """Load the run of a command line that has `add_run_flags`."""
    pairs = [word for pair in args.set for word in pair]
    return load_run(args.run_dir, pairs, epoch=args.epoch, alpha=args.alpha, beta=args.beta, exact=exact)


def described(trainer: DHOTrainer) -> str:
    """Return in a line which model answers."""
    alpha, beta = trainer.mixing()
    mixed = f"alpha {alpha}, beta {beta}" if trainer.kd_head is not None else "no KD head"
    return f"{trainer.display_name()}: {len(trainer.classes)} classes, {mixed}, on {trainer.device}"
