"""What the terminal can do, and what it must not do while models speak."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from lorafold.serve.protocol import Cancel


def interactive() -> bool:
    """Whether somebody sits at both ends: columns and a line editor make sense."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb")


def colored() -> bool:
    """Whether colours are wanted (https://no-color.org)."""
    return not os.environ.get("NO_COLOR")


@contextlib.contextmanager
def cancelled_by_ctrl_c(cancel: Cancel) -> Iterator[None]:
    """Ctrl-C ends the answers instead of the program, within the block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: cancel.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def typed_ahead() -> Iterator[None]:
    """Within the block, keys are kept for the next prompt as they are, and not shown between the answers.

    A terminal in its usual line mode would echo them, and swallow a Ctrl-D. Ctrl-C still interrupts.
    """
    import termios  # not everywhere, as scripts need it nowhere

    try:
        descriptor = sys.stdin.fileno()
        before: list[Any] = termios.tcgetattr(descriptor)
    except (OSError, ValueError, termios.error):  # no terminal, or not one of this kind
        yield
        return
    raw = list(before)
    raw[3] = before[3] & ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(descriptor, termios.TCSANOW, raw)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
