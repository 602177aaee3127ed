"""Ctrl-C and SIGTERM as exceptions that cannot get lost.

Python raises a signal's exception wherever the main thread happens to be. Where that is a callback from C
(llama.cpp's log), it is printed and dropped; so an arrived signal is remembered, and raised again at the next
report of progress and at the end of the block. Where it is an import, an extension module may make another
exception of it or abort (torch does), so the signal waits until the import is over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """SIGINT, under a name of its own.

    Where KeyboardInterrupt itself, not a class derived from it, passes through the exec of a string (as
    namedtuples and generated code use it), CPython remembers that, and the process ends by the signal instead
    of by our code however it is handled (`unhandled_keyboard_interrupt` in pythonrun.c).
    """


class Terminated(BaseException):
    """SIGTERM, as an exception, so that every `finally` runs."""


EXCEPTIONS: dict[int, type[BaseException]] = {
    signal.SIGINT: Interrupted,
    signal.SIGTERM: Terminated,
}

_RETRY = 0.05  # seconds


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise `Interrupted` and `Terminated` at once; a signal that is ignored stays so.

    It is for the main thread; what lasts is to be done in `interruptible`.
    """
    before = {number: signal.getsignal(number) for number in EXCEPTIONS}
    # None is a handler that was not set from Python, and could not be set again.
    mine = {n: handler for n, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    for number in mine:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in mine.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    raise EXCEPTIONS[number]


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Turn SIGINT and SIGTERM into exceptions for the length of the block.

    Yields:
        A function that raises again what has arrived; to be called now and then.

    Raises:
        Interrupted: SIGINT arrived; also in place of what the block made of it.
        Terminated: SIGTERM arrived.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows no handlers there
        yield lambda: None
        return
    arrived: list[type[BaseException]] = []
    waiting: list[threading.Timer] = []

    def remember(number: int, frame: FrameType | None) -> None:
        arrived.append(EXCEPTIONS[number])
        if _importing(frame):
            waiting.append(threading.Timer(_RETRY, os.kill, (os.getpid(), number)))
            waiting[-1].daemon = True
            waiting[-1].start()
        else:
            forget_the_retries()
            raise arrived[-1]

    def forget_the_retries() -> None:
        """What is raised now must not be raised once more while the block is cleaning up."""
        for timer in waiting:
            timer.cancel()

    def check() -> None:
        if arrived and threading.current_thread() is threading.main_thread():
            forget_the_retries()
            raise arrived[-1]

    def hush(lost: sys.UnraisableHookArgs) -> None:
        if lost.exc_type not in arrived:
            hook(lost)

    hook, sys.unraisablehook = sys.unraisablehook, hush
    before = {number: signal.signal(number, remember) for number in EXCEPTIONS}
    try:
        yield check
    except BaseException as error:
        if arrived and not isinstance(error, arrived[-1]):
            raise arrived[-1] from error
        raise
    finally:
        forget_the_retries()
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported in this frame or in one that called it."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
