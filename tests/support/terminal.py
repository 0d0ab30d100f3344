"""What the tests of the output ask of every command, whatever the pipe's encoding."""

from pathlib import Path

import train
from tests.support.running import Done, flags

CLOSED = "the reader of the output closed it"


def assert_readable(done: Done, status: int) -> None:
    assert done.status == status, done.err
    for unreadable in ("Traceback", "\\u", "\\x"):
        assert unreadable not in done.out + done.err


def run_on_digits(folder: Path) -> Path:
    """A run of ten steps on the sample."""
    assert train.main(list(flags({"dataset": "sample", "max_steps": 10, "run_dir": folder / "digits"}))) == 0
    return folder / "digits"
