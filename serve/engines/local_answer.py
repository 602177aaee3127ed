"""Prompt in, tokens out: what all engines share whose tokens are drawn here, and how they score answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from lorafold.chat.call_spellings import split_calls
from lorafold.chat.dialogue import tools_of
from lorafold.chat.sandbox import Message
from lorafold.errors import InputError
from lorafold.serve.config import Sampling
from lorafold.serve.engines.fit import PromptFitter
from lorafold.serve.engines.threads import ModelThread
from lorafold.serve.protocol import Cancel, Event, Finished, Started, Token

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_T = TypeVar("_T")

BATCH = 256  # prompt tokens read at once: what Ctrl-C and the other model wait for
OUTPUTS = 32  # places scored at once; bounds the memory for logits to OUTPUTS x vocabulary floats


class Cache(Protocol):
    """One conversation in a model's memory. All methods run on the model's thread."""

    @property
    def held(self) -> Sequence[int]:
        """The tokens in memory; the same list all the time."""

    def use(self, threads: int) -> None:
        """Compute on so many threads from now on."""

    def keep(self, ids: Sequence[int], at_most: int) -> int:
        """Forget all but the common beginning with `ids`, of `at_most` tokens; returns its length."""

    def read(self, ids: Sequence[int]) -> None:
        """Read at most BATCH tokens after those held."""

    def score(self, ids: Sequence[int]) -> list[NDArray[np.float32]]:
        """Read at most OUTPUTS tokens; log-probabilities (vocabulary,) after each of them."""


@dataclass(frozen=True, slots=True)
class Reader:
    """A model that reads conversations.

    Attributes:
        cache: its memory.
        thread: where it computes.
        fitter: makes prompts that fit.
    """

    cache: Cache
    thread: ModelThread
    fitter: PromptFitter

    def compute(self, work: Callable[[], _T]) -> _T:
        """Run work on the model's thread; it may use the model's share of the cores."""

        def in_turn(threads: int) -> _T:
            self.cache.use(threads)
            return work()

        return self.thread.run(in_turn)


@dataclass(frozen=True, slots=True)
class Decoder:
    """How tokens are drawn and become text in one answer.

    Attributes:
        draw: read the token before (None for the first) and draw the next, with its log-probability.
        ends: whether a token ends the answer.
        text: what a token adds to the answer.
        rest: what is left of an incomplete character at the end.
    """

    draw: Callable[[int | None], tuple[int, float]]
    ends: Callable[[int], bool]
    text: Callable[[int], str]
    rest: Callable[[], str]


def stream_answer(
    reader: Reader, decoder: Decoder, messages: Sequence[Message], sampling: Sampling, cancel: Cancel
) -> Iterator[Event]:
    """Answer a conversation (see `Engine.stream`)."""
    begin = time.perf_counter()
    prompt, dropped = reader.fitter.fit(messages, sampling.max_tokens)
    with reader.thread.answering():
        reused = reader.compute(partial(reader.cache.keep, prompt, len(prompt) - 1))
        for start in range(reused, len(prompt), BATCH):
            if cancel.is_set():
                yield Finished("cancelled", time.perf_counter() - begin)
                return
            reader.compute(partial(reader.cache.read, prompt[start : start + BATCH]))
        yield Started(len(prompt), reused, dropped, time.perf_counter() - begin)
        reason, said = "length", list[str]()
        token: int | None = None
        for _ in range(sampling.max_tokens):
            if cancel.is_set():
                reason = "cancelled"
                break
            if len(reader.cache.held) >= reader.fitter.context:
                reason = "context"
                break
            token, logprob = reader.compute(partial(decoder.draw, token))
            if decoder.ends(token):
                reason = "stop"
                break
            said.append(decoder.text(token))
            yield Token(said[-1], token, logprob, time.perf_counter() - begin)
    said.append(decoder.rest())
    calls = split_calls("".join(said))[1] if tools_of(messages) else []
    yield Finished(reason, time.perf_counter() - begin, said[-1], calls=tuple(calls))


def score_answer(
    reader: Reader, messages: Sequence[Message], answer: Sequence[int]
) -> Iterator[NDArray[np.float32]]:
    """The vocabulary's log-probabilities at each token of an answer (see `Scorer.log_probabilities`)."""
    if not answer:
        return
    prompt = reader.fitter.fit_again(messages, len(answer))
    ids = [*prompt, *answer[:-1]]
    if len(ids) > reader.fitter.context:
        raise InputError(
            f"the answer ends past the context of {reader.fitter.context:,} tokens",
            fix="pass a larger --context",
        )
    first = len(prompt) - 1
    with reader.thread.held():
        reused = reader.compute(partial(reader.cache.keep, ids, first))
        for start in range(reused, first, BATCH):
            reader.compute(partial(reader.cache.read, ids[start : min(first, start + BATCH)]))
        for start in range(first, len(ids), OUTPUTS):
            yield from reader.compute(partial(reader.cache.score, ids[start : start + OUTPUTS]))
