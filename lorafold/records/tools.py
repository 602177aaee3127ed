"""Tools, calls and results as data sets write them -> as OpenAI writes them, checked.

Definitions stand beside the conversation, in `tools` (or `functions`), as a list or as JSON text of one. A
call stands in `tool_calls` (or `function_call`) of an assistant's turn, or is a turn of its own (sharegpt's
`function_call`), whose content is JSON. A result is a turn of the role `tool` (or `observation`, …).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorafold.chat.dialogue import Tool, ToolCall, calls_of, name_of
from lorafold.chat.sandbox import Message
from lorafold.errors import InputError

DEFINED = ("tools", "functions")  # fields of a record with definitions, today's name first
CALLS = ("tool_calls", "function_call")  # fields of a turn with calls, today's name first
RESULT_OF = "tool_call_id"  # field of a result with the call that it answers
_ARGUMENTS = ("arguments", "parameters", "args", "input")  # where a call keeps them, the first that it has


def read_tools(record: Mapping[str, Any], place: str) -> tuple[Tool, ...]:
    """The definitions of a record.

    Raises:
        InputError: they are not JSON, or one of them has no name.
    """
    field = next((name for name in DEFINED if defines(record.get(name))), None)
    if field is None:
        return ()
    rows = _parsed(record[field], field, place)
    tools = rows if isinstance(rows, list) else [rows]
    return tuple(_tool(row, f"{field}[{index}]", place) for index, row in enumerate(tools))


def tools_in(path: Path) -> tuple[Tool, ...]:
    """The definitions of a JSON file: a list as OpenAI takes it, or an object with one in `tools`.

    Raises:
        InputError: it cannot be read, or holds no functions.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", at=path, fix="check the path") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON ({error})", at=path, fix="write a JSON list of definitions") from error
    held = value if isinstance(value, dict) and any(name in value for name in DEFINED) else {"tools": value}
    found = read_tools(held, str(path))
    if not found:
        problem = "there is no definition of a function in it"
        raise InputError(problem, at=path, fix='write [{"type": "function", "function": {"name": …}}]')
    return found


def defines(value: Any) -> bool:
    """Whether a column that is called like definitions holds some, and not a craftsman's tools."""
    if isinstance(value, str):
        try:
            return defines(json.loads(value))
        except (ValueError, RecursionError):
            return value.lstrip().startswith(("[", "{"))  # damaged ones, which `read_tools` names
    rows = value.tolist() if hasattr(value, "tolist") else value
    rows = rows if isinstance(rows, list | tuple) else [rows]
    return any(_named(row) or (isinstance(row, str) and defines(row)) for row in rows)


def _named(row: Any) -> bool:
    return isinstance(row, Mapping) and bool(name_of(dict(row)))


def _tool(row: Any, field: str, place: str) -> Tool:
    if isinstance(row, str):
        row = _parsed(row, field, place)
    if not _named(row):
        problem = f"{field}: expected a function with a name"
        fix = 'write {"type": "function", "function": {"name": …, "description": …, "parameters": {…}}}'
        raise InputError(problem, at=place, fix=fix)
    if isinstance(row.get("function"), Mapping):
        return {"type": "function", **row}
    return {"type": "function", "function": {key: value for key, value in row.items() if key != "type"}}


def read_calls(value: Any, field: str, place: str) -> list[ToolCall]:
    """The calls of a turn.

    Args:
        value: one call or a list of them, or JSON text.
        field: where it stands in the record.
        place: of the record.

    Raises:
        InputError: a call has no name, or its arguments are no object.
    """
    rows = _parsed(value, field, place)
    rows = rows if isinstance(rows, list) else [rows]
    if not rows:
        raise InputError(f"{field}: there is no call in it", at=place, fix="write one, or remove the turn")
    return [
        _call(row, f"{field}[{index}]" if len(rows) > 1 else field, place) for index, row in enumerate(rows)
    ]


def _call(row: Any, field: str, place: str) -> ToolCall:
    row = _parsed(row, field, place) if isinstance(row, str) else row
    if not _named(row):
        fix = 'write {"name": …, "arguments": {…}}'
        raise InputError(f"{field}: expected a call with a name", at=place, fix=fix)
    inner = row.get("function")
    function: Mapping[str, Any] = inner if isinstance(inner, Mapping) else row
    arguments: Any = next((function[key] for key in _ARGUMENTS if function.get(key) is not None), {})
    if isinstance(arguments, str):
        _check_object(arguments or "{}", f"{field}.arguments", place)
        arguments = arguments or "{}"
    elif isinstance(arguments, Mapping):
        arguments = dict(arguments)
    else:
        problem = f"{field}.arguments: expected an object or its JSON text"
        raise InputError(problem, at=place, fix="write one")
    call: ToolCall = {"type": "function", "function": {"name": name_of(dict(row)), "arguments": arguments}}
    return {"id": row["id"], **call} if isinstance(row.get("id"), str) and row["id"] else call


def _check_object(text: str, field: str, place: str) -> None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{field}: not JSON ({error})", at=place, fix="write a JSON object") from error
    if not isinstance(found, dict):
        raise InputError(
            f"{field}: JSON, but not an object", at=place, fix='write {"name of argument": value}'
        )


def _parsed(value: Any, field: str, place: str) -> Any:
    """A value, or what its JSON text holds; a list of any kind as a list."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{field}: not JSON ({error})", at=place, fix="write JSON") from error
    if hasattr(value, "tolist"):  # a numpy array, from parquet through pandas
        value = value.tolist()
    return list(value) if isinstance(value, tuple) else value


def linked(messages: Sequence[Message], field: str, place: str) -> list[Message]:
    """The messages with every call and its result tied together by an identifier and a name.

    Results without an identifier answer the calls before them in order.

    Raises:
        InputError: a result answers no call, or a call has no result although the conversation goes on.
    """
    found: list[Message] = []
    waiting: list[ToolCall] = []
    count = 0
    for index, message in enumerate(messages):
        at = f"{field}[{index}]"
        if message["role"] == "tool":
            call = _answered(message, waiting, at, place)
            waiting.remove(call)
            message = {**message, "name": name_of(call), RESULT_OF: call["id"]}
        elif waiting:
            problem = f"{at}: no result of the call of {name_of(waiting[0])!r} stands before it"
            raise InputError(problem, at=place, fix="add a turn of the role 'tool' behind the call")
        if calls := calls_of(message):
            named = [{"id": f"call{count + number:05}", **call} for number, call in enumerate(calls)]
            count += len(calls)
            message, waiting = {**message, "tool_calls": named}, list(named)
        found.append(message)
    return found


def _answered(message: Message, waiting: Sequence[ToolCall], field: str, place: str) -> ToolCall:
    """The call that a result answers: the one it names, or the first that waits."""
    if not waiting:
        problem = f"{field}: the result of a tool that no turn before it calls"
        raise InputError(problem, at=place, fix="add the call, or remove the turn")
    if (identifier := message.get(RESULT_OF)) is not None:
        for call in waiting:
            if call["id"] == identifier:
                return call
        known = ", ".join(repr(call["id"]) for call in waiting)
        problem = f"{field}.{RESULT_OF}: no call {identifier!r} waits for a result (these do: {known})"
        raise InputError(problem, at=place, fix="write the call's id")
    named = [call for call in waiting if name_of(call) == message.get("name")]
    return (named or list(waiting))[0]
