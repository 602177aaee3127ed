"""docs/reliability.md is a page of parts: each tool writes its own, and its rows of the table of figures.

A part stands between `<!-- part NAME -->` and `<!-- end of NAME -->`; a row of the table of figures begins
with the figure's name. What no tool writes is written by hand.
"""

from __future__ import annotations

import fcntl
import re
import resource
from collections.abc import Callable
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs/reliability.md"


def write_part(page: Path, name: str, text: str) -> None:
    """Put a text in the place of a part.

    Args:
        page: that holds the part.
        name: of the part.
        text: Markdown.

    Raises:
        LookupError: the page has no such part.
    """
    marks = re.escape(f"<!-- part {name} -->"), re.escape(f"<!-- end of {name} -->")
    _rewrite(page, f"({marks[0]}\n).*?({marks[1]}\n)", lambda at: f"{at[1]}\n{text.strip()}\n\n{at[2]}", name)


def read_part(page: Path, name: str) -> str:
    """The text of a part; empty if the page has none of that name."""
    text = page.read_text(encoding="utf-8")
    return text.partition(f"<!-- part {name} -->\n")[2].partition(f"<!-- end of {name} -->")[0]


def write_figure(page: Path, figure: str, measured: str, command: str, processor: float) -> None:
    """Put a run's figure into the table: `| figure | at least | measured | command | processor s |`.

    Args:
        page: that holds the table.
        figure: the row's first cell.
        measured: what the run showed.
        command: that showed it.
        processor: seconds of processor time that the run took, its children included.

    Raises:
        LookupError: the table has no such row.
    """
    _rewrite(
        page,
        rf"^(\| {re.escape(figure)} \|[^|\n]*\|)[^\n]*\n",
        lambda at: f"{at[1]} {measured} | `{command}` | {processor:,.0f} |\n",
        figure,
    )


def processor_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _rewrite(page: Path, place: str, made: Callable[[re.Match[str]], str], name: str) -> None:
    """One change at a time: the tools may run side by side."""
    with open(page, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        text, count = re.subn(place, made, file.read(), count=1, flags=re.DOTALL | re.MULTILINE)
        if count == 0:
            raise LookupError(f"{page} has no part or row {name!r}")
        file.seek(0)
        file.write(text)
        file.truncate()
