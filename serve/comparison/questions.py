"""Questions for a comparison: from text, JSON lines, a JSON array or CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafold.chat.sandbox import Message
from lorafold.errors import InputError
from lorafold.serve.session import cleaned

QUESTIONS = ("prompt", "question", "instruction", "query", "user", "text")
FURTHER = "input"  # Alpaca's: what the instruction is about
SYSTEM = "system"
EXPECTED = ("expected", "completion", "response", "output", "answer", "chosen")
CONVERSATIONS = ("messages", "conversations", "conversation")
_COLUMNS = frozenset((*QUESTIONS, FURTHER, SYSTEM, *EXPECTED))
_HALF = re.compile("[\ud800-\udfff]")
_ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}


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
        path: .jsonl, .json, .csv, or text with one question a line.
        system: put before questions that bring no system message.
        limit: read only the first so many.

    Raises:
        InputError: the file is missing, empty, or a line is wrong; the message names it.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", at=path, fix="check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start:,}", at=path, fix="save it as UTF-8") from error
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson", ".json"):
        rows = _json_rows(path, text)
    elif suffix == ".csv":
        rows = _csv_rows(path, text)
    else:
        lines = enumerate(text.split("\n"), 1)
        rows = ((f"{path}:{number}", {"prompt": line.strip()}) for number, line in lines if line.strip())
    prompts: list[Prompt] = []
    for place, row in rows:
        prompts.append(_prompt(place, row, system))
        if limit is not None and len(prompts) >= limit:
            break
    if not prompts:
        raise InputError("no question in it", at=path, fix="write one question a line")
    return prompts


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"not JSON: {error}", at=path, fix="repair the file") from error
        for number, row in enumerate(rows, 1):
            yield f"{path}: record {number}", row
        return
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: JSON texts may hold U+2028
        if line.strip():
            try:
                yield f"{path}:{number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(
                    f"not JSON: {error}", at=f"{path}:{number}", fix="repair the line"
                ) from error


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        names = reader.fieldnames or []
        known = [name for name in names if name and name.strip().lower() in _COLUMNS]
        if not any(name.strip().lower() in (*QUESTIONS, FURTHER) for name in known):
            raise InputError(
                f"no column of questions among {', '.join(map(str, names)) or 'none'}",
                at=f"{path}:1",
                fix=f"name one of them {QUESTIONS[0]!r}",
            )
        for row in reader:
            yield f"{path}:{reader.line_num}", {name.strip().lower(): row[name] for name in known}
    except csv.Error as error:
        raise InputError(
            f"not CSV: {error}", at=f"{path}:{max(1, reader.line_num)}", fix="repair the line"
        ) from error


def _prompt(place: str, row: Any, system: str | None) -> Prompt:
    if isinstance(row, str):
        row = {"prompt": row}
    if not isinstance(row, Mapping):
        raise InputError(f"expected an object, got {type(row).__name__}", at=place)
    messages: list[Message]
    conversation = next((row[key] for key in CONVERSATIONS if row.get(key)), None)
    expected = next((row[key] for key in EXPECTED if isinstance(row.get(key), str)), None)
    if conversation is None and isinstance(row.get("prompt"), list):
        conversation = row["prompt"]
    if conversation is not None:
        messages, last = _conversation(place, conversation)
        expected = last if last is not None else expected
    else:
        question = next((row[key] for key in QUESTIONS if isinstance(row.get(key), str)), "")
        further = row[FURTHER] if isinstance(row.get(FURTHER), str) else ""
        question = "\n".join(part for part in (question, further) if part.strip())  # as in training
        if not question:
            raise InputError(f"no question (expected a field {', '.join(QUESTIONS)} or messages)", at=place)
        messages = [{"role": "user", "content": question}]
        if isinstance(row.get(SYSTEM), str) and row[SYSTEM].strip():
            messages.insert(0, {"role": "system", "content": row[SYSTEM]})
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    if any(_HALF.search(str(message["content"])) for message in messages):
        raise InputError("half of a character (a lone surrogate) in it", at=place, fix="repair the line")
    removed = 0
    for message in messages:  # as chat does with what is typed
        message["content"], count = cleaned(str(message["content"]))
        removed += count
    if not str(messages[-1]["content"]).strip():
        raise InputError("an empty question", at=place, fix="repair the line")
    return Prompt(tuple(messages), expected, removed)


def _conversation(place: str, rows: Any) -> tuple[list[Message], str | None]:
    """The messages up to the last question, and the answer after it."""
    messages: list[Message] = []
    for row in rows if isinstance(rows, list) else ():
        role = row.get("role", row.get("from")) if isinstance(row, Mapping) else None
        content = row.get("content", row.get("value")) if isinstance(row, Mapping) else None
        if role not in _ROLES or not isinstance(content, str):
            raise InputError(f"a message without a known role and text: {str(row)[:80]}", at=place)
        messages.append({"role": _ROLES[role], "content": content})
    expected = None
    if messages and messages[-1]["role"] == "assistant":
        expected = str(messages.pop()["content"])
    if not messages or messages[-1]["role"] != "user":
        raise InputError("the conversation has no question at its end", at=place)
    return messages, expected
