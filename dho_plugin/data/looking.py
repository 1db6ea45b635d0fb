"""Processes that read image files and survive them."""

from __future__ import annotations

import hashlib
import signal
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from functools import partial
from itertools import islice
from multiprocessing import get_context
from types import SimpleNamespace
from typing import Any, NamedTuple

from PIL import Image

from dho_plugin.data.mini.pool import end_with_parent
from dho_plugin.engine.decode import read_image
from dho_plugin.errors import ConfigError

CHUNK = 8  # images that a worker looks at in one go
AHEAD = 3  # chunks a worker, in work or waiting
DIED = "the process that read it died: its decoder crashed, or it needs more memory than there is"


_stop = SimpleNamespace(value=0)  # in a worker the flag of its team, which needs no lock: a killed worker keeps none


class Look(NamedTuple):
    """What one look at a file found: a 64-bit hash of its bytes, and why it cannot be decoded ("": it can)."""

    digest: int
    reason: str


def look_at_all(paths: Iterable[str], workers: int) -> Iterator[list[Look]]:
    """Read image files as a run would, and hash their bytes.

    Args:
        paths: paths of the files; they are taken little by little.
        workers: processes that read; 0: this one.

    Yields:
        What was found, chunk by chunk and in the order of the paths.

    Raises:
        ConfigError: processes cannot be started.
    """
    paths = iter(paths)
    chunks = iter(lambda: list(islice(paths, CHUNK)), [])
    if not workers:
        yield from map(look_at, chunks)
        return
    team, waiting = _Team(workers), deque()
    with closing(team):
        for chunk in chunks:
            waiting.append((chunk, team.submit(chunk)))
            if len(waiting) == AHEAD * workers:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())


def _result(chunk: list[str], future: Future) -> list[Look]:
    """Return what a worker found; where one died, its images are read again, each with a process to lose."""
    try:
        return future.result()
    except BrokenProcessPool:
        looks = []
        with closing(_Team(1)) as team:
            for path in chunk:
                try:
                    looks += team.submit([path]).result()
                except BrokenProcessPool:
                    looks.append(Look(0, DIED))
        return looks


class _Team:
    """Worker processes; they are started anew after one died."""

    def __init__(self, workers: int):
        self.workers = workers
        self._start()

    def _start(self) -> None:
        # spawn: a forked child of a process whose torch has started threads may hang
        context = get_context("spawn")
        self.stop = context.RawValue("b", 0)
        self.pool = ProcessPoolExecutor(self.workers, context, _begin, (self.stop,))
        try:
            # All at once: one that is started as others die is never ended, and the pool waits for it for ever.
            with _without_ctrl_c():
                started = [self.pool.submit(look_at, []) for _ in range(self.workers)]
            for future in started:
                future.result()
        except (BrokenProcessPool, OSError) as error:
            raise ConfigError(
                f"--workers {self.workers}: processes cannot be started ({error}); --workers 0 does without"
            ) from error

    def submit(self, chunk: list[str]) -> Future:
        """Give the workers a chunk to look at."""
        try:
            return self.pool.submit(look_at, chunk)
        except BrokenProcessPool:
            self.close()
            self._start()
            return self.pool.submit(look_at, chunk)

    def close(self) -> None:
        """End the workers, each after the image that it is at; what waits is dropped."""
        self.stop.value = 1
        self.pool.shutdown(cancel_futures=True)


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Hold Ctrl-C back; processes started meanwhile never get it: it reaches all processes of a terminal at once."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _begin(stop: Any) -> None:
    global _stop
    end_with_parent()
    _stop = stop


def look_at(paths: list[str]) -> list[Look]:
    """Read image files in this process, until its team is closed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on odd files that it can read
        return [_look_at(path) for path in paths if not _stop.value]


def _look_at(path: str) -> Look:
    digest = hashlib.blake2b(digest_size=8)
    try:
        with open(path, "rb") as file:
            for block in iter(partial(file.read, 1 << 20), b""):
                digest.update(block)
        read_image(path)
    except Exception as error:  # whatever a decoder raises on a damaged file, a run would stop there
        return Look(0, _reason(path, error))
    return Look(int.from_bytes(digest.digest(), "little"), "")


def _reason(path: str, error: Exception) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, Image.DecompressionBombError):  # it is sound: what to do about it is said with it only
        return str(error).removeprefix(f"{path}: ")
    said = str(getattr(cause, "strerror", None) or cause).replace(f" {path!r}", "")  # the path stands before it
    return " ".join(said.split()) or type(cause).__name__
