"""The models that a trainer registers by name, with Dassl's folder layout for their checkpoints."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dho_plugin.engine.checkpoint import load_checkpoint, model_path, save_checkpoint, saved_epochs
from dho_plugin.engine.optim import StepSchedule
from dho_plugin.errors import CheckpointError, ConfigError

PROMPT_KEYS = ("ctx", "VPT", "VPT_shallow")  # last part of a learned prompt's key, in the originals' files, too
LATER_DERIVED = ("token_prefix", "token_suffix")  # recomputed from the class names, whatever a file says


class ModelStore:
    """Registered models with their optimizers and schedules: `<directory>/<name>/model.pth.tar-<epoch>`."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, torch.optim.Optimizer | None] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()

    def register_model(self, name: str, model: nn.Module, optim=None, sched=None) -> None:
        """Register what is saved, loaded and stepped under `name`, as in Dassl.

        Raises:
            ConfigError: the name is taken.
        """
        if name in self._models:
            raise ConfigError(f"register_model: {name!r} is registered already; registered: {', '.join(self._models)}")
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self) -> list[str]:
        """Return the registered names, in order."""
        return list(self._models)

    def forget_models(self) -> None:
        """Drop all registrations, before the models are built anew."""
        for table in (self._models, self._optims, self._scheds):
            table.clear()

    def update_lr(self, per_step: bool = False) -> None:
        """Step the learning-rate schedules that count epochs, or those that count training steps."""
        for sched in self._scheds.values():
            if sched is not None and getattr(sched, "per_step", False) == per_step:
                sched.step()

    def get_current_lr(self) -> float:
        """Return the learning rate of the first registered optimizer; 0 where nothing learns."""
        optims = [o for o in self._optims.values() if o is not None]
        return optims[0].param_groups[0]["lr"] if optims else 0.0

    def save_model(self, epoch: int, directory: str | Path, meta: dict, *, val_result=None, best: bool = False) -> None:
        """Save every model after `epoch` epochs are complete (`model-best.pth.tar` if `best`).

        Args:
            epoch: number of complete epochs.
            directory: the run's folder.
            meta: plain values that belong to the checkpoint (classes, trainer, elapsed seconds, ...).
            val_result: validation accuracy in percent, or None.
            best: save as the best on validation instead of under the epoch's number.
        """
        for name, model in self._models.items():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": model.state_dict(),
                "epoch": epoch,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": val_result,
                "meta": meta,
            }
            save_checkpoint(state, model_path(directory, name, None if best else epoch))

    def drop_checkpoint(self, epoch: int, directory: str | Path) -> None:
        """Remove one epoch's files."""
        for name in self._models:
            model_path(directory, name, epoch).unlink(missing_ok=True)

    def common_epoch(self, directory: str | Path) -> int | None:
        """Return the last epoch saved for EVERY model (a kill between two saves leaves an incomplete one), or None."""
        common = [set(saved_epochs(Path(directory) / name)) for name in self._models]
        return max(set.intersection(*common), default=None) if common else None

    def epoch_to_load(self, directory: str | Path, epoch: int | None) -> int | None:
        """Return `epoch` if it is given, else None where every model has a best checkpoint, else the last epoch.

        Raises:
            CheckpointError: no epoch has checkpoints of every model.
        """
        if epoch is not None or all(model_path(directory, name).is_file() for name in self._models):
            return epoch
        if (last := self.common_epoch(directory)) is None:
            found = [f"{name}: {saved_epochs(Path(directory) / name) or 'none'}" for name in self._models]
            raise CheckpointError(
                f"{directory} holds no epoch of everything that this trainer loads; it has {', '.join(found)}. Was it "
                "trained with another trainer?"
            )
        return last

    def load_model(self, directory: str | Path, epoch: int | None = None, *, train_state: bool = False) -> dict:
        """Load every registered model.

        Args:
            directory: a run's folder.
            epoch: which epoch's file; None for `model-best.pth.tar` or, where there is none, the last epoch.
            train_state: also restore optimizers and schedules.

        Returns:
            The checkpoint's `meta` ({} for a file from elsewhere), with its `epoch` and `val_result`.

        Raises:
            CheckpointError: a file is missing, damaged or of another model.
        """
        meta: dict = {}
        epoch = self.epoch_to_load(directory, epoch)
        seen: dict[str, int | None] = {}
        for name in self._models:
            path = model_path(directory, name, epoch)
            checkpoint = load_checkpoint(path)
            self._load_weights(name, checkpoint.get("state_dict", {}), path)
            if train_state:
                self._load_train_state(name, checkpoint, path)
            seen[name] = shown = checkpoint.get("epoch")
            print(f'Loading weights to {name} from "{path}" (epoch = {shown})')
            meta = {**checkpoint.get("meta", {}), "epoch": shown, "val_result": checkpoint.get("val_result")}
        if epoch is None and len(set(seen.values())) > 1:
            raise CheckpointError(
                f"{directory}: the best checkpoints are of different epochs ({seen}), as a run leaves them that "
                "is killed while it saves: go on with its training, or take one epoch of all (--load-epoch)"
            )
        return meta

    def load_file(self, path: str | Path) -> dict:
        """Load every registered model from one file, as the authors of DHO released theirs (`vit_b_1.pt`).

        Its weights lie under "model_state_dict", those of a model `name` with the prefix `name.`: `backbone.`,
        `ce_head.`, `kd_head.`. What else is in it, such as an alpha and a beta, is shown and not used.

        Returns:
            {}: such a file has nothing that belongs to a run.

        Raises:
            CheckpointError: the file is damaged, or of other models.
        """
        path, saved = Path(path), load_checkpoint(path)
        state = saved.get("model_state_dict", saved)
        state = {key.removeprefix("module."): value for key, value in state.items() if isinstance(value, torch.Tensor)}
        found = dict.fromkeys(key.partition(".")[0] for key in state)
        if set(found) != set(self._models):
            raise CheckpointError(
                f"{path} holds {', '.join(found) or 'no weights'}, this trainer loads {', '.join(self._models)}: "
                "such a file has a student with both heads, as Distill_DHO has (backbone.*, ce_head.*, kd_head.*)"
            )
        for name, model in self._models.items():
            part = {key.removeprefix(f"{name}."): v for key, v in state.items() if key.startswith(f"{name}.")}
            if surplus := sorted(part.keys() - model.state_dict().keys()):
                raise CheckpointError(
                    f"{path}: this model's {name} has no {', '.join(surplus[:3])}. The released CLIP students have "
                    "TRAINER.DISTILL.CE_HEAD linear and TRAINER.DHO.KD_HEAD unit, and the backbone of their name"
                )
            self._load_weights(name, part, path)
        rest = ", ".join(f"{key} {value}" for key, value in saved.items() if isinstance(value, int | float))
        print(f'Loading weights to {", ".join(self._models)} from "{path}"' + (f" (it says: {rest})" if rest else ""))
        return {}

    def _load_weights(self, name: str, state: dict, path: Path) -> None:
        model = self._models[name]
        own = model.state_dict()
        state = {k: v for k, v in state.items() if k.rsplit(".", 1)[-1] not in LATER_DERIVED}
        for key, value in state.items():
            if key in own and own[key].shape != value.shape:
                raise CheckpointError(
                    f"{path}: {key} has shape {tuple(value.shape)}, this model's {name} has {tuple(own[key].shape)}: "
                    "the checkpoint was trained with other settings (context length, classes or backbone); "
                    "use the config of that run"
                )
        learned = {k for k in own if k.rsplit(".", 1)[-1] not in LATER_DERIVED}
        if missing := sorted(learned - state.keys()):
            raise CheckpointError(f"{path}: holds no {missing[:3]}; it is not a checkpoint of {name}")
        if surplus := sorted(k for k in state.keys() - own.keys() if k.rsplit(".", 1)[-1] in PROMPT_KEYS):
            raise CheckpointError(
                f"{path}: holds prompts that this model lacks, {surplus[:3]}: set that run's prompt depths"
            )
        model.load_state_dict(state, strict=False)

    def _load_train_state(self, name: str, checkpoint: dict, path: Path) -> None:
        sched, state = self._scheds[name], checkpoint.get("scheduler") or {}
        counted_epochs = not state.get("per_step") and state.get("last_epoch") == checkpoint.get("epoch")
        if isinstance(sched, StepSchedule) and counted_epochs and sched.total_steps() != sched.optim_cfg.MAX_EPOCH:
            raise CheckpointError(
                f"{path}: its learning rate changed once an epoch, that of this version changes with each step; delete "
                "the run's folder to start over"
            )
        for part, table in (("optimizer", self._optims), ("scheduler", self._scheds)):
            if table[name] is None:
                continue
            try:
                table[name].load_state_dict(checkpoint[part])
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"{path}: its {part} state does not fit this run ({error})") from error
