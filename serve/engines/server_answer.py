"""What model servers have in common: fields that not all of them know, and answers that arrive in parts.

A part may hold text, reasoning, and the tokens behind the text with their log-probabilities. Out come the
events of a local model: one per token where the server says what they are, reasoning between <think> marks.
"""

from __future__ import annotations

import codecs
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lorafold.errors import SystemFault
from lorafold.serve.config import Sampling
from lorafold.serve.engine import Cancel, Event, Finished, Reason, Started, Token
from lorafold.serve.engines.http import Failed, Refused, Server

THINK, UNTHINK = "<think>\n", "\n</think>\n\n"


def ask(
    server: Server, path: str, body: Mapping[str, Any], extras: list[dict[str, Any]], cancel: Cancel
) -> Iterator[bytes]:
    """The lines of a streamed answer; asked again with fewer extras where the server does not take them.

    Args:
        server: where.
        path: the endpoint.
        body: what every server understands.
        extras: further fields, the least known last; those refused are taken out for good.
        cancel: ends the stream.
    """
    for kept in range(len(extras), -1, -1):
        full = dict(body)
        for fields in extras[:kept]:
            full |= fields
        lines = server.lines(path, full, cancel)
        try:
            first = next(lines, None)
        except (Refused, Failed):  # some answer an unknown field with 500
            if kept == 0:
                raise
            continue
        if first is None and kept and not cancel.is_set():  # and llama-cpp-python's with an empty stream
            continue
        del extras[kept:]
        if first is not None:
            yield first
            yield from lines
        return


class ServerAnswer:
    """One answer of a server while it arrives.

    Args:
        server: for messages.
        sampling: what was asked for.
        cancel: tells a break wanted by the user from one that is a fault.
    """

    def __init__(self, server: Server, sampling: Sampling, cancel: Cancel) -> None:
        self._server = server
        self._sampling = sampling
        self._cancel = cancel
        self._begin = time.perf_counter()
        self._started = self._thinking = False
        self._entries: deque[tuple[bytes, float]] = deque()  # tokens whose text has not come yet
        self._content = b""  # text whose tokens have not come yet
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def _elapsed(self) -> float:
        return time.perf_counter() - self._begin

    def part(self, content: str, thinking: str, logprobs: Sequence[Any] | None) -> Iterator[Event]:
        """Take in what came.

        Args:
            content: text of the answer.
            thinking: text of the reasoning before it.
            logprobs: the tokens as OpenAI and Ollama write them: `{"token", "logprob", "bytes"}`.
        """
        if not self._started:
            self._started = True
            yield Started(None, elapsed=self._elapsed())
        if thinking:
            yield self._text(thinking if self._thinking else THINK + thinking)
            self._thinking = True
            logprobs = None  # of the reasoning, which has its own marks in the model's words
        if content and self._thinking:
            self._thinking = False
            yield self._text(UNTHINK)
        self._content += content.encode("utf-8", errors="replace")
        self._entries.extend(filter(None, map(_entry, logprobs or ())))
        yield from self._matched()

    def _text(self, text: str) -> Token:
        return Token(text, None, None, self._elapsed())

    def _matched(self) -> Iterator[Token]:
        """Tokens whose text has come; text that has no tokens, as it is."""
        while self._entries and self._content.startswith(self._entries[0][0]):
            piece, logprob = self._entries.popleft()
            self._content = self._content[len(piece) :]
            yield Token(self._decoder.decode(piece), None, logprob, self._elapsed())
        waiting = bool(self._entries) and self._entries[0][0].startswith(self._content)
        if self._content and not waiting:
            self._entries.clear()
            yield self._rest()

    def _rest(self) -> Token:
        rest, self._content = self._decoder.decode(self._content), b""
        return self._text(rest)

    def finish(self, reason: str | None, tokens: Any = None, prompt_tokens: Any = None) -> Iterator[Event]:
        """The end.

        Args:
            reason: "stop", "length" or another word of the server's; None where it said none.
            tokens: of the answer.
            prompt_tokens: of the prompt.

        Raises:
            SystemFault: the stream ended before the answer did.
        """
        if reason is None and not self._cancel.is_set():
            broke = "broke off in the middle of an answer" if self._started else "sent no answer"
            raise SystemFault(
                f"the server {broke}", at=self._server.url, fix="look at the server's log, and ask again"
            )
        if self._content:
            yield self._rest()
        said = tokens if isinstance(tokens, int) else None
        asked = prompt_tokens if isinstance(prompt_tokens, int) else None
        ended: Reason = "stop"
        if reason is None:
            ended = "cancelled"
        elif reason == "length":
            # Cut before the number asked for: the server's own context is full.
            early = said is not None and said < self._sampling.max_tokens - 1
            ended = "context" if early else "length"
        yield Finished(ended, self._elapsed(), tokens=said, prompt_tokens=asked)


def _entry(row: Any) -> tuple[bytes, float] | None:
    """A token's bytes and log-probability, or None where the row is something else."""
    if not isinstance(row, Mapping) or not isinstance(row.get("logprob"), (int, float)):
        return None
    raw = row.get("bytes")
    try:
        piece = bytes(raw) if isinstance(raw, list) else str(row.get("token", "")).encode()
    except (ValueError, TypeError):
        return None
    return piece, float(row["logprob"])
