"""One answer of a model server while it arrives: the same events as a local model's.

A server sends text, reasoning, and with some the tokens behind the text with their log-probabilities. It may
cut anywhere, also within a character that JSON writes as two halves (an emoji as two surrogates).
"""

from __future__ import annotations

import codecs
import re
import time
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from lorafold.chat.call_spellings import split_calls
from lorafold.errors import SystemFault
from lorafold.serve.config import Sampling
from lorafold.serve.engines.servers.calls import Calls
from lorafold.serve.engines.servers.events import ServerEvent, read_events
from lorafold.serve.engines.servers.fields import count, number, rows, shortened
from lorafold.serve.engines.servers.http import Failed, Server, ServerRefused
from lorafold.serve.engines.servers.refusals import cause_of
from lorafold.serve.engines.servers.thinking import Divider
from lorafold.serve.protocol import OUR_REASONS, Cancel, Event, Finished, Started, Thought, Token

_HALF = re.compile("[\ud800-\udbff]$")


def ask(
    server: Server, path: str, body: Mapping[str, Any], extras: list[dict[str, Any]], cancel: Cancel
) -> Iterator[ServerEvent]:
    """The events of an answer; asked again with fewer extras if the server does not take them.

    Args:
        server: where.
        path: the endpoint.
        body: what every server understands.
        extras: further fields, the least known last; those refused are taken out for good.
        cancel: ends the stream.
    """
    for kept in range(len(extras), -1, -1):
        full = dict(body)
        for more in extras[:kept]:
            full |= more
        events = _events(server, path, full, cancel)
        try:
            first = next(events, None)
        except (ServerRefused, Failed):  # some answer an unknown field with 500
            if kept == 0:
                raise
            continue
        if first is None and kept and not cancel.is_set():  # and llama-cpp-python's with an empty stream
            continue
        del extras[kept:]
        if first is not None:
            yield first
            yield from events
        return


def _events(server: Server, path: str, body: Mapping[str, Any], cancel: Cancel) -> Iterator[ServerEvent]:
    try:
        yield from read_events(server.lines(path, body, cancel), server.url)
    except SystemFault:
        if not cancel.is_set():  # what the user cut off is no fault
            raise


