"""A turn of a conversation as data sets write it -> a message, and whether it is to be trained.

Two spellings are in use, {role, content} and {from, value}. A content may be a list of text parts, which are
joined. What an assistant thought stands beside its answer, under one of three names; so do its calls of
tools, or they are turns of their own. A turn may say itself whether it counts in the loss.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lorafold.chat.dialogue import calls_of
from lorafold.chat.sandbox import Message
from lorafold.chat.template import REASONING_KEYS
from lorafold.errors import InputError
from lorafold.records.spellings import ROLE_WORDS, respelled
from lorafold.records.tools import CALLS, RESULT_OF, read_calls

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
# Roles of which the content is a call, or several, as JSON.
_CALLING = ("function_call", "tool_call")
# Marks of a turn, and whether a true value means that it is trained. `weight` is OpenAI's, `train` and
# `training` axolotl's, `loss` and `loss_scale` ms-swift's, `loss_mask` GLM's, `masked` torchtune's: there, as
# with `mask`, true hides it.
MARKS = {
    "weight": True,
    "train": True,
    "trainable": True,
    "loss": True,
    "loss_mask": True,
    "loss_scale": True,
    "training": True,
    "mask": False,
    "masked": False,
}
_PARTS = ("text", "input_text", "output_text")  # types of content parts that are text
_BINARY = {"true": True, "1": True, "false": False, "0": False, "1.0": True, "0.0": False}
_KINDS = {"NoneType": "null", "str": "a string", "list": "a list", "dict": "an object", "bool": "a boolean"}


def read_turns(value: Any, field: str, place: str) -> list[tuple[Message, bool]]:
    """The messages of a list of turns, each with whether it is trained.

    Raises:
        InputError: a turn is malformed, or its role unknown.
    """
    turns = respelled(list_of(value, field, place), ROLES)
    return _with_calls_joined(_turn(turn, f"{field}[{index}]", place) for index, turn in enumerate(turns))


def _with_calls_joined(turns: Iterable[tuple[Message, bool]]) -> list[tuple[Message, bool]]:
    """The turns, with calls that are turns of their own joined to the answer or the calls before them."""
    joined: list[tuple[Message, bool]] = []
    for message, trained in turns:
        last, also = joined[-1] if joined else ({}, False)
        alone = bool(calls_of(message)) and not message["content"] and "reasoning_content" not in message
        if alone and last.get("role") == "assistant" and also == trained:
            calls = [*calls_of(last), *calls_of(message)]
            joined[-1] = ({**last, "tool_calls": calls}, trained)
        else:
            joined.append((message, trained))
    return joined


def _turn(turn: Any, field: str, place: str) -> tuple[Message, bool]:
    if not isinstance(turn, Mapping):
        problem = f"{field}: expected an object, got {kind(turn)}"
        raise InputError(problem, at=place, fix="write role and content")
    role_key, content_key = spelling(turn)
    calling = next((key for key in CALLS if not void(turn.get(key))), "")
    for key in (role_key, content_key):
        if key not in turn and not (calling and key == content_key):
            raise InputError(f"{field}: the field {key!r} is missing", at=place, fix="add it")
    role = turn[role_key]
    if not isinstance(role, str) or role not in ROLES:
        problem = f"{field}.{role_key}: unknown role {role!r} (known: {', '.join((*ROLES, *ROLE_WORDS))})"
        raise InputError(problem, at=place, fix="rename it or remove the turn")
    message: Message = {"role": ROLES[role], "content": ""}
    answers = message["role"] == "assistant"
    if calling and not answers:
        problem = f"{field}: {calling} in a turn of {role!r}"
        raise InputError(problem, at=place, fix="only the assistant calls tools")
    content = turn.get(content_key)
    if role in _CALLING and not calling:
        message["tool_calls"] = read_calls(content, f"{field}.{content_key}", place)
    elif not (calling and content is None):
        message["content"] = text_of(content, f"{field}.{content_key}", place)
    if calling:
        message["tool_calls"] = read_calls(turn[calling], f"{field}.{calling}", place)
    if answers and (name := _reasoning(turn)):
        message["reasoning_content"] = text_of(turn[name], f"{field}.{name}", place)
    if message["role"] == "tool":
        message |= {key: str(turn[key]) for key in (RESULT_OF, "name") if not void(turn.get(key))}
    return message, answers and _marked(turn, field, place)


def spelling(turn: Mapping[str, Any]) -> tuple[str, str]:
    """The names of a turn's role and content."""
    return ("from", "value") if "from" in turn else ("role", "content")


