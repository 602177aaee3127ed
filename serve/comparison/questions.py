"""Questions for a comparison, and the answers that the data holds for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from lorafold.chat.call_spellings import told_message
from lorafold.chat.dialogue import Dialogue, Tool, tools_of
from lorafold.chat.sandbox import Message
from lorafold.chat.template import REASONING_KEYS
from lorafold.errors import InputError
from lorafold.records.chats import read_chats
from lorafold.records.layouts import Example
from lorafold.serve.conversation import cleaned


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question.

    Attributes:
        messages: the conversation up to it; the last one is the user's, or a tool's.
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


def read_prompts(
    path: Path, system: str | None = None, limit: int | None = None, tools: Sequence[Tool] = ()
) -> list[Prompt]:
    """Read questions.

    Args:
        path: a data file as `train` reads it, with or without answers, or text with one question a line.
        system: put before questions that bring no system message.
        limit: read only the first so many.
        tools: that may be called in conversations that bring none of their own.

    Raises:
        InputError: the file is missing, empty, or a line is wrong; the message names it.
    """
    examples = read_chats(path, system=system)
    prompts = [_prompt(example, system, tools) for example in islice(examples, limit)]
    if not prompts:
        raise InputError("no question in it", at=path, fix="write one question a line")
    return prompts


def _prompt(example: Example, system: str | None, tools: Sequence[Tool]) -> Prompt:
    if example.text is not None:
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": example.text})
    else:
        # As a chat sends a history: without what was thought before each answer.
        messages = [
            {key: turn[key] for key in turn if key not in REASONING_KEYS} for turn in example.messages
        ]
    expected = told_message(messages.pop()) if messages[-1]["role"] == "assistant" else None
    removed = 0
    for message in messages:  # as chat does with what is typed
        message["content"], count = cleaned(str(message["content"]))
        removed += count
    if not str(messages[-1]["content"]).strip():
        raise InputError("an empty question", at=example.place, fix="correct the line")
    known = tools_of(example.messages) or tuple(tools)
    return Prompt(Dialogue(messages, known) if known else tuple(messages), expected, removed)
