"""What is left out when a conversation outgrows the context: decided by that conversation alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import tiny_chat
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafold.chat.sandbox import Message
from lorafold.errors import InputError
from lorafold.serve.config import ChatConfig, Sampling
from lorafold.serve.engines.fit import PromptFitter
from lorafold.serve.engines.open import opened
from lorafold.serve.protocol import Cancel, Engine, Started, Token

GREEDY = Sampling(temperature=0, seed=0, max_tokens=12)


def bytes_of(messages: Sequence[Message]) -> list[int]:
    return [byte for message in messages for byte in f"<{message['role'][0]}>{message['content']}".encode()]


def talk(*texts: str, system: str = "") -> list[Message]:
    """A conversation, the user first."""
    said = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *said] if system else said


def test_a_quarter_is_freed_and_stays_free() -> None:
    # By hand: a turn has 3 + 7 + 3 + 7 = 20 tokens, its question alone 10; of 100, 20 are for the answer.
    # With the question after four turns it is 90 > 80: turns go until at most 60 are left, which are two.
    fitter, texts = PromptFitter(bytes_of, 100), ["x" * 7] * 8
    assert fitter.fit(talk(*texts, "y" * 7), 20)[1] == 4
    assert fitter.fit(talk(*texts, "y" * 7, "z" * 7, "y" * 7), 20)[1] == 4  # 70 fit: the beginning stays
    assert fitter.fit(talk(*texts, *["y" * 7] * 5), 20)[1] == 8  # 90 do not


def test_what_was_asked_before_changes_nothing() -> None:
    long, short = talk(*["x" * 30] * 6, "last"), talk(*"abcdefghijk")
    fitter = PromptFitter(bytes_of, 128)
    assert fitter.fit(long, 16)[1] > 2
    assert fitter.fit(short, 16) == (bytes_of(short), 0)
    with pytest.raises(InputError):
        fitter.fit(talk("y" * 200), 16)
    assert fitter.fit(short[:1], 16)[1] == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=5, max_size=25), st.data())
def test_a_prompt_is_that_of_a_fresh_model(sizes: list[int], data: st.DataObject) -> None:
    """Whatever was asked, undone, scored or loaded before: equal conversations give equal prompts."""
    whole = talk(*("x" * size for size in sizes), system="be kind")
    other = talk(*("y" * size for size in sizes))
    ends = range(2, len(whole) + 1, 2)
    first = [PromptFitter(bytes_of, 128).fit(whole[:end], 16) for end in ends]
    grown = PromptFitter(bytes_of, 128)
    assert [grown.fit(whole[:end], 16) for end in ends] == first
    for _ in range(6):
        at = data.draw(st.integers(0, len(ends) - 1))
        if data.draw(st.booleans()):
            grown.fit(other[: 2 * at + 1], data.draw(st.integers(1, 32)))
            grown.fit(whole[: ends[0]], 16)
        assert grown.fit(whole[: ends[at]], 16) == first[at]
        assert grown.fit_again(whole[: ends[at]], data.draw(st.integers(1, 32))) == first[at][0]


def asked(engine: Engine, messages: Sequence[Message]) -> tuple[int, int, list[int | None]]:
    """What was left out, what was read again, what was answered."""
    events = list(engine.stream(messages, GREEDY, Cancel()))
    assert isinstance(events[0], Started)
    tokens = [event.id for event in events if isinstance(event, Token)]
    return events[0].dropped, (events[0].prompt_tokens or 0) - events[0].reused, tokens


def test_an_answer_does_not_depend_on_the_question_before() -> None:
    config = ChatConfig(models=(str(tiny_chat.gguf()),), threads=1, context=400)
    turns = [f"question {number} {'x' * 60}" for number in range(9)]
    short = talk(*(f"q{number}" for number in range(13)))
    with opened(config) as (alone,), opened(config) as (after,):
        dropped, _, answer = asked(alone, short)
        assert 2 < asked(after, talk(*turns))[0] < 12
        assert asked(after, short)[::2] == (dropped, answer) == (0, answer)


def test_a_growing_conversation_is_read_once() -> None:
    config = ChatConfig(models=(str(tiny_chat.gguf()),), threads=1, context=400)
    with opened(config) as (engine,):
        texts, moved, before = [f"question {'x' * 10}"], 0, 0
        for _ in range(24):
            dropped, read, _ = asked(engine, talk(*texts))
            moved += dropped != before
            assert read < 75 or dropped != before  # the question and the answer before it
            before = dropped
            texts += ["answer", f"question {'x' * 10}"]
    assert 2 <= moved <= 10  # a quarter of the context is freed at once: not every turn begins elsewhere
