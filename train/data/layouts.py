"""Records → examples: the layouts of training data, one row each, and the checks that each field needs.

| layout        | fields                                                        | becomes                  |
|---------------|---------------------------------------------------------------|--------------------------|
| messages      | messages: [{role, content}], system                           | the conversation         |
| conversations | conversations: [{from, value}], system                        | the conversation         |
| instruction   | instruction, output, input, system, history: [[user, answer]] | history, then the answer |
| prompt        | prompt, completion, system                                    | a user turn, its answer  |
| text          | text                                                          | plain language modelling |

Calls of tools are refused; any other field that is not in the table is named by `unread` and left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lorafold.chat.tokenizer import Message
from lorafold.errors import InputError

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
}
# What a turn says beside its content: an answer without it would teach something else.
CALLS = ("tool_calls", "function_call", "tool_call_id")


@dataclass(frozen=True, slots=True)
class Example:
    """One example: a conversation, or a plain text.

    Attributes:
        place: where it was read ("data.jsonl:12").
        messages: the conversation, empty for a plain text.
        text: the plain text, None for a conversation.
        layout: name of the row that it was built by.
    """

    place: str
    messages: tuple[Message, ...] = ()
    text: str | None = None
    layout: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """A row of the table.

    Attributes:
        name: what `--layout` calls it.
        required: fields by which it is recognised.
        optional: fields that it also reads.
        build: record and place to example.
    """

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    build: Callable[[Mapping[str, Any], str], Example]


def recognise(record: Any, place: str, layout: str = "auto") -> Layout:
    """Choose the layout of a source by its first record.

    Raises:
        InputError: the record fits no layout.
    """
    fields = _object(record, place)
    if layout != "auto":
        return LAYOUTS[layout]
    for row in LAYOUTS.values():
        if all(name in fields for name in row.required):
            return row
    for row in LAYOUTS.values():  # one required field is missing: say which
        if any(name in fields for name in row.required):
            return row
    known = "; ".join(f"{row.name}: {', '.join(row.required)}" for row in LAYOUTS.values())
    raise InputError(
        f"no known layout has the fields {', '.join(map(repr, fields)) or '(none)'} (known: {known})",
        at=place,
        fix="rename the fields",
    )


def build_example(record: Any, place: str, layout: Layout, system: str | None = None) -> Example:
    """Turn a record into an example.

    Args:
        record: as it was read.
        place: where ("data.jsonl:12").
        layout: of its source.
        system: system message for a conversation that has none.

    Raises:
        InputError: a field is missing or of the wrong type, a role is unknown or in the wrong place.
    """
    fields = _object(record, place)
    for name in layout.required:
        if name not in fields:
            raise InputError(
                f"the field {name!r} is missing (layout {layout.name}, got {', '.join(map(repr, fields))})",
                at=place,
                fix="add it",
            )
    example = layout.build(fields, place)
    messages = example.messages
    if example.text is None and system and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": system}, *messages)
    return Example(place, messages, example.text, layout.name)


def unread(record: Mapping[str, Any], layout: Layout) -> Iterator[str]:
    """Names of the fields of a record that its layout does not read; those without a value are passed over.

    A turn's own are named as "messages[].name".
    """
    for name, value in record.items():
        if name not in (*layout.required, *layout.optional):
            if not _void(value):
                yield name
        elif isinstance(value, list | tuple):
            for turn in value:
                if isinstance(turn, Mapping):
                    read = _turn_keys(turn)
                    yield from (f"{name}[].{key}" for key in turn if key not in read and not _void(turn[key]))


def _void(value: Any) -> bool:
    """Whether a value says nothing: tables fill a column with such where a record lacks the field."""
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


def _object(record: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(record, Mapping):
        problem = f"expected an object, got {_kind(record)}"
        raise InputError(problem, at=place, fix="one record is one JSON object")
    return record


_KINDS = {"NoneType": "null", "str": "a string", "list": "a list", "dict": "an object", "bool": "a boolean"}


def _kind(value: Any) -> str:
    name = type(value).__name__
    return _KINDS.get(name, "a number" if isinstance(value, int | float) else name)


def _text(value: Any, place: str, field: str) -> str:
    """Check that a value is a text that can be trained on."""
    if not isinstance(value, str):
        problem = f"{field}: expected a string, got {_kind(value)}"
        raise InputError(problem, at=place, fix="write a string or remove the record")
    if "\0" in value:
        raise InputError(f"{field}: holds a NUL character", at=place, fix="remove it")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        problem = f"{field}: holds half of a surrogate pair (U+{ord(value[error.start]):04X})"
        raise InputError(problem, at=place, fix="write the whole character") from error
    return value


def _optional_text(fields: Mapping[str, Any], name: str, place: str) -> str:
    value = fields.get(name)
    return "" if value is None else _text(value, place, name)


def _list(value: Any, place: str, field: str) -> list[Any]:
    if isinstance(value, str):  # a column of a CSV file
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            problem = f"{field}: expected a list, got a string that is not JSON"
            raise InputError(problem, at=place, fix="write a JSON list") from error
    if not isinstance(value, list | tuple):
        if hasattr(value, "tolist"):  # a numpy array, from parquet through pandas
            return list(value.tolist())
        raise InputError(f"{field}: expected a list, got {_kind(value)}", at=place, fix="write a list")
    return list(value)


def _turns(fields: Mapping[str, Any], name: str, place: str) -> list[Message]:
    messages: list[Message] = []
    for index, turn in enumerate(_list(fields[name], place, name)):
        field = f"{name}[{index}]"
        if not isinstance(turn, Mapping):
            problem = f"{field}: expected an object, got {_kind(turn)}"
            raise InputError(problem, at=place, fix="write role and content")
        _refuse_calls(turn, place, field)
        role_key, content_key = _turn_keys(turn)
        for key in (role_key, content_key):
            if key not in turn:
                raise InputError(f"{field}: the field {key!r} is missing", at=place, fix="add it")
        role = turn[role_key]
        if not isinstance(role, str) or role not in ROLES:
            problem = f"{field}.{role_key}: unknown role {role!r} (known: {', '.join(ROLES)})"
            raise InputError(problem, at=place, fix="rename it or remove the turn")
        content = _text(turn[content_key], place, f"{field}.{content_key}")
        messages.append({"role": ROLES[role], "content": content})
    return messages


def _turn_keys(turn: Mapping[str, Any]) -> tuple[str, str]:
    """The names of a turn's role and content."""
    return ("from", "value") if "from" in turn else ("role", "content")


