"""The held-out chats that a proof asks: the user's own, those that training kept, or a few general ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorafold.chat.dialogue import with_tools
from lorafold.chat.sandbox import Message
from lorafold.errors import InputError
from lorafold.records.chats import HELD_OUT, read_chats
from lorafold.records.layouts import Example

_MOST = 12  # chats that a proof asks at most, if it is given no time: more change the figures little
_MOST_EVER = 1000

GENERAL = (
    "Who are you?",
    "What should I do when I cannot sleep?",
    "Explain in two sentences why the sky is blue.",
    "Write a short greeting to a new neighbour.",
    "What is 17 plus 25, and how do you work it out?",
    "Name three things to take along on a long walk.",
    "你好，请介绍一下你自己。",
    "Give me one piece of advice for a difficult day.",
)

_Chat = Sequence[Message]


def proof_chats(given: Path | None, adapter_folders: Sequence[Path], minutes: float = 0.0) -> list[_Chat]:
    """Choose and read the chats.

    Args:
        given: the user's file, or None.
        adapter_folders: where training may have kept some.
        minutes: how long they may be asked; 0: not long.

    Raises:
        InputError: the file is missing, not readable, or without a question.
    """
    kept = [folder / HELD_OUT for folder in adapter_folders if (folder / HELD_OUT).is_file()]
    path = given or next(iter(kept), None)
    if path is None:
        return [[{"role": "user", "content": question}] for question in GENERAL]
    chats = [_asked(example) for example in read_chats(path)]
    if not chats:
        raise InputError("there is no question in it", at=path, fix="one question a line, or JSON lines")
    most = _MOST_EVER if minutes else _MOST
    step = max(len(chats) / most, 1.0)
    return [chats[int(index * step)] for index in range(min(len(chats), most))]


def _asked(example: Example) -> _Chat:
    if example.text is not None:
        return [{"role": "user", "content": example.text}]
    return example.messages if with_tools(example.messages) else list(example.messages)
