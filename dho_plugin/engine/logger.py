"""The run's log: everything printed also goes to `log.txt`, where the hosts' parsers look for it."""

from __future__ import annotations

import contextlib
import logging
import platform
import resource
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TextIO

import torch

from dho_plugin.engine.files import lock_file, remove_leftovers
from dho_plugin.engine.processes import rank
from dho_plugin.errors import ConfigError, InUseError

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "accelerate", "numpy", "pillow", "dho_plugin")


class Tee:
    """A text stream that writes to two."""

    def __init__(self, first: TextIO, second: TextIO):
        self.first, self.second = first, second

    def write(self, text: str) -> int:
        """Write to both streams; the file is flushed so that a killed run keeps its log."""
        text = text.encode("utf-8", "backslashreplace").decode()  # file names may have bytes that are no text
        self.second.write(text)
        self.second.flush()
        return self.first.write(text)

    def flush(self) -> None:
        """Flush both streams."""
        self.first.flush()
        self.second.flush()

    def isatty(self) -> bool:
        """Say whether the first stream is a terminal."""
        return self.first.isatty()


@contextlib.contextmanager
def logged_to(output_dir: str | Path) -> Iterator[None]:
    """Copy standard output and warnings into `<output_dir>/log.txt` while the block runs; an earlier log goes on.

    Of a run on several processes only the main one has a log.
    """
    if rank():
        yield
        return
    path = Path(output_dir) / "log.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(Tee(sys.stdout, file)) as tee:
        handler = logging.StreamHandler(tee)
        handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        log = logging.getLogger("dho_plugin")
        log.addHandler(handler)
        log.propagate = False
        try:
            yield
        finally:
            log.removeHandler(handler)
            log.propagate = True


@contextlib.contextmanager
def locked(output_dir: str | Path) -> Iterator[None]:
    """Keep other runs out of a run's folder; the lock ends with the main process of the run, however it ends.

    Raises:
        InUseError: another process works in `output_dir`.
        ConfigError: its file system has no locks, so nothing would keep two runs apart.
    """
    if rank():
        yield
        return
    try:
        lock = lock_file(Path(output_dir) / ".lock")
    except BlockingIOError as error:
        raise InUseError(
            f"OUTPUT_DIR {str(output_dir)!r} is in use by another run; wait for it or choose another --output-dir"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"OUTPUT_DIR {str(output_dir)!r}: {error}") from error
    with lock:
        remove_leftovers(output_dir)
        yield


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in MiB: of the accelerator where there is one, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
