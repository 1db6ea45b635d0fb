"""Atomic writing: a reader sees the old file or the whole new one, never a part."""

import fcntl
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from dho_plugin.errors import CheckpointError, ConfigError


def cache_folder() -> Path:
    """Return the folder of what can be computed anew: `DHO_CACHE`, else `dho-plugin` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DHO_CACHE") or Path(base) / "dho-plugin")


def lock_file(path: str | Path) -> TextIO:
    """Lock a file, made if need be, until it is closed; the lock ends with the process, however it ends.

    Raises:
        BlockingIOError: another process holds it.
        ConfigError: the file system has no locks, so nothing would keep two processes apart.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    file = Path(path).open("w", encoding="utf-8")  # noqa: SIM115 (closing it ends the lock, which is the caller's)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            raise
        raise ConfigError(f"{path} cannot be locked ({error}); choose a folder on a file system with locks") from error
    return file


def atomic_write(path: str | Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file beside its target and move it into place; on any failure the old file stays as it was.

    Args:
        path: target; missing parent folders are made.
        write: called with the open binary file.

    Raises:
        Exception: whatever `write` or the file system raised, after the temporary file is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{secrets.token_hex(4)}.tmp")  # containers share pids
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a failing write does not know its file
        raise


def remove_leftovers(folder: str | Path) -> None:
    """Remove what `atomic_write` of killed processes has left in a folder and those in it, where nobody else writes."""
    for left in (*Path(folder).glob(".*.tmp"), *Path(folder).glob("*/.*.tmp")):  # deeper lie the folders of other runs
        left.unlink(missing_ok=True)


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically, as UTF-8.

    Args:
        path: target; missing parent folders are made.
        text: the whole content.

    Raises:
        OSError: the file cannot be written; the old one is untouched.
    """
    atomic_write(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically, indented, keys in their own order.

    Raises:
        CheckpointError: the file cannot be written, for example on a full disk; an old one is untouched.
    """
    try:
        atomic_write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}. Mend that, then start again") from error


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: it is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error


def named_path(folder: Path, named: str, from_here: str | None) -> Path:
    """Return the path that a file in a folder names: where it lay, or, if all was moved together, where it lies now.

    Args:
        folder: of the file.
        named: the whole path, as it was.
        from_here: the same relative to the folder; None of a file that does not say it.
    """
    path = Path(named).expanduser()
    moved = folder / from_here if from_here else path
    return moved if moved.exists() and not path.exists() else path
