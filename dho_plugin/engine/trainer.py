"""The one training loop: Dassl's hooks and log lines, on Accelerate."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate.utils import set_seed
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from dho_plugin.engine.checkpoint import load_checkpoint, model_path
from dho_plugin.engine.config import as_plain, check_cfg
from dho_plugin.engine.data import DatasetBase
from dho_plugin.engine.device import build_accelerator
from dho_plugin.engine.files import write_json
from dho_plugin.engine.identity import check_classes, check_data, data_identity
from dho_plugin.engine.meters import AverageMeter, MetricMeter
from dho_plugin.engine.model_store import ModelStore
from dho_plugin.engine.processes import check_divides
from dho_plugin.engine.registry import DATASET_REGISTRY
from dho_plugin.engine.stepping import Stepping
from dho_plugin.engine.streams import TrainingStreams
from dho_plugin.engine.timing import StepClock
from dho_plugin.errors import CheckpointError, ConfigError


class TrainerX(ModelStore, TrainingStreams, Stepping):
    """Training on labeled images; a method gives `build_model` and `forward_backward`.

    Args:
        cfg: a frozen config.
        dataset: the images and classes; None reads those of the config.
        initial_weights: False where all that learns is loaded next: what it once started from is not looked for.
    """

    elapsed_before = 0.0  # seconds that an interrupted run had spent
    initial_weights = True  # False: all that learns is loaded next, so what it starts from need not be there

    def __init__(self, cfg, dataset: DatasetBase | None = None, *, initial_weights: bool = True):
        super().__init__()
        self.initial_weights = initial_weights
        self.cfg = cfg
        self.check_cfg(cfg)
        self.accelerator = build_accelerator(cfg, self.precision())
        self.device = self.accelerator.device
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = Path(cfg.OUTPUT_DIR)
        self.best_result: float | None = None
        self._writer: SummaryWriter | None = None
        self.clock = StepClock()
        with self.accelerator.main_process_first():  # it stores what the others then read: listings, splits, shots
            self.dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg) if dataset is None else dataset
        self.data_identity = data_identity(self.dataset)
        print(self.dataset.summary(cfg.DATASET.NAME))
        self.classes = self.dataset.classes
        set_seed(cfg.SEED)
        self.build_model()

    # What a method fills in -------------------------------------------------------------------------------------

    def check_cfg(self, cfg) -> None:
        """Check the config; a method adds its own keys' checks to these."""
        check_cfg(cfg)

    def precision(self) -> str:
        """Return the run's precision, one of PRECISIONS."""
        return "fp32"

    def build_model(self) -> None:
        """Build and register what learns, and set the preprocessing."""
        raise TypeError(f"{type(self).__name__} defines no build_model")

    def forward_backward(self, *batches: dict) -> dict[str, float | torch.Tensor]:
        """Take one step and return what the log shows of it."""
        raise TypeError(f"{type(self).__name__} defines no forward_backward")

    def test(self, split: str | None = None) -> float:
        """Evaluate on a split and return its accuracy in percent."""
        raise TypeError(f"{type(self).__name__} defines no test")

    def checkpoint_meta(self) -> dict:
        """Return the plain values that go into every checkpoint."""
        return {
            "trainer": type(self).__name__,
            "classes": [[info.key, info.name] for info in self.classes],
            "data": self.data_identity,
            "seconds": self.elapsed(),
            "data_wait": self.clock.state(),
            "best_result": self.best_result,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
        }

    # The loop ---------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """Train from scratch or from the last complete epoch in the run's folder, then test."""
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self) -> None:
        """Resume where a checkpoint is, open tensorboard's writer and the data streams."""
        self.dataset.require_training()
        own = self.output_dir if self.common_epoch(self.output_dir) else ""
        self.start_epoch = self.resume_model_if_exist(own or self.cfg.RESUME or self.output_dir)
        if not own:
            self.best_result = None  # the best model so far lies in another folder
        self.num_batches = self.steps_per_epoch()
        self.check_warmup()
        self.check_shares()
        self.time_start = time.time()
        self.streams: list[Iterator[dict]] = []
        if self.start_epoch < self.max_epoch:
            self.streams = self.train_streams(self.start_epoch * self.num_batches)
        if self.accelerator.is_main_process:
            self.claim_output()
            purge = self.start_epoch * self.num_batches
            self._writer = SummaryWriter(str(self.output_dir / "tensorboard"), purge_step=purge)
        total = self.max_epoch * self.num_batches
        hide = None if self.accelerator.is_main_process else True
        self.bar = tqdm(total=total, initial=self.start_epoch * self.num_batches, unit="step", disable=hide)

    def claim_output(self) -> None:
        """Write the config into the run's folder: from here on it belongs to this configuration.

        Only once everything is built: a folder whose first command had a slip in it must not belong to that slip.
        """
        write_json(self.output_dir / "config.json", as_plain(self.cfg))

    def check_warmup(self) -> None:
        """Check that a warm-up counted in steps ends before the training does.

        Raises:
            ConfigError: it does not.
        """
        warmup, total = self.cfg.OPTIM.WARMUP_STEPS, self.total_steps()
        if warmup and warmup >= total > 0:
            raise ConfigError(
                f"OPTIM.WARMUP_STEPS is {warmup}, but the whole training has {total} steps ({self.max_epoch} epochs of "
                f"{self.num_batches}, counted by TRAIN.COUNT_ITER {self.cfg.TRAIN.COUNT_ITER}): lower it"
            )

    def check_shares(self) -> None:
        """Check that the batches can be shared equally among the processes and the parts of a step.

        Raises:
            ConfigError: they cannot.
        """
        parts, loader = self.accelerator.num_processes * self.cfg.TRAIN.ACCUMULATION, self.cfg.DATALOADER
        check_divides("DATALOADER.TRAIN_X.BATCH_SIZE", loader.TRAIN_X.BATCH_SIZE, parts)
        if not loader.TRAIN_U.SAME_AS_X:
            check_divides("DATALOADER.TRAIN_U.BATCH_SIZE", loader.TRAIN_U.BATCH_SIZE, parts)

    def resume_model_if_exist(self, directory: str | Path) -> int:
        """Restore the last complete epoch found in `directory` and return its number, 0 without any.

        Raises:
            CheckpointError: RESUME names a folder without checkpoints, or the checkpoint is of other classes or data.
        """
        epoch = self.common_epoch(directory)
        if epoch is None:
            if self.cfg.RESUME:
                raise CheckpointError(f"RESUME: {directory} holds no checkpoint of {', '.join(self.get_model_names())}")
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        saved = load_checkpoint(model_path(directory, self.get_model_names()[0], epoch)).get("meta", {})
        check_classes(saved.get("classes", []), self.classes, directory)
        check_data(saved.get("data", {}), self.data_identity, directory)
        meta = self.load_model(directory, epoch, train_state=True)
        self.elapsed_before, self.best_result = meta.get("seconds", 0.0), meta.get("best_result")
        self.clock.load_state(meta.get("data_wait"))
        if self.accelerator.scaler and meta.get("scaler"):
            self.accelerator.scaler.load_state_dict(meta["scaler"])
        return epoch

    def before_epoch(self) -> None:
        """Make an epoch's random draws a function of (seed, epoch, process), so that a resumed run repeats them."""
        set_seed((self.cfg.SEED * 100_003 + self.epoch + 1_000_003 * self.accelerator.process_index) % 2**32)
        self.set_model_mode("train")

    def run_epoch(self) -> None:
        """Run one epoch."""
        losses, clock = MetricMeter(), self.clock
        clock.start_epoch()
        for batch_idx in range(self.num_batches):
            self.batch_idx = batch_idx
            with clock.waiting():
                batches = [next(stream) for stream in self.streams]
            losses.update(self.forward_backward(*batches))
            self.update_lr(per_step=True)
            clock.step_done()
            self.bar.update()
            self.report_step(losses, clock.batch, clock.data)
        print(clock.epoch_line(self.cfg.DATALOADER.NUM_WORKERS))
        self.update_lr()

    def report_step(self, losses: MetricMeter, batch_time: AverageMeter, data_time: AverageMeter) -> None:
        """Print Dassl's line and write tensorboard's scalars every TRAIN.PRINT_FREQ steps and at the epoch's end."""
        last = self.batch_idx + 1 == self.num_batches
        if (self.batch_idx + 1) % max(1, self.cfg.TRAIN.PRINT_FREQ) and not last:
            return
        losses = self.over_processes(losses)
        step = self.epoch * self.num_batches + self.batch_idx
        remaining = self.max_epoch * self.num_batches - step - 1
        eta = datetime.timedelta(seconds=int(batch_time.avg * remaining))
        print(
            f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{self.batch_idx + 1}/{self.num_batches}] "
            f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) data {data_time.val:.3f} ({data_time.avg:.3f}) "
            f"{losses} lr {self.get_current_lr():.4e} eta {eta}"
        )
        for name, meter in losses.meters.items():
            self.write_scalar(f"train/{name}", meter.avg, step)
        self.write_scalar("train/lr", self.get_current_lr(), step)

    def after_epoch(self) -> None:
        """Validate where asked and save; the epoch before last is dropped once this one is safe."""
        done, freq = self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST:
            self.keep_best(done)
        if not self.accelerator.is_main_process:
            return
        self.save_model(done, self.output_dir, self.checkpoint_meta())
        if done > 1 and not (freq > 0 and (done - 1) % freq == 0):
            self.drop_checkpoint(done - 1, self.output_dir)

    def keep_best(self, done: int) -> None:
        """Save the model as the best one if its validation accuracy is."""
        result = self.test("val")
        if self.best_result is None or result > self.best_result:
            self.best_result = result
            if self.accelerator.is_main_process:
                self.save_model(done, self.output_dir, self.checkpoint_meta(), val_result=result, best=True)

    def after_train(self) -> None:
        """Test the last or the best model and close the writers."""
        self.accelerator.wait_for_everyone()  # the main process has written what the others may load
        self.bar.close()
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val" and self.best_result is not None:
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        print(f"Elapsed: {datetime.timedelta(seconds=round(self.elapsed()))}")
        if self._writer is not None:
            self._writer.close()

    # Small things -----------------------------------------------------------------------------------------------------

    def set_model_mode(self, mode: str) -> None:
        """Put every registered model into "train" or "eval" mode."""
        for model in self._models.values():
            model.train(mode == "train")

    def write_scalar(self, tag: str, value: float, step: int) -> None:
        """Write a scalar to tensorboard, where there is a writer."""
        if self._writer is not None:
            self._writer.add_scalar(tag, value, step)

    def elapsed(self) -> float:
        """Return the seconds spent in training so far, those of interrupted runs included."""
        now = time.time()
        return self.elapsed_before + now - getattr(self, "time_start", now)


class TrainerXU(TrainerX):
    """Training on labeled images and, where `uses_unlabeled`, on a second stream drawn from D(l) and D(u) together."""

    def uses_unlabeled(self) -> bool:
        """Say whether the second stream is drawn."""
        return True

    def train_streams(self, start_step: int) -> list[Iterator[dict]]:
        """Return the labeled stream and, where it is used, the unlabeled one (DHO, Algorithm 1, line 7)."""
        streams = super().train_streams(start_step)
        if self.uses_unlabeled():
            union = self.dataset.train_x + self.dataset.train_u
            streams.append(self.train_stream("train_u", union, self.unlabeled_batch_size(), start_step))
        return streams
