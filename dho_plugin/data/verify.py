"""Reading every image of a data set once: which cannot be decoded, and which files have the same content."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from itertools import chain, combinations
from typing import Any

import numpy as np

from dho_plugin.data.looking import look_at_all
from dho_plugin.engine.data import ImageList

SHOWN = 20
REMEDY = "    repair or remove them, or run with DATASET.UNREADABLE skip, which leaves them out and counts them"
# Parts of one role may share images: further test sets often do, and unlabeled copies of training images are harmless.
_ROLES = {"train": 0, "unlabeled": 0, "val": 1}
_TESTED = 2


def printable(text: str) -> str:
    """Return a text with file names in it fit to print and to store, whatever bytes they have."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


class Verification:
    """The images of one data set, read once; what was found so far is there after an interruption too.

    Args:
        parts: the images of each part: "train", "unlabeled", "val"; all others are test images.

    Attributes:
        looked_at: how many images were read, in the order of the parts.
        reasons: why an image, by its place in that order, cannot be decoded.
    """

    def __init__(self, parts: Mapping[str, ImageList]):
        self.parts = dict(parts)
        self._names = list(self.parts)
        self._starts = np.cumsum([0, *map(len, self.parts.values())])
        self._digests = np.zeros(len(self), dtype=np.uint64)
        self.reasons: dict[int, str] = {}
        self.looked_at = 0

    def __len__(self) -> int:
        return int(self._starts[-1])

    def run(self, workers: int, progress: Callable[[int], object] = lambda count: None) -> None:
        """Read all images.

        Args:
            workers: processes that read; 0: this one.
            progress: called with the number of images read since its last call.

        Raises:
            ConfigError: processes cannot be started.
        """
        paths = chain.from_iterable(images.paths() for images in self.parts.values())
        with closing(look_at_all(paths, workers)) as looks:
            for chunk in looks:
                for look in chunk:
                    self._digests[self.looked_at] = look.digest
                    if look.reason:
                        self.reasons[self.looked_at] = look.reason
                    self.looked_at += 1
                progress(len(chunk))

    def equal_files(self) -> list[list[int]]:
        """Return the places of readable images with the same content, a list a content."""
        readable = np.ones(self.looked_at, dtype=bool)
        readable[list(self.reasons)] = False
        places = np.flatnonzero(readable)
        _, group, counts = np.unique(self._digests[places], return_inverse=True, return_counts=True)
        places, group = places[counts[group] > 1], group[counts[group] > 1]
        order = np.argsort(group, kind="stable")
        groups = np.split(places[order], np.flatnonzero(np.diff(group[order])) + 1)
        return sorted(found.tolist() for found in groups if len(found))

    def shared(self) -> dict[str, list[tuple[int, int]]]:
        """Return what is wrong with files of equal content, and of each such content the places of two of the files.

        Wrong is the same image in two of training, validation and test, several times in one part, or in training with
        several classes.
        """
        found: dict[str, list[tuple[int, int]]] = {}
        for places in self.equal_files():
            for what, pair in self._complaints(places):
                found.setdefault(what, []).append(pair)
        return found

    def _complaints(self, places: list[int]) -> Iterator[tuple[str, tuple[int, int]]]:
        parts = [self._part(place) for place in places]
        first = {part: place for place, part in zip(reversed(places), reversed(parts), strict=True)}
        for one, other in combinations(first, 2):
            if _ROLES.get(one, _TESTED) != _ROLES.get(other, _TESTED):
                one, other = sorted((one, other), key=self._names.index)
                yield f"in {one} and in {other}", (first[one], first[other])
        for part, count in Counter(parts).items():
            if count > 1:
                yield f"several times in {part}", (first[part], places[parts.index(part) + 1])
        labels = {self._label(place): place for place in places if self._part(place) == "train"}
        if len(labels) > 1:
            yield "in several classes of train", tuple(sorted(labels.values())[:2])

    def _part(self, place: int) -> str:
        return self._names[int(np.searchsorted(self._starts, place, side="right")) - 1]

    def _where(self, place: int) -> tuple[ImageList, int]:
        part = self._part(place)
        return self.parts[part], int(place - self._starts[self._names.index(part)])

    def _label(self, place: int) -> int:
        images, position = self._where(place)
        return int(images.labels[position])

    def _shown(self, place: int) -> str:
        images, position = self._where(place)
        return printable(images.path(position))

    def as_plain(self) -> dict[str, Any]:
        """Return all that was found, ready for JSON."""
        return {
            "images": len(self),
            "read": self.looked_at,
            "unreadable": [
                {"part": self._part(place), "path": self._shown(place), "reason": reason}
                for place, reason in self.reasons.items()
            ],
            "equal_files": {
                what: [[self._shown(place) for place in pair] for pair in pairs]
                for what, pairs in self.shared().items()
            },
        }

    def report(self) -> list[str]:
        """Return in lines what was found, with examples."""
        plain = self.as_plain()
        so_far = "" if self.looked_at == len(self) else f" of {len(self):,}, then interrupted"
        lines = [f"{self.looked_at:,} images read{so_far}; {len(self.reasons):,} cannot be decoded"]
        lines += ["    {part}: {path}: {reason}".format(**image) for image in plain["unreadable"][:SHOWN]]
        if len(self.reasons) > SHOWN:
            lines.append(f"    ... and {len(self.reasons) - SHOWN:,} more; --json FILE lists all")
        lines += [REMEDY] if self.reasons else []
        for what, pairs in plain["equal_files"].items():
            lines.append(f"equal files {what}: {len(pairs):,}, for example {' and '.join(pairs[0])}")
        return lines
