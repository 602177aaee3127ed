"""Answers laid out in rows of the screen: wrapped by width in columns, side by side or stacked.

A row is final once no pane can change it any more: finished lines scroll into the terminal's history, the
last ones still grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from lorafold.console import Row, Segment, cell_width, sanitize

NARROW = 60  # columns of a screen below which panes are stacked
LEAST_PANE = 24  # columns of a pane below which panes are stacked
_GAP = " │ "
TAB = "    "


class Wrapper:
    """Wraps text that arrives in pieces. Lines once complete never change.

    Args:
        width: columns of a line, at least 2.
    """

    def __init__(self, width: int) -> None:
        self.width = max(2, width)
        self.lines: list[Row] = []  # complete
        self._line: Row = []
        self._used = 0
        self._word: Row = []  # characters with what belongs to them, not yet in a line
        self._pieces: list[Segment] = []  # all that was fed, to be wrapped again
        self._starts = [0]  # where in it each line begins
        self._read = self._word_start = 0

    def feed(self, text: str, style: str = "") -> None:
        """Append text; control characters in it are made visible."""
        text = sanitize(text)
        self._pieces.append((text, style))
        for char in text:
            self._read += 1
            if char == "\n":
                self._place_word()
                self._end_line(self._read)
            elif char in " \t\u3000":
                self._place_word()
                self._blank({"\t": TAB}.get(char, char), style)
            else:
                self._letter(char, style)

    def _letter(self, char: str, style: str) -> None:
        width = cell_width(char)
        if self._word:
            last, last_style = self._word[-1]
            joined = cell_width(last + char)
            if width == 0 or joined < cell_width(last) + width:
                # An accent, a variation selector, a joined emoji: part of the character before it.
                self._word[-1] = (last + char, last_style)
                if self._word_width() > self.width and len(self._word) > 1:
                    tail = self._word.pop()
                    self._place_word()
                    self._word, self._word_start = [tail], self._read - len(tail[0])
                return
            # Lines may break beside wide characters (CJK, emoji), as they have no spaces around them.
            wide = width == 2 or cell_width(last) == 2
            if wide or self._word_width() + width > self.width:
                self._place_word()
        if not self._word:
            self._word_start = self._read - 1
        self._word.append((char, style))

    def _word_width(self) -> int:
        return sum(cell_width(text) for text, _ in self._word)

    def _place_word(self) -> None:
        if not self._word:
            return
        width = self._word_width()
        if self._used and self._used + width > self.width:
            self._end_line(self._word_start)
        for text, style in self._word:
            if self._line and self._line[-1][1] == style:
                self._line[-1] = (self._line[-1][0] + text, style)
            else:
                self._line.append((text, style))
        self._used += width
        self._word = []

    def _blank(self, text: str, style: str) -> None:
        width = cell_width(text)
        if self._used + width <= self.width:
            self._line.append((text, style))
            self._used += width

    def _end_line(self, following: int) -> None:
        self.lines.append(self._line)
        self._line, self._used = [], 0
        self._starts.append(following)

    def rewrapped(self, first: int, width: int, heading: Sequence[Segment] = ()) -> Wrapper:
        """The text from line `first` on, wrapped to another width below a heading."""
        made = Wrapper(width)
        skip = self._starts[first] if first < len(self._starts) else self._read
        for text, style in heading:
            made.feed(text, style)
        for text, style in self._pieces:
            if rest := text[skip:]:
                made.feed(rest, style)
            skip = max(0, skip - len(text))
        return made

    @property
    def unfinished(self) -> bool:
        """Whether a line has been begun."""
        return bool(self._used or self._word)

    def all_lines(self) -> list[Row]:
        """The complete lines and the one that grows."""
        tail = Wrapper(self.width)
        tail._line, tail._used, tail._word = list(self._line), self._used, list(self._word)
        tail._place_word()
        return [*self.lines, *tail.lines, *([tail._line] if tail._line else [])]


def wrapped(text: str, width: int, style: str = "") -> list[Row]:
    """A whole text in lines of at most `width` columns."""
    wrapper = Wrapper(width)
    wrapper.feed(text, style)
    return wrapper.all_lines()


def fitted(text: str, width: int) -> str:
    """A text cut in its middle to `width` columns, with an ellipsis if something is missing."""
    text = sanitize(text, keep="")
    if cell_width(text) <= width:
        return text
    head, tail = text, text
    while head and cell_width(head) > width // 2:
        head = head[:-1]
    while tail and cell_width(tail) > width - 1 - cell_width(head):
        tail = tail[1:]
    return f"{head}…{tail}"


def pane_width(screen: int, panes: int) -> int | None:
    """Columns of each pane side by side, or None if the screen is too narrow for that."""
    if panes == 1:
        return screen
    width = (screen - len(_GAP) * (panes - 1)) // panes
    return None if screen < NARROW or width < LEAST_PANE else width


def side_by_side(cells: Sequence[Row], width: int) -> Row:
    """One line of each pane as one row of the screen."""
    row: Row = []
    for index, cell in enumerate(cells):
        row.extend(cell)
        if index < len(cells) - 1:
            used = sum(cell_width(text) for text, _ in cell)
            row.append((" " * max(0, width - used), ""))
            row.append((_GAP, "dim"))
    return row


def _joined(panes: Sequence[Sequence[Row]], width: int) -> list[Row]:
    """The panes' lines as rows of the screen."""
    return [side_by_side(cells, width) for cells in zip_longest(*panes, fillvalue=[])]


