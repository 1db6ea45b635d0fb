"""From the config to the streams of training batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from accelerate import Accelerator

from dho_plugin.engine.data import DatasetBase, ImageList
from dho_plugin.engine.image_sets import ViewDataset
from dho_plugin.engine.loaders import StepBatches, train_loader
from dho_plugin.engine.views import Preprocess, ViewSpec


class TrainingStreams:
    """The part of a trainer that draws its batches.

    Attributes:
        student_preprocess: size and normalization of the student's images; set by `build_model`.
        teacher_preprocess: the teacher's, where one looks at the same views at another size or normalization.
    """

    accelerator: Accelerator
    dataset: DatasetBase
    student_preprocess: Preprocess
    teacher_preprocess: Preprocess | None = None

    def steps_per_epoch(self) -> int:
        """Return the number of steps in an epoch (TRAIN.COUNT_ITER); full batches only, at least one.

        It does not depend on whether the unlabeled images are used: runs with and without them take equal steps.
        """
        loader = self.cfg.DATALOADER
        labeled = len(self.dataset.train_x) // loader.TRAIN_X.BATCH_SIZE
        union = (len(self.dataset.train_x) + len(self.dataset.train_u)) // self.unlabeled_batch_size()
        counts = {"train_x": labeled, "train_u": union, "smaller_one": min(labeled, union)}
        return max(1, counts[self.cfg.TRAIN.COUNT_ITER])

    def total_steps(self) -> int:
        """Return the number of steps of the whole training."""
        return self.steps_per_epoch() * self.cfg.OPTIM.MAX_EPOCH

    def first_stream(self) -> ImageList:
        """Return the images of the stream `train_x`: the labeled ones."""
        return self.dataset.train_x

    def unlabeled_batch_size(self) -> int:
        """Return the batch size of the unlabeled stream."""
        loader = self.cfg.DATALOADER
        return loader.TRAIN_X.BATCH_SIZE if loader.TRAIN_U.SAME_AS_X else loader.TRAIN_U.BATCH_SIZE

    def view_spec(self) -> ViewSpec:
        """Return what the training views look like, from INPUT.*."""
        names = self.cfg.INPUT.TRANSFORMS
        return ViewSpec(
            seed=self.cfg.INPUT.VIEW_SEED,
            scale=tuple(self.cfg.INPUT.RRCROP_SCALE),
            crop="random_resized_crop" in names,
            flip="random_flip" in names,
        )

    def reading(self) -> dict:
        """Return how image files are read, in training and in evaluation, from DATASET.UNREADABLE and INPUT.*."""
        inputs = self.cfg.INPUT
        return {"unreadable": self.cfg.DATASET.UNREADABLE, "jpeg_gap": inputs.JPEG_GAP, "upright": inputs.UPRIGHT}

    def train_batches(self, items: ImageList, batches: StepBatches) -> Iterable[dict]:
        """Return the batches of a stream, with the images of student and teacher, on the device."""
        models = self.student_preprocess, self.teacher_preprocess
        options = {"views": self.view_spec(), "keep_mb": self.cfg.INPUT.KEEP_MB, **self.reading()}
        dataset = ViewDataset(items, *models, **options)
        return self.loaded(dataset, batches)

    def loaded(self, dataset: ViewDataset, batches: StepBatches) -> Iterator[dict]:
        """Return the batches of a dataset of images, on the device."""
        loader = train_loader(dataset, batches, workers=self.cfg.DATALOADER.NUM_WORKERS, device=self.device)
        return map(self.to_device, loader)

    def train_stream(self, name: str, items: ImageList, batch_size: int, start_step: int) -> Iterator[dict]:
        """Return the batches of one stream from `start_step` to the end of training."""
        share = {"rank": self.accelerator.process_index, "world": self.accelerator.num_processes}
        of_run = (self.total_steps(), self.cfg.SEED, name, start_step)
        batches = StepBatches(len(items), batch_size, *of_run, views=self.cfg.INPUT.VIEWS, **share)
        return iter(self.train_batches(items, batches))

    def to_device(self, batch: dict) -> dict:
        """Move a batch's tensors to the device."""
        on = {k: v.to(self.device, non_blocking=True) for k, v in batch.items() if isinstance(v, torch.Tensor)}
        return {**batch, **on}

    def train_streams(self, start_step: int) -> list[Iterator[dict]]:
        """Return the streams whose batches `forward_backward` takes, in its order."""
        return [self.train_stream("train_x", self.first_stream(), self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE, start_step)]
