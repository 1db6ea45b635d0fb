"""Processes that render blocks of images."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from threading import Thread


@contextmanager
def block_map(workers: int) -> Iterator[Callable]:
    """Give a `map` that runs in `workers` processes, or the plain one for 0."""
    if not workers:
        yield map
        return
    # spawn: a forked child of a process whose torch has started threads may hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent) as executor:
        yield executor.map


def end_with_parent() -> None:
    """The workers of a killed process would wait for work for ever."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
