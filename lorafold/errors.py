"""The whole exception tree, with exit codes.

    LorafoldError            a failure that a user can cause or cure
    ├── UsageError        2  the command line or a config asks for something that cannot be meant
    ├── InputError        3  a file or value is missing, damaged, inconsistent, or not supported
    ├── UnsafeInputError  4  input that would run code, leave its folder, or exhaust the machine
    ├── SystemFault       5  the machine lacks something: disk, memory, permission, a package, the network
    ├── NumericError      6  NaN, infinity, or a result that has lost the fine-tune
    └── BusyError         7  another process works on the same output

`cli.py` alone turns one into one line on standard error and its exit code; 130 and 143 are Ctrl-C and SIGTERM
(`interrupts.py`). Anything else that escapes is a bug: it keeps its traceback and exits with 1.
"""

from __future__ import annotations

from pathlib import Path

LONGEST = 3000
"""Characters of a place or a problem that a message shows."""


class LorafoldError(Exception):
    """A failure with a place, a cause and a cure.

    Args:
        problem: what is wrong, with what was got and what was expected.
        at: where: a file, and within it a line, key or tensor ("data.jsonl:12", "config.json: vocab_size").
        fix: what to do about it, as an imperative.
    """

    exit_code = 1

    def __init__(self, problem: str, *, at: str | Path | None = None, fix: str | None = None) -> None:
        self.problem = problem
        self.at = None if at is None else str(at)
        self.fix = fix
        super().__init__(problem, at, fix)

    def __str__(self) -> str:
        place = f"{_shown(self.at)}: " if self.at else ""
        cure = f"; fix: {self.fix}" if self.fix else ""
        return f"{place}{_shown(self.problem)}{cure}"


def _shown(text: str) -> str:
    """A text that may quote what a file holds, cut in its middle to a length that can be read."""
    over = len(text) - LONGEST
    half = LONGEST // 2
    return text if over <= 0 else f"{text[:half]} … ({over:,} characters left out) … {text[-half:]}"


class UsageError(LorafoldError):
    """The command line or a config asks for something that cannot be meant."""

    exit_code = 2


class InputError(LorafoldError):
    """A file or value that was given is wrong: missing, truncated, inconsistent, not supported."""

    exit_code = 3


class UnsafeInputError(LorafoldError):
    """Input that would run code, leave its folder or exhaust the machine."""

    exit_code = 4


class SystemFault(LorafoldError):
    """The machine lacks something: disk, memory, permission, a package, the network."""

    exit_code = 5


class NumericError(LorafoldError):
    """NaN or infinity where numbers belong, or a result that has lost the fine-tune."""

    exit_code = 6


class BusyError(LorafoldError):
    """Another process is working on the same output."""

    exit_code = 7