def _refuse_calls(turn: Mapping[str, Any], place: str, field: str) -> None:
    for key in CALLS:
        if not _void(turn.get(key)):
            problem = f"{field}: {key} cannot be trained on"
            fix = "write the call into the content, as the model is to write it, or remove the record"
            raise InputError(problem, at=place, fix=fix)


def _conversation(messages: list[Message], place: str, field: str, system: str = "") -> Example:
    """Check the order: a system message first if any, then user and assistant in turn.

    A record's own field `system` is that message where there is none.
    """
    if not any(message["role"] == "assistant" for message in messages):
        problem = f"{field}: no assistant turn, so there is nothing to learn"
        raise InputError(problem, at=place, fix="add an answer or remove the record")
    start = 1 if messages[0]["role"] == "system" else 0
    for index, message in enumerate(messages[start:], start):
        expected = "user" if (index - start) % 2 == 0 else "assistant"
        if message["role"] != expected:
            problem = f"{field}[{index}]: wrong order: expected {expected}, got {message['role']}"
            raise InputError(problem, at=place, fix="let user and assistant take turns")
    if system and not start:
        messages = [{"role": "system", "content": system}, *messages]
    elif system and messages[0]["content"] != system:
        problem = f"system: {field} begins with another system message"
        raise InputError(problem, at=place, fix="keep one of the two")
    return Example(place, tuple(messages))


def _from_messages(fields: Mapping[str, Any], place: str) -> Example:
    system = _optional_text(fields, "system", place)
    return _conversation(_turns(fields, "messages", place), place, "messages", system)


def _from_conversations(fields: Mapping[str, Any], place: str) -> Example:
    system = _optional_text(fields, "system", place)
    return _conversation(_turns(fields, "conversations", place), place, "conversations", system)


def _from_instruction(fields: Mapping[str, Any], place: str) -> Example:
    instruction = _text(fields["instruction"], place, "instruction")
    further = _optional_text(fields, "input", place)
    system = _optional_text(fields, "system", place)
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    history = fields.get("history")
    for index, pair in enumerate(_list(history, place, "history") if history else []):
        turn = _list(pair, place, f"history[{index}]")
        if len(turn) != 2:
            problem = f"history[{index}]: expected [user, answer], got {len(turn)} entries"
            raise InputError(problem, at=place, fix="write pairs")
        for role, content in zip(("user", "assistant"), turn, strict=True):
            messages.append({"role": role, "content": _text(content, place, f"history[{index}]")})
    request = "\n".join(part for part in (instruction, further) if part)
    messages.append({"role": "user", "content": request})
    messages.append({"role": "assistant", "content": _text(fields["output"], place, "output")})
    return Example(place, tuple(messages))


def _from_prompt(fields: Mapping[str, Any], place: str) -> Example:
    parts: list[Message] = []
    for name, role in (("prompt", "user"), ("completion", "assistant")):
        value = fields[name]
        if isinstance(value, str) or not isinstance(value, list | tuple):
            parts.append({"role": role, "content": _text(value, place, name)})
        else:  # TRL's conversational form: both are lists of messages
            parts += _turns(fields, name, place)
    return _conversation(parts, place, "prompt", _optional_text(fields, "system", place))


def _from_text(fields: Mapping[str, Any], place: str) -> Example:
    return Example(place, text=_text(fields["text"], place, "text"))


LAYOUTS = {
    row.name: row
    for row in (
        Layout("messages", ("messages",), ("system",), _from_messages),
        Layout("conversations", ("conversations",), ("system",), _from_conversations),
        Layout("instruction", ("instruction", "output"), ("input", "system", "history"), _from_instruction),
        Layout("prompt", ("prompt", "completion"), ("system",), _from_prompt),
        Layout("text", ("text",), (), _from_text),
    )
}