def unread_of_turn(turn: Mapping[str, Any]) -> Iterator[str]:
    """Names of a turn's fields that are not read."""
    role, content = spelling(turn)
    read = {role, content}
    means = ROLES.get(str(turn.get(role)))
    if means == "assistant":
        read |= {*MARKS, *CALLS, _reasoning(turn)}
    if means == "tool":
        read |= {RESULT_OF, "name"}
    for key, value in turn.items():
        hides = key in MARKS and _binary(value) in (None, not MARKS[key])  # what is not trained anyway
        if key not in read and not void(value) and not hides:
            yield key


def _reasoning(turn: Mapping[str, Any]) -> str:
    """The name under which a turn tells what was thought; "" if it does not."""
    return next((key for key in REASONING_KEYS if isinstance(turn.get(key), str) and turn[key].strip()), "")


def _marked(turn: Mapping[str, Any], field: str, place: str) -> bool:
    """Whether the turn's own marks let it be trained; without one it is."""
    said: dict[str, bool] = {}
    for key, trains in MARKS.items():
        if turn.get(key) is None:
            continue
        value = _binary(turn[key])
        if value is None:
            problem = f"{field}.{key}: expected true or false (1 or 0), got {turn[key]!r:.40}"
            raise InputError(problem, at=place, fix="write true or false")
        said[key] = value == trains
    if len(set(said.values())) > 1:
        problem = f"{field}: {' and '.join(said)} contradict each other"
        raise InputError(problem, at=place, fix="keep one of them")
    return all(said.values())


def _binary(value: Any) -> bool | None:
    """A mark's value; None if it is neither true nor false."""
    return _BINARY.get(str(value).strip().lower())


def text_of(value: Any, field: str, place: str) -> str:
    """Check that a value is a text, or text parts, which are joined.

    Raises:
        InputError: it is something else, or holds half of a character.
    """
    if isinstance(value, list | tuple) and value and all(isinstance(part, Mapping) for part in value):
        value = "".join(_part(part, f"{field}[{index}]", place) for index, part in enumerate(value))
    if not isinstance(value, str):
        problem = f"{field}: expected a string, got {kind(value)}"
        raise InputError(problem, at=place, fix="write a string or remove the record")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"{field}: holds half of a surrogate pair (U+{ord(value[error.start]):04X})"
        raise InputError(problem, at=place, fix="write the whole character") from error
    return value


def _part(part: Mapping[str, Any], field: str, place: str) -> str:
    if part.get("type", "text") in _PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    problem = f"{field}: a part of type {part.get('type')!r} is no text"
    raise InputError(problem, at=place, fix="remove the record, or keep its text alone")


def is_parts(value: Any) -> bool:
    """Whether a list holds parts of one content, and not turns."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(
            isinstance(part, Mapping) and "text" in part and not {"role", "from"} & set(part)
            for part in value
        )
    )


def list_of(value: Any, field: str, place: str) -> list[Any]:
    """Check that a value is a list, or JSON text of one (in a column of a CSV file).

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            python = re.match(r"\s*\[\s*\{\s*'", value)
            what = "Python's spelling of a list (single quotes)" if python else "a string that is not JSON"
            fix = "write it with json.dumps" if python else "write a JSON list"
            raise InputError(f"{field}: expected a list, got {what}", at=place, fix=fix) from error
    if isinstance(value, Mapping) and (rows := _rows_of(value)):
        return rows
    if not isinstance(value, list | tuple):
        if hasattr(value, "tolist"):  # a numpy array, from parquet through pandas
            return list(value.tolist())
        inside = f" with the fields {', '.join(map(repr, value))}" if isinstance(value, Mapping) else ""
        problem = f"{field}: expected a list, got {kind(value)}{inside}"
        raise InputError(problem[:300], at=place, fix="write a list")
    return list(value)


def _rows_of(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Turns that are written by columns, as `datasets` writes them: {"role": [...], "content": [...]}."""
    lists = {key: list(column) for key, column in columns.items() if isinstance(column, list | tuple)}
    lengths = {len(column) for column in lists.values()}
    if len(lists) < len(columns) or len(lengths) != 1 or not {"role", "from"} & set(columns):
        return []
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def void(value: Any) -> bool:
    """Whether a value says nothing: tables fill a column with such if a record lacks the field."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


def kind(value: Any) -> str:
    """What a value is, in words."""
    name = type(value).__name__
    return _KINDS.get(name, "a number" if isinstance(value, int | float) else name)
