"""Prompt in, tokens out: the loop that all engines share whose tokens are drawn here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from lorafold.jinja_sandbox import Message
from lorafold.serve.computing import compute
from lorafold.serve.config import Sampling
from lorafold.serve.engine import Cancel, Event, Finished, PromptFitter, Reason, Started, Token

BATCH = 256  # prompt tokens read at once: what Ctrl-C and the other model wait for


@dataclass(frozen=True, slots=True)
class Speaker:
    """What the loop needs of a model. All but `ends`, `text` and `rest` run on the computing thread.

    Attributes:
        held: the tokens in memory; the same list all the time.
        keep: forget all but the common beginning with a prompt, at most so many tokens; tells its length.
        read: read at most BATCH tokens.
        draw: read the token before (None for the first) and draw the next, with its log-probability.
        ends: whether a token ends the answer.
        text: what a token adds to the answer.
        rest: what is left of an incomplete character at the end.
    """

    held: Sequence[int]
    keep: Callable[[Sequence[int], int], int]
    read: Callable[[Sequence[int]], None]
    draw: Callable[[int | None], tuple[int, float]]
    ends: Callable[[int], bool]
    text: Callable[[int], str]
    rest: Callable[[], str]


def speak(
    speaker: Speaker, fitter: PromptFitter, messages: Sequence[Message], sampling: Sampling, cancel: Cancel
) -> Iterator[Event]:
    """Answer a conversation (see `Engine.stream`)."""
    begin = time.perf_counter()
    prompt, dropped = fitter.fit(messages, sampling.max_tokens)
    reused = compute(partial(speaker.keep, prompt, len(prompt) - 1))
    for start in range(reused, len(prompt), BATCH):
        if cancel.is_set():
            yield Finished("cancelled", time.perf_counter() - begin)
            return
        compute(partial(speaker.read, prompt[start : start + BATCH]))
    yield Started(len(prompt), reused, dropped, time.perf_counter() - begin)
    reason: Reason = "length"
    token: int | None = None
    for _ in range(sampling.max_tokens):
        if cancel.is_set():
            reason = "cancelled"
            break
        if len(speaker.held) >= fitter.context:
            reason = "context"
            break
        token, logprob = compute(partial(speaker.draw, token))
        if speaker.ends(token):
            reason = "stop"
            break
        yield Token(speaker.text(token), token, logprob, time.perf_counter() - begin)
    yield Finished(reason, time.perf_counter() - begin, speaker.rest())
