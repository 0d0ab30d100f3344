"""Ctrl-C, SIGTERM and the terminal's end: for a command an exception, for the training loop a question."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(BaseException):
    """A signal that ends a command: its number is in `signal`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """The handler of all SIGNALS but a SIGHUP that is ignored, which is how nohup starts a program."""
    in_main = threading.current_thread() is threading.main_thread()  # no other thread can set one
    before = {number: signal.getsignal(number) for number in SIGNALS if in_main}
    if before.get(getattr(signal, "SIGHUP", None)) == signal.SIG_IGN:
        del before[signal.SIGHUP]
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def stopping() -> Iterator[None]:
    """While entered, a signal raises Stopped, so that what is half written is cleaned up; a second one just ends."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Stopped(number)

    with _handled(stop):
        yield


class Interruption:
    """While entered, the first signal is remembered instead of obeyed; a second one of its kind ends the process.

    `signal` is the number of the signal that came, 0 if none has.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._handlers = _handled(self._remember)

    def __enter__(self) -> "Interruption":
        self._handlers.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._handlers.__exit__(None, None, None)

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal != 0

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
