"""The only user of rich: what the terminal shows, and the sanitiser of text that nobody vouches for.

Results go to standard output, progress and errors to standard error, so that a pipe gets only results.
Text from a model or a file may hold escape sequences, which a terminal would obey; `sanitize` makes every
control character visible instead (C0, C1, bidirectional and invisible format controls).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleDimensions
from rich.control import Control
from rich.live import Live
from rich.progress import (
    BarColumn,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.segment import ControlType
from rich.table import Column, Table
from rich.text import Text

from lorafold.interrupts import interruptible
from lorafold.progress import Progress

# Characters that change how the characters around them are shown (Unicode TR9 and TR36): bidirectional
# controls, line and paragraph separators, interlinear annotation.
_INVISIBLE = frozenset(
    chr(point)
    for low, high in (
        (0x200E, 0x200F),
        (0x2028, 0x202E),
        (0x2066, 0x2069),
        (0x061C, 0x061C),
        (0xFFF9, 0xFFFB),
    )
    for point in range(low, high + 1)
)


def sanitize(text: str, *, keep: str = "\n\t") -> str:
    """Make control characters visible: C0 as their Unicode pictures, the others by number: <U+0085>.

    Args:
        text: text of unknown origin.
        keep: control characters that may stay.
    """
    if text.isprintable():
        return text
    return "".join(_visible(char, keep) for char in text)


def _visible(char: str, keep: str) -> str:
    if char in keep or char.isprintable():
        return char
    point = ord(char)
    if point < 0x20:
        return chr(0x2400 + point)  # the block of control pictures
    if point == 0x7F:
        return "␡"
    if char in _INVISIBLE or unicodedata.category(char) in ("Cc", "Cs", "Co", "Cn"):
        return f"<U+{point:04X}>"
    return char  # a space or joiner that is only called non-printable


class _Pipe(Console):
    """rich would exit with 1 if the reader of a pipe has gone; `cli.main` knows better what that means."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def stdout() -> Console:
    """The console for results, built at each call: a redirected stream (a test, a pipe) is honoured."""
    return _Pipe(file=sys.stdout, highlight=False, soft_wrap=not sys.stdout.isatty())


def stderr() -> Console:
    """The console for progress and errors."""
    return Console(file=sys.stderr, highlight=False)


def say(line: str) -> None:
    """Print a line that a stage says while it works; live bars go on below it."""
    print(sanitize(line, keep=""), file=sys.stderr, flush=True)


def print_error(message: str) -> None:
    """Print the one line of a failure."""
    print("error: " + sanitize(message, keep=""), file=sys.stderr)


def print_json(value: Any) -> None:
    """Print one JSON object to standard output, for the next program."""
    print(json.dumps(value, ensure_ascii=True, indent=2))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table of plain cells to standard output."""
    table = Table(
        *columns, title=Text(title), title_justify="left", show_lines=any("\n" in c for r in rows for c in r)
    )
    for row in rows:
        table.add_row(*(Text(sanitize(cell), style=VERDICTS.get(cell, "")) for cell in row))
    stdout().print(table)


WIDE = 100  # columns of a terminal from which a progress bar may be long


class _Amount(ProgressColumn):
    """Done and total, as bytes if the total is large."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        if task.total >= 1_000_000:
            return Text(f"{task.completed / 1e6:,.0f}/{task.total / 1e6:,.0f} M")
        return Text(f"{task.completed:,.0f}/{task.total:,.0f}")


@contextlib.contextmanager
def live_progress() -> Iterator[Progress]:
    """Yield a `Progress` that draws one bar per step with the time left.

    Without a terminal it prints one line when a step begins and one when it ends. Within the block Ctrl-C and
    SIGTERM are exceptions, and each report raises what got lost on the way (see `lorafold.interrupts`).
    """
    with interruptible() as check, _drawn() as show:

        def report(step: str, done: float, total: float | None, note: str = "") -> None:
            check()
            show(step, done, total, note)

        yield report


@contextlib.contextmanager
def _drawn() -> Iterator[Progress]:
    console = stderr()
    if not console.is_terminal:
        yield _LineProgress()
        return
    # Figures keep their columns on any width; what is too long is the note, and it is cut.
    figure = Column(no_wrap=True, justify="right")
    bars = Bars(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=24 if console.width >= WIDE else 10, table_column=Column(no_wrap=True)),
        _Amount(table_column=figure),
        TimeElapsedColumn(table_column=figure),
        TimeRemainingColumn(compact=True, table_column=figure),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
        console=console,
        expand=True,
    )
    tasks: dict[str, TaskID] = {}

    def show(step: str, done: float, total: float | None, note: str = "") -> None:
        if step not in tasks:
            tasks[step] = bars.add_task(sanitize(step), total=total, note="")
        bars.update(tasks[step], completed=done, total=total, note=sanitize(note))

    with bars:
        yield show


