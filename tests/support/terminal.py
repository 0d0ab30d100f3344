"""What the tests of the output ask of every command, whatever the pipe's encoding."""

CLOSED = "the reader of the output closed it"


def assert_readable(done, status):
    assert done.status == status, done.err
    for unreadable in ("Traceback", "\\u", "\\x"):
        assert unreadable not in done.out + done.err
