"""The held-out chats that a proof asks.

In: a file that the user names, or the questions that training kept beside the adapter, or a few general ones.
Out: conversations as messages. The file may be JSON lines or a JSON array of `messages`, or of records with a
question (and an answer), or plain text with one question a line.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorafold.errors import InputError

HELD_OUT = "heldout.jsonl"  # what `train` keeps in the adapter's folder
MOST = 12  # chats that a proof asks at most: more change the figures little and cost time

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
_QUESTION = ("instruction", "prompt", "question", "query")
_ANSWER = ("output", "completion", "response", "answer")

Chat = list[dict[str, str]]


def proof_chats(given: Path | None, adapter_folders: Sequence[Path]) -> list[Chat]:
    """Choose and read the chats.

    Args:
        given: the user's file, or None.
        adapter_folders: where training may have kept some.

    Raises:
        InputError: the file is missing, not readable, or without a question.
    """
    kept = [folder / HELD_OUT for folder in adapter_folders if (folder / HELD_OUT).is_file()]
    path = given or next(iter(kept), None)
    if path is None:
        return [[{"role": "user", "content": question}] for question in GENERAL]
    chats = read_chats(path)
    if not chats:
        raise InputError("there is no question in it", at=path, fix="one question a line, or JSON lines")
    step = max(len(chats) / MOST, 1.0)
    return [chats[int(index * step)] for index in range(min(len(chats), MOST))]


def read_chats(path: Path) -> list[Chat]:
    """Every chat of a file.

    Raises:
        InputError: the file cannot be read, or a record of it holds no question.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot be read ({error})", at=path, fix="give a UTF-8 text or JSON file"
        ) from error
    if path.suffix not in (".json", ".jsonl"):
        return [[{"role": "user", "content": line}] for line in text.splitlines() if line.strip()]
    try:
        if text.lstrip().startswith("["):
            return [_chat(record, f"{path}: record {n}") for n, record in enumerate(json.loads(text), 1)]
        lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        return [_chat(json.loads(line), f"{path}:{number}") for number, line in lines]
    except ValueError as error:
        raise InputError(f"not readable as JSON ({error})", at=path, fix="mend the file") from error


def _chat(record: Any, at: str) -> Chat:
    if isinstance(record, dict):
        if isinstance(messages := record.get("messages"), list):
            return _messages(messages, at)
        question = next((record[key] for key in _QUESTION if isinstance(record.get(key), str)), None)
        answer = next((record[key] for key in _ANSWER if isinstance(record.get(key), str)), None)
        if question:
            more = record.get("input")
            chat = [
                {
                    "role": "user",
                    "content": f"{question}\n{more}" if isinstance(more, str) and more else question,
                }
            ]
            if isinstance(system := record.get("system"), str) and system:
                chat.insert(0, {"role": "system", "content": system})
            return [*chat, {"role": "assistant", "content": answer}] if answer else chat
    fields = ", ".join((*_QUESTION, "messages"))
    raise InputError("no question in this record", at=at, fix=f"give it one of the fields {fields}")


def _messages(messages: list[Any], at: str) -> Chat:
    chat: Chat = []
    for message in messages:
        if not (
            isinstance(message, dict) and all(isinstance(message.get(k), str) for k in ("role", "content"))
        ):
            raise InputError("a message without the texts role and content", at=at)
        chat.append({"role": message["role"], "content": message["content"]})
    if not any(message["role"] == "user" for message in chat):
        raise InputError("a conversation without a user's message", at=at)
    return chat