class _LineProgress:
    """Progress for logs and pipes: a line at a step's begin and end, and every half minute between."""

    def __init__(self) -> None:
        self.started: dict[str, float] = {}
        self.begun: dict[str, float] = {}  # what was done when the step began: a resumed run starts late
        self.said: dict[str, float] = {}
        self.ended: set[str] = set()

    def __call__(self, step: str, done: float, total: float | None, note: str = "") -> None:
        now = time.monotonic()
        ended = total is not None and done >= total
        first = step not in self.started
        if first:
            self.started[step] = self.said[step] = now
            self.begun[step] = done
            if not ended:
                print(f"{sanitize(step)} …", file=sys.stderr, flush=True)
        if ended and step not in self.ended:
            self.ended.add(step)
            print(
                f"{sanitize(step)}: {now - self.started[step]:.1f} s {sanitize(note)}".rstrip(),
                file=sys.stderr,
                flush=True,
            )
        elif not first and not ended and now - self.said[step] >= 30:
            self.said[step] = now
            share = f" {done / total:.0%}{self._left(step, done, total, now)}" if total else ""
            print(f"{sanitize(step)}{share} {sanitize(note)}".rstrip(), file=sys.stderr, flush=True)

    def _left(self, step: str, done: float, total: float, now: float) -> str:
        """The time left at the pace so far."""
        gained = done - self.begun[step]
        if gained <= 0:
            return ""
        minutes, seconds = divmod(round((now - self.started[step]) * (total - done) / gained), 60)
        return f", {minutes}:{seconds:02} left,"


def print_lines(lines: Sequence[tuple[str, str]]) -> None:
    """Print labels and texts to standard output, the texts aligned; at a terminal long ones stay aligned.

    A command is left whole, so that it can be copied as one line.
    """
    console = stdout()
    width = max((cell_len(label) for label, _ in lines), default=0)
    for label, text in lines:
        first = Text(set_cell_size(label, width), style=f"bold {VERDICTS.get(label, '')}".strip())
        if not console.is_terminal or text.startswith(
            PROGRAMS
        ):  # one line each, for the next program or a copy
            console.print(Text.assemble(first, "  ", sanitize(text)), soft_wrap=True)
            continue
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, width=width)
        grid.add_column(overflow="fold")
        grid.add_row(first, Text(sanitize(text)))
        console.print(grid)


PROGRAMS = ("lorafold ", "ollama ", "llama-server ")  # what a line begins with that is a command

# What a line's label means for whoever looks at it first.
VERDICTS = {
    "yes": "green",
    "partly": "yellow",
    "no": "red",
    "passed": "green",
    "failed": "red",
    "refused": "red",
    "not checked": "yellow",
    "note": "yellow",
    "warning": "yellow",
}


def print_sample(place: str, pieces: Sequence[tuple[str, bool]]) -> None:
    """Print an example as the model will see it: trained pieces in green, and between ⟦ ⟧."""
    text = Text(f"{sanitize(place)}\n", style="bold")
    for piece, trained in pieces:
        shown = sanitize(piece)
        text.append(f"⟦{shown}⟧" if trained else shown, style="green" if trained else "dim")
    stdout().print(text)


Segment = tuple[str, str]  # text and its style in rich's words ("bold", "red on grey11", "")
Row = list[Segment]  # one line of the screen


def cell_width(text: str) -> int:
    """Columns that a text takes: two for CJK characters and emoji, none for what combines."""
    return cell_len(text)


class LiveRows:
    """Rows that scroll away when they are final, above rows that are still changing.

    Used as a context manager; standard output must be a terminal.

    Args:
        color: False leaves out all colours, whatever the terminal can do.
    """

    def __init__(self, *, color: bool = True) -> None:
        self.console = Console(file=sys.stdout, highlight=False, no_color=not color or None)
        self.live = Live(console=self.console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._changing: Sequence[Row] = ()

    def __enter__(self) -> LiveRows:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.update(Text(""), refresh=True)
        self.live.stop()

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines of the terminal as it is now; COLUMNS may tell how it was for another program."""
        with contextlib.suppress(OSError):
            columns, lines = os.get_terminal_size(sys.stdout.fileno())
            if columns and lines:
                self.console.size = ConsoleDimensions(columns, lines)
        return self.console.width, self.console.height

    def show(self, final: Sequence[Row], changing: Sequence[Row]) -> None:
        """Print `final` for good, and `changing` below it until the next call."""
        self._unfold()
        self._changing = changing
        if final:
            self.console.print(_joined(final), soft_wrap=True)
        self.live.update(_joined(changing), refresh=True)

    def _unfold(self) -> None:
        """Erase what a terminal that became narrower folded: rich goes up by as many rows as it once drew."""
        widths = (sum(cell_width(text) for text, _ in row) for row in self._changing)
        folds = sum(max(0, -(-width // self.console.width) - 1) for width in widths)
        up = ((ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)) * min(folds, self.console.height)
        self.console.control(Control(*up))


def print_rows(rows: Sequence[Row], *, color: bool = True) -> None:
    """Print styled rows to standard output; plain text if it is no terminal."""
    if rows:
        console = Console(file=sys.stdout, highlight=False, no_color=not color or None)
        console.print(_joined(rows), soft_wrap=True)


def rows_as_svg(rows: Sequence[Row], width: int, title: str) -> str:
    """A picture of rows, for documentation."""
    console = Console(
        file=io.StringIO(), record=True, width=width, force_terminal=True, color_system="truecolor"
    )
    console.print(_joined(rows), soft_wrap=True)
    # Without rich's web fonts: the picture asks no server for anything.
    return re.sub(r"\s*@font-face \{.*?\}\n", "\n", console.export_svg(title=title), flags=re.DOTALL)


def _joined(rows: Sequence[Row]) -> Text:
    text = Text("\n").join(Text.assemble(*row) if row else Text("") for row in rows)
    text.no_wrap = True
    return text
