"""What the tests of the output ask of every command, whatever the pipe's encoding."""

import train
from tests.support.running import flags

CLOSED = "the reader of the output closed it"


def assert_readable(done, status):
    assert done.status == status, done.err
    for unreadable in ("Traceback", "\\u", "\\x"):
        assert unreadable not in done.out + done.err


def run_on_digits(folder):
    """A run of ten steps on the sample."""
    assert train.main(list(flags({"dataset": "sample", "max_steps": 10, "run_dir": folder / "digits"}))) == 0
    return folder / "digits"
