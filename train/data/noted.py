"""What is odd about examples, counted and said before they are trained on.

None of it is an error: a data set of a thousand records may well have three without an answer. But who does
not hear of it takes them for examples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from lorafold.records.layouts import Example
from lorafold.train.data.split import content_key

_CHATS = ("messages", "conversations", "conversation")


def oddities(examples: Sequence[Example]) -> tuple[str, ...]:
    """What the user should know of a data set's examples.

    Args:
        examples: all of it.

    Returns:
        Notes; none if there is nothing to say.
    """
    counted = (_counted(examples, fits, what) for fits, what in _COUNTED)
    told = (*counted, _untrained(examples), _history(examples), _alike(examples))
    return tuple(note for note in told if note)


def _counted(examples: Sequence[Example], fits: Callable[[Example], bool], what: str) -> str:
    found = [example.place for example in examples if fits(example)]
    return f"{len(found)} of {len(examples)} examples {what} (first: {found[0]})" if found else ""


def _says_nothing(example: Example, role: str) -> bool:
    return any(
        not turn["content"].strip() and not turn.get("tool_calls")
        for turn in example.messages
        if turn["role"] == role
    )


def _asks_last(example: Example) -> bool:
    return bool(example.messages) and example.messages[-1]["role"] == "user"


def _is_chat(example: Example) -> bool:
    """Whether a plain text is a record itself: the JSON of a conversation."""
    text = (example.text or "").strip()
    if not text.startswith(("{", "[")) or '"' not in text:
        return False
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return False
    first = found[0] if isinstance(found, list) and found else found
    return isinstance(first, dict) and bool({"role", "from", *_CHATS} & set(first))


_COUNTED: tuple[tuple[Callable[[Example], bool], str], ...] = (
    (lambda example: _says_nothing(example, "assistant"), "have an empty answer, which is not trained"),
    (lambda example: _says_nothing(example, "user"), "have an empty question, and are trained so"),
    (_asks_last, "end with a question that nobody answers, which teaches nothing"),
    (_is_chat, "are JSON of a conversation, trained as text; write the JSON itself as the record"),
)


def _untrained(examples: Sequence[Example]) -> str:
    answers = [
        trained
        for example in examples
        for turn, trained in zip(example.messages, example.marks, strict=True)
        if turn["role"] == "assistant"
    ]
    off = answers.count(False)
    return f"{off} of {len(answers)} answers are marked as not trained, or stand in a prompt" if off else ""


def _history(examples: Sequence[Example]) -> str:
    """Answers that stand in `history`: some programs train them, some do not."""
    alone = [example for example in examples if example.layout in ("instruction", "question")]
    earlier = sum(example.marks[:-1].count(True) for example in alone)
    return f"{earlier} answers in history are trained too" if earlier else ""


def _alike(examples: Sequence[Example]) -> str:
    usual = max(1, len(examples) // 10)  # some repetition is
    different: set[object] = set()
    for example in examples:
        different.add(content_key(example))
        if len(different) > usual:
            return ""
    if len(examples) < 2:
        return ""
    return f"only {len(different)} of {len(examples)} examples are different; the others repeat them"
