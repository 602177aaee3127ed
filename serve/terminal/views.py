"""How answers appear: in columns on a terminal, as plain lines, or as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lorafold.chat.call_spellings import told
from lorafold.console import LiveRows, Row, Segment, cell_width, sanitize
from lorafold.serve.conversation import Answer, Turn
from lorafold.serve.engines.digests import Digests
from lorafold.serve.protocol import About
from lorafold.serve.terminal.panes import Panes, fitted, pane_width

STYLES = ("bold cyan", "bold magenta", "bold green", "bold yellow", "bold blue", "bold red")
REASONING, REASONED = (
    "(reasoning) ",
    "\n\n",
)  # before the reasoning of a server, and between it and the answer
FRAME = 1 / 15  # seconds between redraws; fast enough to read along, slow enough for ssh
ENDINGS = {
    "length": "cut at max_tokens",
    "context": "the context is full",
    "cancelled": "stopped",
    "failed": "failed",
}


@dataclass(frozen=True, slots=True)
class Head:
    """What stands above a pane.

    Attributes:
        model: whose pane it is.
        letter: its place, "A" from the left.
        name: the model's name; "?" while the vote is blind.
        detail: digest, quantization.
        style: colour of the model.
    """

    model: int
    letter: str
    name: str
    detail: str
    style: str


def heads(abouts: Sequence[About], digests: Digests, turn: Turn) -> list[Head]:
    """Headings of the models that are asked, from left to right; without names in a blind vote."""
    found = []
    for model in turn.asked:
        about, letter = abouts[model], turn.letter(model)
        detail = " · ".join(part for part in (digests.short(model), about.quantization) if part)
        named = Head(model, letter, about.name, detail, STYLES[model])
        found.append(Head(model, letter, "?", "", "bold") if turn.blind else named)
    return found


def summary(answer: Answer) -> str:
    """Tokens, speed and time to the first token, and how the answer ended if it was not by itself."""
    parts = [f"{answer.tokens} token{'s' * (answer.tokens != 1)}"]
    if answer.rate:
        parts.append(f"{answer.rate:.1f}/s")
    if answer.tokens:
        parts.append(f"first {answer.first:.2f} s")
    if ending := ending_of(answer.reason):
        parts.append(ending)
    return " · ".join(parts)


def ending_of(reason: str) -> str:
    """How an answer ended, in words; a server's own word as it is; "" if the model ended it."""
    return "" if reason in ("", "stop") else ENDINGS.get(reason, f"ended by the server: {reason}")


def dropped_note(answer: Answer) -> str:
    """What is said when the context overflowed."""
    return (
        f"the context is full: the oldest {answer.dropped} messages were left out" if answer.dropped else ""
    )


class View(Protocol):
    """Where a turn's answers go while they grow."""

    def begin(self, heads: Sequence[Head]) -> None:
        """A turn begins."""

    def feed(self, model: int, text: str) -> None:
        """An answer grows."""

    def think(self, model: int, text: str) -> None:
        """The reasoning before an answer grows."""

    def finish(self, model: int, answer: Answer) -> None:
        """An answer is complete, or failed."""

    def tick(self) -> None:
        """Time has passed."""

    def end(self, turn: Turn) -> None:
        """All answers are complete."""


class ColumnView:
    """Columns on a terminal, streaming."""

    def __init__(self, *, color: bool) -> None:
        self.color = color
        self._live: LiveRows | None = None
        self._panes: Panes | None = None
        self._drawn = 0.0
        self._pane: dict[int, int] = {}  # model -> its pane
        self._thinking: set[int] = set()  # models whose answer has not begun

    def begin(self, heads: Sequence[Head]) -> None:
        """Open the panes."""
        self._live = LiveRows(color=self.color)
        screen = self._live.size[0]
        width = pane_width(screen, len(heads)) or screen
        self._pane = {head.model: pane for pane, head in enumerate(heads)}
        self._panes = Panes(screen, pane_headings(heads, width))
        self._live.__enter__()

    def feed(self, model: int, text: str) -> None:
        """Append text to a pane."""
        assert self._panes is not None
        if model in self._thinking:
            self._thinking.discard(model)
            text = REASONED + text
        self._panes.feed(self._pane[model], text)
        self.tick()

    def think(self, model: int, text: str) -> None:
        """Append reasoning to a pane, dimmed."""
        assert self._panes is not None
        if model not in self._thinking:
            self._thinking.add(model)
            text = REASONING + text
        self._panes.feed(self._pane[model], text, "dim")
        self.tick()

    def finish(self, model: int, answer: Answer) -> None:
        """Put the figures below a pane."""
        assert self._panes is not None
        footer: list[Segment] = []
        if answer.error:
            footer.append((f"{answer.error}\n", "red"))
        if note := dropped_note(answer):
            footer.append((f"{note}\n", "yellow"))
        footer += [(f"→ {told(call)}\n", "bold") for call in answer.calls]
        footer.append((summary(answer), "dim"))
        self._panes.end(self._pane[model], footer)
        self.tick()

    def tick(self) -> None:
        """Draw, not more often than the eye follows."""
        if time.monotonic() - self._drawn >= FRAME:
            self._draw()

    def _draw(self) -> None:
        assert self._live is not None and self._panes is not None
        width, height = self._live.size
        if width != self._panes.screen:
            self._panes.resize(width)
        self._live.show(*self._panes.rows(max(2, height - 2)))
        self._drawn = time.monotonic()

    def end(self, turn: Turn) -> None:
        """Close the panes; all rows are final now."""
        assert self._live is not None
        self._draw()
        self._live.__exit__()
        self._live = self._panes = None
        self._thinking.clear()


