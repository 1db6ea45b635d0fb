"""Typed errors: every message names the key or path, what was found, what is allowed and what to do next."""

import errno
import os
import signal
import sys
import time
from collections.abc import Callable

# What the machine may refuse although the command is right.
_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

LATER = 5.0  # seconds by which the main process of a run speaks first


class DHOError(Exception):
    """Base of all errors that this package raises on purpose."""

    exit_code = 2  # of a command that ends with it


class ConfigError(DHOError):
    """A configuration key, flag or combination of them is wrong."""


class InUseError(ConfigError):
    """Another process works in the same output folder; scripts leave the run to it."""

    exit_code = 3


class DataError(DHOError):
    """A data folder, file, split or class list is missing or wrong."""


class CacheError(DHOError):
    """A stored teacher or feature cache does not belong to this run, or is damaged."""


class NoCacheError(CacheError):
    """No stored features fit this run, or not all of them are there yet; it can do without."""


class CheckpointError(DHOError):
    """A checkpoint is missing, damaged, or belongs to another model."""


class ExportError(DHOError):
    """A model cannot be written into a file of its own, or that file computes something else."""


class TrainingError(DHOError):
    """Training cannot go on: the loss is no longer finite. Scripts that try many settings go on with the next."""

    exit_code = 4


def run_command(command: Callable[[], None]) -> int:
    """Run a command line and return its exit code: an error that the user can mend is one message, not a traceback.

    Args:
        command: does the work, and raises a DHOError where it cannot.

    Returns:
        0; the error's `exit_code`: 3 where another process is at this very run, 4 where the loss is no longer finite,
        else 2; 2 also where the disk refuses (full, read-only, not permitted); 130 after Ctrl-C; 141 where nobody
        reads its output any more.
    """
    try:
        command()
    except DHOError as error:
        _say(f"{type(error).__name__}: {error}")
        return error.exit_code
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it flushes
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _DISK_ERRNOS:
            raise
        hint = "Make room or choose another folder, then run the same command again: it goes on where it stopped"
        _say(f"{type(error).__name__}: {error}. {hint}")
        return 2
    except KeyboardInterrupt:
        print("Interrupted. What is complete is kept; the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def _say(message: str) -> None:
    """Print an error; of a run on several processes the main one's, or that of the only process that has it."""
    if rank := int(os.environ.get("RANK", "0")):  # torchrun's
        time.sleep(LATER)  # an error of all processes has then ended the main one, and torchrun ends this one
        message = f"process {rank}: {message}"
    print(message, file=sys.stderr)
