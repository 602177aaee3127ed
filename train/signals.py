"""Stopping on request: the first SIGINT or SIGTERM is remembered and answered, a second SIGINT aborts."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType


@dataclass(slots=True)
class StopRequest:
    """Which signal has asked to stop; None while nobody has."""

    signal: signal.Signals | None = None


@contextlib.contextmanager
def stop_requests(say: Callable[[str], None] = lambda line: None) -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM for the length of the block; the handlers from before come back after it.

    Outside the main thread Python allows no handlers, and nothing is caught.

    Args:
        say: told at once that the request has arrived; a step may take a minute.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def remember(number: int, frame: FrameType | None) -> None:
        if request.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if request.signal is None:
            # By a thread: the signal may have arrived while this one was writing to the same stream.
            answer = "stopping after this step; Ctrl-C again stops now"
            threading.Thread(target=say, args=(answer,), daemon=True).start()
        request.signal = signal.Signals(number)

    before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