def pane_headings(heads: Sequence[Head], width: int) -> list[Row]:
    """What stands above panes of `width` columns, on as many lines for each; a model alone has no letter."""
    letters = [f"{head.letter}  " if len(heads) > 1 else "" for head in heads]
    titles = [
        letter + fitted(head.name, width - len(letter)) for letter, head in zip(letters, heads, strict=True)
    ]
    details = [fitted(head.detail, width) for head in heads]
    pairs = list(zip(titles, details, strict=True))
    gap = "   " if all(cell_width(f"{title}   {detail}") <= width for title, detail in pairs) else "\n"
    return [
        [(title, head.style), (f"{gap}{detail}" if detail else "", "dim"), ("\n", "")]
        for head, (title, detail) in zip(heads, pairs, strict=True)
    ]


class PlainView:
    """Plain lines: one model's answer as it comes, several one after the other.

    Args:
        figures: put tokens, speed and how it ended below each answer, for somebody who reads along.
    """

    def __init__(self, *, figures: bool = False) -> None:
        self.figures = figures
        self._waiting: list[Head] = []  # of the models not shown to their end; the first one is shown now
        self._texts: dict[int, str] = {}  # what the others have said
        self._answers: dict[int, Answer] = {}
        self._letters = False
        self._thinking: set[int] = set()  # models whose answer has not begun

    def begin(self, heads: Sequence[Head]) -> None:
        """Remember the headings; a model alone needs none."""
        self._waiting, self._letters = list(heads), len(heads) > 1
        self._texts, self._answers, self._thinking = {}, {}, set()
        self._head()

    def _head(self) -> None:
        """Put the heading above the first model that waits, and what it has said by now below."""
        if not self._waiting:
            return
        head = self._waiting[0]
        if self._letters:
            write_plain(f"[{head.letter}] {head.name}  {head.detail}".rstrip() + "\n")
        write_plain(self._texts.pop(head.model, ""))

    def feed(self, model: int, text: str) -> None:
        """Show the first unfinished model's text at once, keep the others'."""
        if model in self._thinking:
            self._thinking.discard(model)
            text = REASONED + text
        self._put(model, text)

    def _put(self, model: int, text: str) -> None:
        if model == self._waiting[0].model:
            write_plain(text)
        else:
            self._texts[model] = self._texts.get(model, "") + text

    def think(self, model: int, text: str) -> None:
        """Show reasoning to somebody who reads along; a pipe gets the answer alone."""
        if not self.figures:
            return
        self._put(model, text if model in self._thinking else REASONING + text)
        self._thinking.add(model)

    def finish(self, model: int, answer: Answer) -> None:
        """Go on to the next model when the shown one has ended."""
        self._answers[model] = answer
        while self._waiting and self._waiting[0].model in self._answers:
            answer = self._answers[self._waiting.pop(0).model]
            said = answer.text or (answer.reasoning if self.figures else "")
            write_plain("" if said.endswith("\n") or not said else "\n")
            write_plain("".join(f"→ {told(call)}\n" for call in answer.calls))
            if answer.error:
                write_plain(f"error: {answer.error}\n", error=True)
            if note := dropped_note(answer):
                write_plain(f"note: {note}\n", error=True)
            if answer.reason not in ("stop", *ENDINGS):
                write_plain(f"note: {ending_of(answer.reason)}\n", error=True)
            write_plain(f"({summary(answer)})\n" if self.figures else "")
            if self._waiting:
                write_plain("\n")
                self._head()

    def tick(self) -> None:
        """Nothing moves in plain text."""

    def end(self, turn: Turn) -> None:
        """Nothing is left to say."""


def write_plain(text: str, *, error: bool = False) -> None:
    """Write text of a model to a stream; control characters are made visible."""
    if text:
        stream = sys.stderr if error else sys.stdout
        stream.write(sanitize(text))
        stream.flush()


class JsonView:
    """One JSON object per question."""

    def __init__(self, abouts: Sequence[About], digests: Digests) -> None:
        self.abouts = abouts
        self.digests = digests

    def begin(self, heads: Sequence[Head]) -> None:
        """Wait for the answers."""

    def feed(self, model: int, text: str) -> None:
        """Wait for the end."""

    def think(self, model: int, text: str) -> None:
        """Wait for the end."""

    def finish(self, model: int, answer: Answer) -> None:
        """Wait for the others."""

    def tick(self) -> None:
        """Nothing moves."""

    def end(self, turn: Turn) -> None:
        """Write the turn. Control characters are escaped by JSON itself."""
        self.digests.wait()
        answers = [self._answer(index, turn.answers) for index in turn.asked]
        sys.stdout.write(json.dumps({"prompt": turn.user, "answers": answers}, ensure_ascii=True) + "\n")
        sys.stdout.flush()

    def _answer(self, index: int, answers: Mapping[int, Answer]) -> dict[str, Any]:
        answer, about = answers[index], self.abouts[index]
        row: dict[str, Any] = {
            "model": about.source,
            "name": about.name,
            "sha256": self.digests.found.get(index) or None,
            "quantization": about.quantization or None,
            "text": answer.text,
            "reason": answer.reason,
            "tokens": answer.tokens,
            "prompt_tokens": answer.prompt_tokens,
            "reused_tokens": answer.reused,
            "tokens_per_second": round(answer.rate, 2) or None,
            "first_token_seconds": round(answer.first, 4) if answer.tokens else None,
            "seconds": round(answer.elapsed, 4),
            "seed": answer.seed,
            "logprobs": [round(value, 5) for value in answer.logprobs] or None,
        }
        if answer.calls:
            row["tool_calls"] = answer.calls
        if answer.reasoning:
            row["reasoning"] = answer.reasoning
        if answer.dropped:
            row["dropped_messages"] = answer.dropped
        if answer.error:
            row["error"] = answer.error
        return row
