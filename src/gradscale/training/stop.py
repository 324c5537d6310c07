"""Ctrl-C and SIGTERM as a question that a run asks between two steps."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether the user asked to stop: true once a signal came. A second one kills at once."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal != 0

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that was stopped: 130 for Ctrl-C."""
        return 128 + self.signal

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Remember the signal, and leave the next one to the default action."""
        # A run that hangs must still be stoppable from the keyboard.
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def stop_on_signals() -> Generator[StopRequest]:
    """Within, Ctrl-C and SIGTERM only set the request."""
    request = StopRequest()
    before = {number: signal.signal(number, request.receive) for number in SIGNALS}
    try:
        yield request
    finally:
        # The program goes on after a run: what others have set comes back.
        for number, handler in before.items():
            signal.signal(number, handler)
