"""What the threads of one piece of work spend their time on.

Code marks its work with `with doing("read"):`. Blocks may be nested; time counts only for the innermost
one. A `Stopwatch` that was started on a thread gives the wall and processor seconds of each kind. A block
costs about a microsecond, and next to nothing on a thread that nobody measures, so it may stay in the code
around any work of 0.1 ms or more.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

OTHER = "other"
"""What a measured thread does outside of every `doing` block."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Time of one kind of work, all threads together.

    Attributes:
        wall: seconds.
        processor: seconds of these in which a processor was at work for it (user and system); the rest was
            waiting: for the disk, for another thread, or for a processor.
    """

    wall: float = 0.0
    processor: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.processor + other.processor)


class Stopwatch:
    """Adds up the times of all threads that it was started on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spent: dict[str, Spent] = {}

    @property
    def spent(self) -> dict[str, Spent]:
        """Time by kind, of the threads that have finished."""
        with self._lock:
            return dict(self._spent)

    @contextlib.contextmanager
    def measured(self, kind: str = OTHER) -> Iterator[None]:
        """Measure this thread for the block; time outside every `doing` block counts as `kind`."""
        before = getattr(_here, "clock", None)
        clock = _here.clock = _Clock(kind)
        try:
            yield
        finally:
            clock.turn_to(kind)
            _here.clock = before
            with self._lock:
                for name, spent in clock.spent.items():
                    self._spent[name] = self._spent.get(name, Spent()) + spent


class doing:  # noqa: N801 - used as a word: `with doing("read"):`
    """A block of one kind of work; may hold other blocks, whose time is then not counted here."""

    __slots__ = ("_before", "_clock", "_kind")

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __enter__(self) -> None:
        self._clock: _Clock | None = getattr(_here, "clock", None)
        if self._clock is not None:
            self._before = self._clock.turn_to(self._kind)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._clock is not None:
            self._clock.turn_to(self._before)


_here = threading.local()


class _Clock:
    """The times of one thread, kept in plain lists: turning is done a thousand times a second."""

    def __init__(self, kind: str) -> None:
        self._spent: dict[str, list[float]] = {}
        self._kind = kind
        self._wall, self._processor = time.perf_counter(), time.thread_time()

    @property
    def spent(self) -> dict[str, Spent]:
        """Time by kind, up to the last turn."""
        return {kind: Spent(*both) for kind, both in self._spent.items()}

    def turn_to(self, kind: str) -> str:
        """Count the time since the last turn for what was done until now; returns what that was."""
        before, wall, processor = self._kind, time.perf_counter(), time.thread_time()
        spent = self._spent.setdefault(before, [0.0, 0.0])
        spent[0] += wall - self._wall
        spent[1] += processor - self._processor
        self._kind, self._wall, self._processor = kind, wall, processor
        return before
