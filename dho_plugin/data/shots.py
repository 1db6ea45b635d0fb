"""Few-shot sets that are kept beside the data: CoOp's pickles are read, ours are JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dho_plugin.data.coop_pickle import Named, read_shots_pickle
from dho_plugin.data.matching import locate, relative_path
from dho_plugin.data.splits import Shots, class_counts, draw_shots
from dho_plugin.engine.data import ClassInfo, ImageList
from dho_plugin.engine.files import atomic_write_text
from dho_plugin.errors import DataError

FOLDER = "split_fewshot"  # CoOp's
_REMEDY = "Delete {path}, or set DATASET.SHOTS_FROM draw"


class ShotStore:
    """The stored shots of one data set, number of shots and seed.

    Args:
        home: the data set's own folder.
        image_dir: folder below which the images lie.
        classes: all classes of the data set, in label order.
        num_shots: `DATASET.NUM_SHOTS`, >= 1.
        seed: `SEED`.
    """

    def __init__(self, home: Path, image_dir: Path, classes: Sequence[ClassInfo], num_shots: int, seed: int):
        self.image_dir, self.keys = image_dir, [info.key for info in classes]
        self.num_shots, self.seed = num_shots, seed
        stem = home / FOLDER / f"shot_{num_shots}-seed_{seed}"
        self.pickle, self.json = stem.with_suffix(".pkl"), stem.with_suffix(".json")

    def shots(self, train: ImageList, own_val: ImageList | None, source: str) -> Shots:
        """Return the labeled shots, and say in a line where they come from.

        Args:
            train: all training images.
            own_val: the data set's own validation images, if it has any.
            source: `DATASET.SHOTS_FROM`: auto takes CoOp's pickle, else our JSON, else draws and stores; draw neither
                reads nor stores.

        Raises:
            DataError: a stored file does not fit the data or is no plain list of shots, or no class has so many images.
            ConfigError: there is something to draw and the seed is negative.
        """
        stored = [path for path in (self.pickle, self.json) if source == "auto" and path.is_file()]
        if stored:
            shots, whence = self.read(stored[0], train, own_val), str(stored[0])
        else:
            shots, whence = draw_shots(train, own_val, self.num_shots, self.seed), "drawn"
        if source == "auto" and not stored:
            whence += self._try_write(shots, train, own_val)
        print(f"Shots: {self.num_shots} a class, seed {self.seed}, {whence}")
        return shots

    def read(self, path: Path, train: ImageList, own_val: ImageList | None) -> Shots:
        """Read a stored file: CoOp's pickle by its ending, else ours.

        Returns:
            The shots in the file's order; val is None where the file has none, or the data set has none of its own.

        Raises:
            DataError: the file does not fit the data, or is no plain list of shots.
        """
        parts = read_shots_pickle(path) if path == self.pickle else self._read_json(path)
        positions = self._positions(path, parts["train"], train)
        self._check_counts(path, positions, train)
        if own_val is None or "val" not in parts:
            return Shots(positions)
        return Shots(positions, self._positions(path, parts["val"], own_val))

    def write(self, shots: Shots, train: ImageList, own_val: ImageList | None) -> None:
        """Store shots as JSON with relative paths, grouped by class key; an existing file is replaced at once.

        Raises:
            OSError: the file cannot be written.
            UnicodeError: a file name is not text.
        """
        content = {"shots": self.num_shots, "seed": self.seed, "classes": len(self.keys)}
        content["train"] = self._grouped(shots.train, train)
        if own_val is not None and shots.val is not None:
            content["val"] = self._grouped(shots.val, own_val)
        atomic_write_text(self.json, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _try_write(self, shots: Shots, train: ImageList, own_val: ImageList | None) -> str:
        try:
            self.write(shots, train, own_val)
        except (OSError, UnicodeError) as error:
            return f" (not stored: {error})"
        return f", stored in {self.json}"

    def _grouped(self, positions: np.ndarray, images: ImageList) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for position in positions.tolist():
            paths = groups.setdefault(self.keys[images.labels[position]], [])
            paths.append(relative_path(images, position, self.image_dir))
        return groups

    def _read_json(self, path: Path) -> dict[str, list[Named]]:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise self._unfit(path, f"cannot be read as JSON: {error}") from error
        expected = {"shots": self.num_shots, "seed": self.seed, "classes": len(self.keys)}
        found = content if isinstance(content, dict) else {}
        for key, value in expected.items():
            if found.get(key) != value:
                raise self._unfit(path, f"has {found.get(key)!r} under {key!r}, where this run has {value}")
        return {part: self._named(path, found.get(part)) for part in ("train", "val") if part in ("train", *found)}

    def _named(self, path: Path, groups: Any) -> list[Named]:
        plain = isinstance(groups, dict) and all(isinstance(paths, list) for paths in groups.values())
        if not plain or not all(isinstance(image, str) for paths in groups.values() for image in paths):
            raise self._unfit(path, "is no list of image paths a class")
        labels = {key: label for label, key in enumerate(self.keys)}
        for key in groups:
            if key not in labels:
                raise self._unfit(path, f"names the class {key!r}, which the data set does not have")
        return [Named(image, labels[key]) for key, paths in groups.items() for image in paths]

    def _positions(self, path: Path, named: Sequence[Named], images: ImageList) -> np.ndarray:
        remedy = _REMEDY.format(path=path)
        positions = locate(images, [item.path for item in named], self.image_dir, path, remedy)
        for item, position in zip(named, positions.tolist(), strict=True):
            label = int(images.labels[position])
            if item.label != label:
                raise self._unfit(path, f"gives {item.path!r} the label {item.label}; in the data set it has {label}")
        return positions

    def _check_counts(self, path: Path, positions: np.ndarray, train: ImageList) -> None:
        has = class_counts(train)
        stored = np.bincount(train.labels[positions], minlength=len(has))
        wrong = np.flatnonzero(stored != np.minimum(has, self.num_shots))
        if len(wrong):
            label = int(wrong[0])
            raise self._unfit(
                path,
                f"has {stored[label]} shots of class {self.keys[label]!r} (label {label}), which has {has[label]} "
                f"training images, where {self.num_shots} are asked for; so for {len(wrong)} classes in all",
            )

    def _unfit(self, path: Path, found: str) -> DataError:
        return DataError(f"{path} {found}. {_REMEDY.format(path=path)}")
