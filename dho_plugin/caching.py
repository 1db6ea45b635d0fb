"""Training and evaluation on stored features: what a run wants of the caches, and where it reads in place of images."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from dho_plugin.data.imagenet import data_root
from dho_plugin.engine.config import dataset_label
from dho_plugin.engine.data import ClassInfo, Datum, ImageList
from dho_plugin.engine.evaluator import TestLogits
from dho_plugin.engine.feature_lookup import Wanted, stores_named
from dho_plugin.engine.feature_sets import FeatureBatches, StoredFeatures
from dho_plugin.engine.feature_stream import features_in_order, training_features
from dho_plugin.engine.fingerprint import weights_fingerprint
from dho_plugin.engine.image_sets import ViewDataset
from dho_plugin.engine.loaders import StepBatches
from dho_plugin.engine.views import Preprocess
from dho_plugin.errors import CacheError, ConfigError, NoCacheError
from dho_plugin.filling import fill_for_run
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.teachers import storable

COMMAND = "python -m dho_plugin.cache"
MODE_KEYS = {"teacher": "TRAINER.DHO.TEACHER.MODE", "student": "MODEL.FEATURES"}


class FeatureCaching:
    """The part of a DHO trainer that reads stored features in the place of running frozen encoders.

    Attributes:
        stored: what the training reads, by "teacher" and "student", then by stream.
    """

    def __init__(self, *args, **kwargs):
        self.stored: dict[str, dict[str, StoredFeatures]] = {}
        self._fingerprints: dict[str, str] = {}
        super().__init__(*args, **kwargs)

    # What is wanted ---------------------------------------------------------------------------------------------

    def shown(self) -> dict[str, tuple[ImageList, int]]:
        """Return the images of each training stream, and how many views of them it shows.

        They are INPUT.VIEWS, or one a pass where there are fewer passes. The stream of all images comes first.
        """
        data, streams = self.dataset, {}
        if self.uses_unlabeled():
            streams["train_u"] = data.train_x + data.train_u, self.unlabeled_batch_size()
        streams["train_x"] = self.first_stream(), self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        passes = {name: -(-self.total_steps() * size // max(1, len(items))) for name, (items, size) in streams.items()}
        views = {name: min(self.cfg.INPUT.VIEWS or count, count) for name, count in passes.items()}
        return {name: (items, views[name]) for name, (items, _) in streams.items()}

    def views_needed(self) -> int:
        """Return how many views of an image the training shows."""
        return max(views for _, views in self.shown().values())

    def images_shown(self) -> int:
        """Return how many images all batches of the training have together."""
        batches = self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE + self.uses_unlabeled() * self.unlabeled_batch_size()
        return self.total_steps() * batches

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
        data, label = self.cfg.DATASET, dataset_label(self.cfg)
        if data.NAME.startswith("ImageNet") and not data.PREFIX:
            label = "imagenet"  # a shifted set that is scored by itself is the one that training scores
        return re.sub(r"[^\w.@-]+", "_", f"{label}-{part}-{clip.name}")

    def description(self, who: str, views: bool, clip: LoadedCLIP) -> dict[str, Any]:
        """Return what an encoder's features depend on beside the images, as plain values."""
        if who not in self._fingerprints:
            self._fingerprints[who] = weights_fingerprint(clip.model.visual)
        precision, pre = self.accelerator.mixed_precision, asdict(clip.preprocess)
        if views:  # a view is resized to the input, whatever an evaluation does
            del pre["resize_mode"]
        del pre["crop_pct"]  # of weights that learn, whose features nobody stores
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
        self.stored, shown = {}, self.shown()
        if teacher is not None:
            self._open("teacher", self.teacher_mode(teacher), teacher, shown)
        mode = self.student_mode(training=True)
        if mode != self.cfg.MODEL.FEATURES == "fill":
            print(f"MODEL.FEATURES fill: {type(self).__name__}'s image features change as it learns: they are computed")
        if self.student.storable and teacher is not None and "teacher" not in self.stored:
            if mode in ("cached", "fill"):
                raise ConfigError(
                    f"MODEL.FEATURES {mode}: the teacher looks at the images (TRAINER.DHO.TEACHER.MODE), so they are "
                    f"decoded all the same. Store its features, too: TRAINER.DHO.TEACHER.MODE fill, or {COMMAND} "
                    "with this run's flags and options"
                )
            mode = "online"
        self._open("student", mode, self.clip(), shown if self.student.storable else {"train_x": shown["train_x"]})
        if "teacher" in self.stored:
            self.teacher.model.drop_encoder()

    def _open(self, who: str, mode: str, clip: LoadedCLIP, shown: dict[str, tuple[ImageList, int]]) -> None:
        """Find an encoder's features for all streams, or for none of them."""
        found = {}
        for stream, (items, views) in shown.items():
            if not views or (features := self.find(who, mode, "train", views, clip, items)) is None:
                return
            found[stream] = features
        for folder in dict.fromkeys(features.store.folder for features in found.values()):
            print(f"The {who}'s features (train) are read from {folder}")
        self.stored[who] = found

    def teacher_mode(self, teacher: LoadedCLIP) -> str:
        """Return TRAINER.DHO.TEACHER.MODE; "online" where the teacher is a run with prompts in its image encoder.

        Raises:
            ConfigError: stored features are asked for of such a one.
        """
        mode = self.cfg.TRAINER.DHO.TEACHER.MODE
        if storable(teacher) or mode == "auto":
            return mode if storable(teacher) else "online"
        if mode != "online":
            raise ConfigError(
                f"TRAINER.DHO.TEACHER.MODE is {mode}, but the image encoder of the run {teacher.directory} is no "
                "frozen CLIP, and only such a one's features are stored: use auto or online"
            )
        return mode

    def student_mode(self, *, training: bool) -> str:
        """Return MODEL.FEATURES; "online" where the student's features change.

        Raises:
            ConfigError: they change, and stored ones are asked for.
        """
        mode, student = self.cfg.MODEL.FEATURES, self.student
        if student.storable or (training and student.wants_frozen):
            return mode
        if mode == "cached" and not student.wants_frozen:
            raise ConfigError(
                f"MODEL.FEATURES is cached, but {type(self).__name__}'s image features change as it learns, or it "
                "needs the images themselves; use auto, fill or online"
            )
        return "online"

    def find(
        self, who: str, mode: str, part: str, views: int, clip: LoadedCLIP, items: ImageList
    ) -> StoredFeatures | None:
        """Return the stored features of some images, or None where the encoder is to look at them.

        Raises:
            CacheError: they are asked for and not there, or damaged, or the disk has no room for them.
        """
        if mode == "online" or not len(items):
            return None
        if mode == "auto" and not stores_named(self.store_name(part, clip)):
            return None  # before the weights' fingerprint, which takes a second
        wanted = self.wanted(who, part, views, clip)
        try:
            return wanted.find(items)
        except NoCacheError as error:
            if mode == "auto":
                print(f"The {who}'s features ({part}) are computed: {error}")
                return None
            if mode == "cached":
                flags = f" --views {views}" if views else ""
                hint = f"Fill it: {COMMAND}{flags}, with this run's flags and options, or set {MODE_KEYS[who]} fill"
                raise CacheError(f"{MODE_KEYS[who]} cached: {error}. {hint}, or auto to compute them") from error
        fill_for_run(self, who, part, views, clip, items)
        return wanted.find(items)

    # Where they are read ----------------------------------------------------------------------------------------

    def train_batches(self, items: ImageList, batches: StepBatches) -> Iterable[dict]:
        """Return the batches of a stream: images, stored features, or the student's images beside the teacher's."""
        # Of a student that learns below its features, only what it is held near is stored.
        keys = {"teacher": "teacher_features", "student": "features" if self.student.storable else "features_frozen"}
        streams = {keys[who]: found for who, found in self.stored.items()}
        stored = {key: found[batches.stream] for key, found in streams.items() if batches.stream in found}
        if not stored:
            return super().train_batches(items, batches)
        if "features" in stored:
            unreadable = "next" if self.cfg.DATASET.UNREADABLE == "skip" else "error"
            return training_features(FeatureBatches(items, stored, unreadable=unreadable), batches, self.device)
        models = self.student_preprocess, None if "teacher_features" in stored else self.teacher_preprocess
        options = {"views": self.view_spec(), "size": self.decoded_for(), "stored": stored, **self.reading()}
        options["keep_mb"] = self.cfg.INPUT.KEEP_MB
        return self.loaded(ViewDataset(items, *models, **options), batches)

    def fill_dataset(self, clip: LoadedCLIP, items: ImageList) -> ViewDataset:
        """Return the training images as an encoder sees them, decoded as the training decodes them."""
        options = {"views": self.view_spec(), "size": self.decoded_for(), **self.reading()}
        return ViewDataset(items, clip.preprocess, **options)

    def head_logits(self, items: Sequence[Datum], classes: Sequence[ClassInfo], title: str) -> TestLogits:
        """Run the model over images, as `HeadEvaluation` does; features that are to be stored are stored first.

        Here, where all images are known: a process may evaluate a share of them.
        """
        if (mode := self.student_mode(training=False)) == "fill":
            self.find("student", mode, title, 0, self.clip(), ImageList.of(items))
        return super().head_logits(items, classes, title)

    def eval_batches(self, items: ImageList, title: str) -> Iterable[dict]:
        """Return the batches of an evaluation: images, or a frozen student's stored features."""
        found = self.find("student", self.student_mode(training=False), title, 0, self.clip(), items)
        if found is None:
            return super().eval_batches(items, title)
        print(f"The student's features ({title}) are read from {found.store.folder}")
        unreadable = "mark" if self.cfg.DATASET.UNREADABLE == "skip" else "error"
        batches = FeatureBatches(items, {"features": found}, unreadable=unreadable)
        return features_in_order(batches, self.cfg.DATALOADER.TEST.BATCH_SIZE, self.device)
