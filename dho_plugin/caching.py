"""Training and evaluation on stored features: what a run wants of the caches, and where it reads in place of images."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from dho_plugin.data.imagenet import data_root
from dho_plugin.engine.config import dataset_label
from dho_plugin.engine.data import DatasetBase, ImageList
from dho_plugin.engine.feature_lookup import Wanted, stores_named
from dho_plugin.engine.feature_sets import FeatureBatches, StoredFeatures
from dho_plugin.engine.feature_stream import features_in_order, training_features
from dho_plugin.engine.fingerprint import weights_fingerprint
from dho_plugin.engine.image_sets import ViewDataset
from dho_plugin.engine.loaders import StepBatches
from dho_plugin.engine.registry import DATASET_REGISTRY
from dho_plugin.engine.views import Preprocess
from dho_plugin.errors import CacheError, ConfigError, NoCacheError
from dho_plugin.models.clip import LoadedCLIP

COMMAND = "python -m dho_plugin.cache"
MODE_KEYS = {"teacher": "TRAINER.DHO.TEACHER.MODE", "student": "MODEL.FEATURES"}
BATCH_KEYS = {"teacher": "teacher_features", "student": "features"}


class FeatureCaching:
    """The part of a DHO trainer that reads stored features in the place of running frozen encoders.

    Attributes:
        stored: what the training reads, by "teacher" and "student", for the labeled images and the pool after them.
    """

    def __init__(self, cfg):
        self.stored: dict[str, StoredFeatures] = {}
        self._fingerprints: dict[str, str] = {}
        super().__init__(cfg)

    # What is wanted ---------------------------------------------------------------------------------------------

    def views_needed(self) -> int:
        """Return how many views of an image the training shows: INPUT.VIEWS, else one a pass."""
        labeled, pool, loader = len(self.dataset.train_x), len(self.dataset.train_u), self.cfg.DATALOADER
        streams = [(labeled, loader.TRAIN_X.BATCH_SIZE)]
        streams += [(labeled + pool, self.unlabeled_batch_size())] if self.uses_unlabeled() else []
        passes = max(-(-self.total_steps() * batch // max(1, n)) for n, batch in streams)
        return min(self.cfg.INPUT.VIEWS or passes, passes)

    def wanted(self, who: str, part: str, views: int, clip: LoadedCLIP) -> Wanted:
        """Return the features of an encoder that this run can read.

        Args:
            who: "teacher" or "student".
            part: "train", or the name of the images of an evaluation.
            views: number of training views; 0 for an evaluation.
            clip: the encoder.
        """
        description = self.description(who, views > 0, clip)
        return Wanted(self.store_name(part, clip), description, data_root(self.cfg), views)

    def store_name(self, part: str, clip: LoadedCLIP) -> str:
        """Return how the folders of an encoder's stores begin."""
        return re.sub(r"[^\w.@-]+", "_", f"{dataset_label(self.cfg)}-{part}-{clip.name}")

    def description(self, who: str, views: bool, clip: LoadedCLIP) -> dict[str, Any]:
        """Return what an encoder's features depend on beside the images, as plain values."""
        if who not in self._fingerprints:
            self._fingerprints[who] = weights_fingerprint(clip.model.visual)
        precision, pre = self.accelerator.mixed_precision, asdict(clip.preprocess)
        if views:  # a view is resized to the input, whatever an evaluation does
            del pre["resize_mode"]
        gap = self.cfg.INPUT.JPEG_GAP
        return {
            "weights": self._fingerprints[who],
            "precision": precision,
            **{key: list(value) if isinstance(value, tuple) else value for key, value in pre.items()},
            **(self._view_facts() if views else {}),
            "upright": self.cfg.INPUT.UPRIGHT,
            "jpeg_gap": gap,
            "decoded_for": (self.decoded_for() if views else pre["size"]) if gap else None,
            # A student's features are stored as they are computed, a teacher's as half the bytes.
            "dtype": "float32" if who == "student" and precision == "no" else "float16",
            "dim": clip.feature_dim,
            # A published set is the same wherever it lies; own files of one name and size may be other photos.
            **({"place": str(data_root(self.cfg))} if self.cfg.DATASET.NAME == "ImageFolder" else {}),
        }

    def _view_facts(self) -> dict[str, Any]:
        spec = self.view_spec()
        drawn = {"crop_scale": list(spec.scale), "crop_ratio": list(spec.ratio)} if spec.crop else {}
        return {
            "crop": spec.crop,
            "flip": spec.flip,
            "view_seed": spec.seed if spec.crop or spec.flip else None,
            **drawn,
        }

    def decoded_for(self) -> int:
        """Return the side of the largest input for which a training image is decoded."""
        models: list[Preprocess | None] = [self.student_preprocess, self.teacher_preprocess]
        return max(pre.size for pre in models if pre is not None)

    # What is there ----------------------------------------------------------------------------------------------

    def open_stores(self, teacher: LoadedCLIP | None) -> None:
        """Find the stored features that the training reads; a teacher whose features are all there is let go.

        Raises:
            CacheError: they are asked for and not there, or damaged.
            ConfigError: features are asked for of a student that has none to store.
        """
        self.stored, items = {}, self.dataset.train_x
        if self.uses_unlabeled():
            items = items + self.dataset.train_u
        if teacher is not None:
            self._open("teacher", items, teacher)
        if self.student_mode() != "online":
            if teacher is None or "teacher" in self.stored:
                self._open("student", items, self.clip())
            elif self.student_mode() == "cached":
                raise ConfigError(
                    "MODEL.FEATURES cached: the teacher looks at the images (TRAINER.DHO.TEACHER.MODE), so they are "
                    f"decoded all the same. Store its features, too: {COMMAND}, with this run's flags and options"
                )
        if "teacher" in self.stored:
            self.teacher.model.drop_encoder()

    def _open(self, who: str, items: ImageList, clip: LoadedCLIP) -> None:
        if found := self.find(who, "train", self.views_needed(), clip, items):
            self.stored[who] = found

    def student_mode(self) -> str:
        """Return MODEL.FEATURES; "online" where the student's features change.

        Raises:
            ConfigError: they change, and stored ones are asked for.
        """
        if self.student.storable or self.cfg.MODEL.FEATURES == "online":
            return self.cfg.MODEL.FEATURES
        if self.cfg.MODEL.FEATURES == "cached":
            raise ConfigError(
                f"MODEL.FEATURES is cached, but {type(self).__name__}'s image features change as it learns, or it "
                "needs the images themselves; use auto or online"
            )
        return "online"

    def find(self, who: str, part: str, views: int, clip: LoadedCLIP, items: ImageList) -> StoredFeatures | None:
        """Return the stored features of some images, or None where the encoder is to look at them.

        Raises:
            CacheError: they are asked for and not there, or damaged.
        """
        mode = self.student_mode() if who == "student" else self.cfg.TRAINER.DHO.TEACHER.MODE
        if mode == "online" or not len(items):
            return None
        if mode == "auto" and not stores_named(self.store_name(part, clip)):
            return None  # before the weights' fingerprint, which takes a second
        try:
            found = self.wanted(who, part, views, clip).find(items)
        except NoCacheError as error:
            if mode == "auto":
                print(f"The {who}'s features ({part}) are computed: {error}")
                return None
            flags = f" --views {views}" if views else ""
            hint = f"Fill it: {COMMAND}{flags}, with this run's flags and options, or set {MODE_KEYS[who]} auto"
            raise CacheError(f"{MODE_KEYS[who]} cached: {error}. {hint}") from error
        print(f"The {who}'s features ({part}) are read from {found.store.folder}")
        return found

    # Where they are read ----------------------------------------------------------------------------------------

    def train_batches(self, items: ImageList, batches: StepBatches) -> Iterable[dict]:
        """Return the batches of a stream: images, stored features, or the student's images beside the teacher's."""
        # Of the labeled images and the pool after them a stream shows the former, or both.
        parts = {who: StoredFeatures(found.store, found.rows[: len(items)]) for who, found in self.stored.items()}
        stored = {BATCH_KEYS[who]: features for who, features in parts.items()}
        if not stored:
            return super().train_batches(items, batches)
        if "student" in self.stored:
            unreadable = "next" if self.cfg.DATASET.UNREADABLE == "skip" else "error"
            return training_features(FeatureBatches(items, stored, unreadable=unreadable), batches, self.device)
        options = {"views": self.view_spec(), "size": self.decoded_for(), "stored": stored, **self.reading()}
        return self.loaded(ViewDataset(items, self.student_preprocess, **options), batches)

    def fill_dataset(self, clip: LoadedCLIP, items: ImageList) -> ViewDataset:
        """Return the training images as an encoder sees them, decoded as the training decodes them."""
        options = {"views": self.view_spec(), "size": self.decoded_for(), **self.reading()}
        return ViewDataset(items, clip.preprocess, **options)

    def eval_batches(self, items: ImageList, title: str) -> Iterable[dict]:
        """Return the batches of an evaluation: images, or a frozen student's stored features."""
        found = self.find("student", title, 0, self.clip(), items)
        if found is None:
            return super().eval_batches(items, title)
        unreadable = "mark" if self.cfg.DATASET.UNREADABLE == "skip" else "error"
        batches = FeatureBatches(items, {BATCH_KEYS["student"]: found}, unreadable=unreadable)
        return features_in_order(batches, self.cfg.DATALOADER.TEST.BATCH_SIZE, self.device)


def whole_config(cfg):
    """Return a run's config with all training images, whatever is labeled, and all classes.

    So one cache serves all shots, seeds, percentages and halves of the classes.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASET.NUM_SHOTS, cfg.DATASET.LABELED_PERCENT, cfg.DATASET.NUM_VAL_SHOTS = -1, 0.0, 0
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    cfg.freeze()
    return cfg


def whole_parts(trainer: FeatureCaching) -> tuple[ImageList, dict[str, ImageList]]:
    """Return all training images of a run's data, and the images of its evaluations by the names of their features."""
    cfg = whole_config(trainer.cfg)
    whole: DatasetBase = DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
    # Validation images that are taken from the training images are those of this run's shots.
    parts = {"validation": whole.val if len(whole.val) else trainer.dataset.val}
    parts |= {one.test_name: one.test for one in (whole, *trainer.shifted_sets(cfg), *whole.extra_tests)}
    return whole.train_x + whole.train_u, {name: items for name, items in parts.items() if len(items)}
