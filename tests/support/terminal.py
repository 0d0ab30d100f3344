"""What the tests of the output ask of every command, whatever the pipe's encoding."""

from tests.support.running import Done

CLOSED = "the reader of the output closed it"


def assert_readable(done: Done, status: int) -> None:
    assert done.status == status, done.err
    for unreadable in ("Traceback", "\\u", "\\x"):
        assert unreadable not in done.out + done.err
