"""How a stage tells its caller how far it is, without knowing whether anybody looks."""

from __future__ import annotations

from typing import Protocol

Lines = list[tuple[str, str]]
"""What a stage says at its end: labels and texts, for `console.print_lines`."""


class Progress(Protocol):
    """Called by a stage while it works; `console.live_progress()` draws it, tests record it."""

    def __call__(self, step: str, done: float, total: float | None, note: str = "") -> None:
        """Report a step.

        Args:
            step: what is being done, a short phrase that stays the same while the step lasts.
            done: how much is done, in the unit of `total`.
            total: how much there is (bytes, tokens or steps), or None if that is not known.
            note: figures worth showing beside the bar ("loss 1.23").
        """


def silent(step: str, done: float, total: float | None, note: str = "") -> None:
    """The `Progress` of a caller who does not look."""


def unheard(line: str) -> None:
    """Where the lines go that a stage says while it works, if its caller does not listen."""


def in_one_line(text: str, most: int) -> str:
    """A text of several lines in one, cut to so many characters."""
    plain = " ".join(text.split())
    return plain if len(plain) <= most else plain[: most - 1] + "…"
