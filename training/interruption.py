"""Ctrl-C and SIGTERM as a question that the training loop asks between steps."""

import signal
from types import FrameType


class Interruption:
    """While entered, the first SIGINT or SIGTERM is remembered instead of obeyed; a second one ends the process.

    `signal` is the number of the signal that came, 0 if none has.
    """

    def __init__(self) -> None:
        self.signal = 0

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self._before:
            signal.signal(number, self._remember)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal != 0

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