class ServerAnswer:
    """One answer of a server while it arrives.

    Args:
        url: of the server, for messages.
        sampling: what was asked for.
        cancel: tells a break wanted by the user from one that is a fault.
        tools: it was given tools: calls are kept apart, also those that a server leaves in the text.
    """

    def __init__(self, url: str, sampling: Sampling, cancel: Cancel, *, tools: bool = False) -> None:
        self._url = url
        self._sampling = sampling
        self._cancel = cancel
        self._begin = time.perf_counter()
        self._started = False
        self._odd = ""  # what came that is no part of an answer
        self._tools = tools
        self._said = ""
        self._text = _Whole()
        self._thought = _Whole()
        self._divider = Divider()
        self.calls = Calls()
        self._entries: deque[tuple[bytes, float]] = deque()  # tokens whose text has not come yet
        self._content = b""  # text whose tokens have not come yet
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.spoke = False  # something of the answer or of its reasoning has come
        self.answered = False  # something of the answer

    def _elapsed(self) -> float:
        return time.perf_counter() - self._begin

    def check(self, event: ServerEvent) -> None:
        """Look whether the server reports an error.

        Raises:
            SystemFault: it does.
        """
        if (told := event.fault) is not None:
            self.fail(told)

    def fail(self, told: str) -> None:
        """End the answer with the server's error.

        Raises:
            SystemFault: always.
        """
        cause = cause_of(None, told)
        fix = cause.fix if cause else "look at the server's log"
        raise SystemFault(f"the server failed: {told}", at=self._url, fix=fix)

    def pass_over(self, value: Any) -> None:
        """Take in a value that is no part of an answer; it is named if no answer comes."""
        self._odd = self._odd or shortened(value)

    def part(self, content: str, thinking: str, logprobs: Any = None) -> Iterator[Event]:
        """Take in what came.

        Args:
            content: text of the answer.
            thinking: text of the reasoning, which is kept apart from the answer.
            logprobs: the tokens as OpenAI and Ollama write them: `{"token", "logprob", "bytes"}`.
        """
        self.spoke = self.spoke or bool(content or thinking)
        if not self._started:
            self._started = True
            yield Started(None, elapsed=self._elapsed())
        if thinking := self._thought.add(thinking):
            yield Thought(thinking, self._elapsed())
            logprobs = None  # of the reasoning
        self._entries.extend(filter(None, map(_entry, rows(logprobs))))
        yield from self._divided(*self._divider.add(self._text.add(content)))

    def _divided(self, answer: str, thought: str) -> Iterator[Event]:
        """A text that may begin with reasoning, which has no tokens of the answer."""
        if self._divider.thinks:
            self._entries.clear()
        if thought:
            yield Thought(thought, self._elapsed())
        self._said += answer
        self._content += answer.encode()
        yield from self._matched()

    def _matched(self) -> Iterator[Token]:
        """Tokens whose text has come; text that has no tokens, as it is."""
        while self._entries and self._content.startswith(self._entries[0][0]):
            piece, logprob = self._entries.popleft()
            self._content = self._content[len(piece) :]
            self.answered = True
            yield Token(self._decoder.decode(piece), None, logprob, self._elapsed())
        waiting = bool(self._entries) and self._entries[0][0].startswith(self._content)
        if self._content and not waiting:
            self._entries.clear()
            yield self._rest()

    def _rest(self) -> Token:
        self.answered = True
        rest, self._content = self._decoder.decode(self._content), b""
        return Token(rest, None, None, self._elapsed())

    def finish(self, reason: str | None, tokens: Any = None, prompt_tokens: Any = None) -> Iterator[Event]:
        """The end.

        Args:
            reason: "stop", "length" or another word of the server's; None if it said none.
            tokens: of the answer.
            prompt_tokens: of the prompt.

        Raises:
            SystemFault: the stream ended before the answer did.
        """
        if reason is None and not self._cancel.is_set():
            odd = f", but {self._odd}" if self._odd else ""
            broke = "broke off in the middle of an answer" if self._started else f"sent no answer{odd}"
            raise SystemFault(
                f"the server {broke}", at=self._url, fix="look at the server's log, and ask again"
            )
        if left := self._thought.rest():
            yield Thought(left, self._elapsed())
        yield from self._divided(*self._divider.add(self._text.rest()))
        yield from self._divided(*self._divider.rest())
        if self.calls.shown and not self._tools:
            self._content += _joined("\n" * self.answered + self.calls.shown).encode()
        if self._content:
            yield self._rest()
        if left := self._decoder.decode(b"", final=True):
            yield Token(left, None, None, self._elapsed())
        told, asked = count(tokens), count(prompt_tokens)
        called = (self.calls.found or split_calls(self._said)[1]) if self._tools else []
        yield Finished(
            self._ended(reason, told), self._elapsed(), tokens=told, prompt_tokens=asked, calls=tuple(called)
        )

    def _ended(self, reason: str | None, tokens: int | None) -> str:
        """Why the answer ended, in our words if we have one for it, else in the server's."""
        if reason is None:
            return "cancelled"
        if reason == "length":
            # Cut before the number asked for: the server's own context is full.
            early = tokens is not None and tokens < self._sampling.max_tokens - 1
            return "context" if early else "length"
        return f"{reason} (the server's word)" if reason in OUR_REASONS else reason


class _Whole:
    """Text in parts, joined where a part ends within a character."""

    def __init__(self) -> None:
        self._half = ""

    def add(self, text: str) -> str:
        """What is whole by now. A half without its other half is replaced."""
        text = self._half + text
        found = _HALF.search(text)
        self._half = found[0] if found else ""
        return _joined(text[: len(text) - len(self._half)])

    def rest(self) -> str:
        """What is left at the end."""
        left, self._half = _joined(self._half), ""
        return left


def _joined(text: str) -> str:
    """Text with surrogates joined in pairs; single ones are replaced by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="replace")


def _entry(row: Mapping[str, Any]) -> tuple[bytes, float] | None:
    """A token's bytes and log-probability, or None if the row is something else."""
    logprob, raw, token = number(row.get("logprob")), row.get("bytes"), row.get("token")
    if logprob is None:
        return None
    try:
        if isinstance(raw, list):
            return bytes(raw), logprob
        return (token.encode(), logprob) if isinstance(token, str) else None
    except (ValueError, TypeError, OverflowError):
        return None
