"""Files that are whole or not there at all, and directories that one process at a time writes to."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from training.errors import UserError


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` to write to, which is flushed to the disk and takes the place of `path` in one move.

    Whenever the process dies or the disk is full, `path` holds what it held or the new bytes, whole.
    """
    temporary = path.with_name(f".{path.name}.tmp")  # one that a killed process left is overwritten
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # make the move itself last; not every system opens directories
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


@contextmanager
def claimed(directory: Path) -> Iterator[None]:
    """The directory, made if need be, is this process's own as long as the block lasts.

    The lock goes with the process, however that ends, and leaves nothing behind; Windows has none of the kind. Raises
    UserError if the directory cannot be, or if it is another process's.
    """
    with ExitStack() as opened:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            if os.name == "posix":
                descriptor = os.open(directory, os.O_RDONLY)
                opened.callback(os.close, descriptor)
                _lock(descriptor)
        except BlockingIOError as error:
            raise UserError(
                f"another run is at work in {directory}: wait until it has ended, or give another --run-dir"
            ) from error
        except OSError as error:
            raise cannot_write(directory, error) from error
        yield


def _lock(descriptor: int) -> None:
    """Raises BlockingIOError where another process has it. Some network file systems have no locks."""
    import fcntl  # which Windows lacks

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise


def cannot_write(run_dir: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to the run directory {run_dir}: {error.strerror}; give another")
