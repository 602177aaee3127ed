"""What a parser may do with any bytes: read them, or refuse them with one line that can be shown."""

from __future__ import annotations

from collections.abc import Callable

from lorafold.errors import LorafoldError

LONGEST_MESSAGE = 8000  # characters; a line that nobody reads to its end tells nothing


class Broken(AssertionError):
    """A refusal that cannot be shown as one line."""


def read_or_refused(parse: Callable[[bytes], object], data: bytes) -> str:
    """Give bytes to a parser.

    Returns:
        "read", or the name of the refusal's class.

    Raises:
        Broken: the refusal is no line with a cure.
        BaseException: whatever else the parser raises, which is a bug.
    """
    try:
        parse(data)
    except LorafoldError as error:
        text = str(error)
        if not error.problem:
            raise Broken("a refusal without words") from error
        if len(text) > LONGEST_MESSAGE:
            raise Broken(f"a refusal of {len(text)} characters: {text[:80]}") from error
        return type(error).__name__
    return "read"
