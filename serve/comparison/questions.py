"""Questions for a comparison, and the answers that the data holds for them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lorafold.chat.sandbox import Message
from lorafold.errors import InputError
from lorafold.records.chats import read_chats
from lorafold.records.layouts import Example
from lorafold.serve.conversation import cleaned


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question.

    Attributes:
        messages: the conversation up to it; the last one is the user's.
        expected: the answer that the data holds, or None.
        removed: control characters that were taken out.
    """

    messages: tuple[Message, ...]
    expected: str | None = None
    removed: int = 0

    @property
    def question(self) -> str:
        """What the user asks last."""
        return str(self.messages[-1]["content"])


def read_prompts(path: Path, system: str | None = None, limit: int | None = None) -> list[Prompt]:
    """Read questions.

    Args:
        path: a data file as `train` reads it, with or without answers, or text with one question a line.
        system: put before questions that bring no system message.
        limit: read only the first so many.

    Raises:
        InputError: the file is missing, empty, or a line is wrong; the message names it.
    """
    examples = read_chats(path, system=system)
    prompts = [_prompt(example, system) for example in islice(examples, limit)]
    if not prompts:
        raise InputError("no question in it", at=path, fix="write one question a line")
    return prompts


def _prompt(example: Example, system: str | None) -> Prompt:
    if example.text is not None:
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": example.text})
    else:
        # As a chat sends a history: without what was thought before each answer.
        messages = [{"role": turn["role"], "content": turn["content"]} for turn in example.messages]
    expected = str(messages.pop()["content"]) if messages[-1]["role"] == "assistant" else None
    removed = 0
    for message in messages:  # as chat does with what is typed
        message["content"], count = cleaned(str(message["content"]))
        removed += count
    if not str(messages[-1]["content"]).strip():
        raise InputError("an empty question", at=example.place, fix="correct the line")
    return Prompt(tuple(messages), expected, removed)
