"""Evaluation of both heads: logits once, metrics from them, shifted test sets, results.json."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from os.path import relpath
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dho_plugin.core.inference import interpolate, search_alpha_beta
from dho_plugin.data.subsets import columns
from dho_plugin.engine.config import as_plain, dataset_label
from dho_plugin.engine.data import ClassInfo, DatasetBase, Datum, ImageList
from dho_plugin.engine.evaluator import TestLogits, compact, confusion_matrix, per_class_lines, result_lines, score
from dho_plugin.engine.files import atomic_write, read_json, write_json
from dho_plugin.engine.image_sets import EvalDataset
from dho_plugin.engine.loaders import eval_loader
from dho_plugin.engine.logger import peak_memory_mb, versions
from dho_plugin.engine.processes import gather_rows, share
from dho_plugin.engine.registry import DATASET_REGISTRY
from dho_plugin.errors import ConfigError, DataError


class HeadEvaluation:
    """The part of a DHO trainer that evaluates; every image is counted once."""

    alpha_beta: tuple[float, float] | None = None  # found on validation data
    config_name = ""  # the method config's file name, for the table
    kd_head: nn.Module | None = None  # the head that predictions are mixed with, where there is one
    learns_labels = True  # whether a run depends on which images are labeled
    model_dir = ""  # where an evaluated model comes from, if not from this run

    def model_inference(self, images: Tensor) -> Tensor:
        """Return log p of Eq. 11, (B, C) float32, for images (B, 3, H, W)."""
        logits_ce, logits_kd, _ = self.accelerator.unwrap_model(self.net)(images)
        return interpolate(logits_ce, logits_kd, *self.mixing()).log()

    def mixing(self) -> tuple[float, float]:
        """Return (alpha, beta): found on validation data, else the config's."""
        return self.alpha_beta or (self.cfg.TRAINER.DHO.ALPHA, self.cfg.TRAINER.DHO.BETA)

    def eval_dataset(self, items: ImageList) -> EvalDataset:
        """Return images as the student sees them in an evaluation."""
        return EvalDataset(items, self.student_preprocess, **self.reading())

    def eval_batches(self, items: ImageList, title: str) -> Iterable[dict]:
        """Return the batches of an evaluation, each image once, in order."""
        dataset, loader = self.eval_dataset(items), self.cfg.DATALOADER
        return eval_loader(dataset, loader.TEST.BATCH_SIZE, workers=loader.NUM_WORKERS, device=self.device)

    @torch.no_grad()
    def head_logits(self, items: Sequence[Datum], classes: Sequence[ClassInfo], title: str) -> TestLogits:
        """Run the model over images once and keep both heads' logits, cut to the columns of `classes`, as float16.

        Each process takes its share of the images, and all of them get all logits.

        Raises:
            DataError: the model was not trained on one of the classes.
        """
        net = self.accelerator.unwrap_model(self.net).eval()
        keep = columns([c.key for c in self.classes], [c.key for c in classes]).to(self.device)
        mine = ImageList.of(items)[share(len(items), self.accelerator)]
        ce, labels = (
            torch.empty(len(mine), len(classes), dtype=torch.float16),
            torch.empty(len(mine), dtype=torch.int64),
        )
        kd, done = None if self.kd_head is None else torch.empty_like(ce), 0
        hide = None if self.accelerator.is_main_process else True
        for batch in tqdm(self.eval_batches(mine, title), desc=title, unit="batch", disable=hide):
            rows = slice(done, done + len(batch["label"]))
            done = rows.stop
            on = self.to_device(batch)
            logits_ce, logits_kd, _ = net(on.get("img"), None, on.get("features"))
            ce[rows], labels[rows] = compact(logits_ce[:, keep]), batch["label"]
            if kd is not None:
                kd[rows] = compact(logits_kd[:, keep])
        ce, labels, kd = (
            None if rows is None else gather_rows(rows, len(items), self.accelerator) for rows in (ce, labels, kd)
        )
        return TestLogits(ce, kd, labels, tuple(c.name for c in classes))

    def evaluate(self, dataset: DatasetBase) -> dict[str, float]:
        """Score the model on a data set's test images; their logits are kept under `logits/` in the run's folder."""
        stored = self.head_logits(dataset.test, dataset.classes, dataset.test_name)
        if self.accelerator.is_main_process:
            stored.save(self.output_dir / "logits" / f"{dataset.test_name}.safetensors")
        return score(stored, *self.mixing()) | self.class_report(stored, dataset)

    def class_report(self, stored: TestLogits, dataset: DatasetBase) -> dict[str, float]:
        """Print the per-class report and store the confusion matrix where TEST.* asks for them: cmat.pt, as in Dassl.

        Those of further test sets are `cmat-<name>.pt`.
        """
        if self.cfg.TEST.COMPUTE_CMAT and self.accelerator.is_main_process:
            path = self.output_dir / ("cmat.pt" if dataset is self.dataset else f"cmat-{dataset.test_name}.pt")
            matrix = confusion_matrix(stored, *self.mixing())
            atomic_write(path, lambda file: torch.save(matrix, file))
            print(f"Confusion matrix is saved to {path}")
        if not self.cfg.TEST.PER_CLASS_RESULT:
            return {}
        lines, average = per_class_lines(stored, *self.mixing())
        print(lines)
        return {"perclass_accuracy": average}

    def test(self, split: str | None = None) -> float:
        """Evaluate on "val" or "test" (default TEST.SPLIT), print the hosts' result lines, return the accuracy in %."""
        split = split or self.cfg.TEST.SPLIT
        if split == "test" and self.kd_head is not None and self.cfg.TRAINER.DHO.SEARCH and self.alpha_beta is None:
            self.search_mixing()
        print(f"Evaluate on the *{split}* set")
        if split == "val":
            name, metrics = "validation", score(self.validation_logits(), *self.mixing())
        else:
            name, metrics = self.dataset.test_name, self.evaluate(self.dataset)
        self.metrics = {name: metrics}
        print(result_lines(metrics))
        for key, value in metrics.items():
            self.write_scalar(f"{split}/{key}", value, self.epoch)
        return metrics["accuracy"]

    def check_validation(self) -> None:
        """Check, before anything is trained, that a validation split is there where the config wants one.

        Raises:
            ConfigError: it is not; nothing is ever chosen on test data.
        """
        test = self.cfg.TEST
        wanted = (
            test.FINAL_MODEL == "best_val"
            or test.SPLIT == "val"
            or (self.kd_head is not None and self.cfg.TRAINER.DHO.SEARCH)
        )
        if wanted and not self.dataset.val:
            raise ConfigError(
                f"{self.cfg.DATASET.NAME} has no validation split and nothing is chosen on test data: set "
                "DATASET.NUM_VAL_SHOTS above 0, or use TEST.FINAL_MODEL last_step, TEST.SPLIT test and "
                f"TRAINER.DHO.SEARCH False. {self.dataset.no_validation}".rstrip()
            )

    def validation_logits(self) -> TestLogits:
        """Return both heads' logits on the validation split, and keep them for the search of alpha and beta."""
        stored = self.head_logits(self.dataset.val, self.dataset.classes, "validation")
        if self.accelerator.is_main_process:
            stored.save(self.output_dir / "logits" / "validation.safetensors")
        return stored

    def search_mixing(self) -> None:
        """Choose alpha and beta on the validation split (DHO, section 3.2)."""
        stored = self.validation_logits()
        kept = stored.readable()
        found = search_alpha_beta(kept.logits_ce, kept.logits_kd, kept.labels)
        self.alpha_beta = (found.alpha, found.beta)
        unread = len(stored.labels) - len(kept.labels)
        left_out = f" ({unread:,} could not be read)" if unread else ""
        images = f"{len(kept.labels):,} validation images{left_out}"
        print(f"alpha {found.alpha}, beta {found.beta}: {found.accuracy:.1f}% on {images}")

    def test_shifted(self) -> None:
        """Score the model on the data sets of TEST.SHIFTED and the data set's own further test sets."""
        keys = [info.key for info in self.classes]
        for dataset in [*self.shifted_sets(), *self.dataset.extra_tests]:
            try:
                columns(keys, [info.key for info in dataset.classes])
            except DataError as error:  # what the training ended with is not lost for it
                print(f"{dataset.test_name} is left out: {error}")
                continue
            self.metrics[dataset.test_name] = self.evaluate(dataset)
            print(result_lines(self.metrics[dataset.test_name], dataset.test_name))

    def shifted_sets(self, cfg=None) -> Iterator[DatasetBase]:
        """Yield the data sets of TEST.SHIFTED, by the run's or another config; one that is not on disk is left out."""
        for name in self.cfg.TEST.SHIFTED:
            try:
                yield DATASET_REGISTRY.get(name)(cfg or self.cfg)
            except DataError as error:
                print(f"{name} is left out: {error}")

    def evaluate_only(self, directory: str, epoch: int | None = None) -> None:
        """Load a run's model (nothing for zero-shot), test it on this config's data sets, write results.json.

        Raises:
            ConfigError: no directory says where what the method has learned is, or it is OUTPUT_DIR.
        """
        if self.get_model_names() and not directory:
            raise ConfigError(f"--eval-only: {type(self).__name__} has learned parts; name their run with --model-dir")
        # Whole: whoever reads the results stands in another folder.
        self.model_dir = str(Path(directory).expanduser().resolve()) if directory else ""
        if directory and self.model_dir == str(Path(self.output_dir).resolve()):
            raise ConfigError(
                f"--output-dir {self.output_dir} is the trained run itself: an evaluation's results.json would take "
                "the place of the training's; name another folder"
            )
        self.check_validation()
        self.load_model(directory, epoch)
        self.take_over_mixing(directory)
        self.claim_output()
        self.test()
        self.test_shifted()
        self.write_results()

    def take_over_mixing(self, directory: str) -> None:
        """Take the alpha and beta that an evaluated run chose on its validation images, if the config has no others."""
        path, own = Path(directory) / "results.json", self.cfg.TRAINER.DHO
        if self.kd_head is None or not path.is_file():
            return
        run = read_json(path)
        node = run["config"]["TRAINER"]["DHO"]
        if node["SEARCH"] and node["ALPHA"] == own.ALPHA and node["BETA"] == own.BETA and run["alpha"] is not None:
            self.alpha_beta = (run["alpha"], run["beta"])
            print(f"alpha {run['alpha']}, beta {run['beta']}: chosen by the run on its validation images")

    def write_results(self) -> None:
        """Write results.json, the last act of a run: where it lies, the run is complete."""
        if not self.accelerator.is_main_process:
            return
        labeled = self.cfg.DATASET if self.get_model_names() and self.learns_labels else None
        alpha, beta = self.mixing() if self.kd_head is not None else (None, None)
        content = {
            "trainer": type(self).__name__,
            "method": self.display_name(),
            "dataset": dataset_label(self.cfg),
            "shots": labeled.NUM_SHOTS if labeled else None,
            "labeled_percent": (labeled.LABELED_PERCENT or None) if labeled else None,
            "seed": self.cfg.SEED if self.get_model_names() else None,
            "unlabeled": self.uses_unlabeled() and len(self.dataset.train_u) > 0,
            "teacher": self.teacher_label,
            "alpha": alpha,
            "beta": beta,
            "model_dir": self.model_dir or None,
            "model_dir_from_here": relpath(self.model_dir, self.output_dir) if self.model_dir else None,
            "data": self.data_identity,
            "metrics": self.metrics,
            "config_name": self.config_name,
            "seconds": round(self.elapsed(), 1),
            "processes": self.accelerator.num_processes,
            "data_wait": self.clock.summary(),
            "peak_memory_mb": round(peak_memory_mb(self.device), 1),
            "versions": versions(),
            "config": as_plain(self.cfg),
        }
        write_json(self.output_dir / "results.json", content)