class Panes:
    """The panes of one turn while they grow.

    Args:
        screen: columns of the screen.
        headings: rows above each pane.
    """

    def __init__(self, screen: int, headings: Sequence[Sequence[Segment]]) -> None:
        self.count = len(headings)
        self.width = pane_width(screen, self.count)
        self.screen = screen
        self.stacked = self.width is None
        self.headings = headings
        self.wrappers = [Wrapper(self.width or screen) for _ in headings]
        self.ended = [False] * self.count
        self._sent = [0] * self.count  # stacked: lines of each pane that have left; columns: rows, in [0]
        self._begun = [False] * self.count  # the heading has left
        for wrapper, heading in zip(self.wrappers, headings, strict=True):
            for text, style in heading:
                wrapper.feed(text, style)

    def feed(self, pane: int, text: str, style: str = "") -> None:
        """Append to a pane."""
        self.wrappers[pane].feed(text, style)

    def end(self, pane: int, footer: Sequence[Segment]) -> None:
        """A pane is complete but for its footer."""
        if self.wrappers[pane].unfinished:
            self.wrappers[pane].feed("\n")
        for text, style in footer:
            self.wrappers[pane].feed(text, style)
        if self.stacked and pane < self.count - 1:
            self.wrappers[pane].feed("\n\n")
        self.ended[pane] = True

    def resize(self, screen: int) -> None:
        """Lay out for another width what is not final; final rows are the terminal's by now."""
        stacked = self.stacked
        self.screen, self.width = screen, pane_width(screen, self.count)
        self.stacked = self.width is None
        for pane, wrapper in enumerate(self.wrappers):
            sent = self._sent[pane if stacked else 0]
            self._begun[pane] = self._begun[pane] or sent > 0
            # Between columns and a stack each pane's text goes on elsewhere, and says whose it is.
            more = not self.ended[pane] or sent < len(wrapper.all_lines())
            again = self._begun[pane] and more and stacked != self.stacked
            self._begun[pane] = self._begun[pane] and not again
            heading = self.headings[pane] if again else ()
            self.wrappers[pane] = wrapper.rewrapped(sent, self.width or screen, heading)
        self._sent = [0] * self.count

    def rows(self, height: int) -> tuple[list[Row], list[Row]]:
        """Rows that are final since the last call, and at most `height` that still change."""
        return self._stacked_rows(height) if self.stacked else self._column_rows(height)

    def _column_rows(self, height: int) -> tuple[list[Row], list[Row]]:
        """Rows that no pane will change leave together; below them each pane shows its own last lines."""
        assert self.width is not None
        lines = [wrapper.all_lines() for wrapper in self.wrappers]
        growing = [
            len(wrapper.lines) for wrapper, ended in zip(self.wrappers, self.ended, strict=True) if not ended
        ]
        start = self._sent[0]
        self._sent[0] = max(start, min(growing, default=max(map(len, lines))))
        final = _joined([line[start : self._sent[0]] for line in lines], self.width)
        return final, _joined([line[self._sent[0] :][-height:] for line in lines], self.width)

    def _stacked_rows(self, height: int) -> tuple[list[Row], list[Row]]:
        """Panes one below the other: the first unfinished one scrolls, the others show their last lines."""
        final: list[Row] = []
        current = next((i for i in range(self.count) if not self.ended[i]), self.count)
        for pane in range(min(current + 1, self.count)):
            wrapper = self.wrappers[pane]
            lines = wrapper.all_lines() if self.ended[pane] else wrapper.lines
            final.extend(lines[self._sent[pane] :])
            self._sent[pane] = max(self._sent[pane], len(lines))
        waiting = range(current, self.count)
        share = max(1, height // max(1, len(waiting)))
        changing: list[Row] = []
        for pane in waiting:
            changing.extend(self.wrappers[pane].all_lines()[self._sent[pane] :][-share:])
        return final, changing[-height:]
