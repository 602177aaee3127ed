"""Which form of calls a chat template reads, and what of tools it writes: found by rendering words.

Templates disagree. Qwen's and Llama's write `arguments | tojson` and want an object; DeepSeek's join a text;
some print the calls only if the content is null; Mistral's takes no identifiers but of nine letters. What
transformers' documentation asks for (an object) is tried first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import Any

from lorafold.chat.dialogue import Tool, ToolCall, calls_of
from lorafold.chat.sandbox import Job, Message, render_many
from lorafold.errors import UnsafeInputError

# What a template may leave out, in the order of `CallForm`.
TOOL_PARTS = ("the definitions of tools", "tool calls", "tool results")
_IDENTIFIER = 9  # characters that Mistral's templates ask of a call's identifier

_NAME, _KEY, _VALUE, _TOLD = "zqnameqz", "zqkeyqz", "zqvalueqz", "zqtoldqz"
_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": _NAME,
        "description": "Looks it up.",
        "parameters": {
            "type": "object",
            "properties": {_KEY: {"type": "string", "description": "What to look up."}},
            "required": [_KEY],
        },
    },
}


@dataclass(frozen=True, slots=True)
class CallForm:
    """The form in which a template reads calls, and what it writes of tools.

    Attributes:
        definitions: it writes the definitions of tools.
        calls: it writes calls; so does the form, with all their arguments.
        results: it writes what tools answered.
        text: arguments are JSON text, not an object.
        null: the content of a message that only calls is null, not "".
        short: identifiers have nine letters or figures.
    """

    definitions: bool
    calls: bool
    results: bool
    text: bool = False
    null: bool = False
    short: bool = False


@lru_cache(maxsize=256)
def call_form(
    source: str, variables: tuple[tuple[str, str], ...], style: str, parts: bool, origin: str
) -> CallForm:
    """Find how a template takes calls.

    Args:
        source: the Jinja.
        variables: the special tokens that it is rendered with.
        style: further variables that it needs, as JSON.
        parts: it reads contents as lists of parts.
        origin: where it came from, for messages.

    Raises:
        InputError: it has a syntax error.
        UnsafeInputError: it left its sandbox or its limits.
    """
    said = {**dict(variables), **json.loads(style), "tools": [_TOOL], "add_generation_prompt": True}
    ask: Message = {"role": "user", "content": "Hello"}

    def rendered(chat: Sequence[Message]) -> str | None:
        job = Job(_parted(chat, parts), said, "2026-01-02T03:04:05")
        try:
            (text,) = render_many(source, [job], origin)
        except UnsafeInputError:  # Kimi K2 changes a list, which transformers' sandbox refuses too
            return None
        return text if isinstance(text, str) else ""

    defined = rendered([ask]) or ""
    definitions = _NAME in defined and _KEY in defined
    best = CallForm(definitions, False, False)
    for short, text, null in product((False, True), repeat=3):
        form = CallForm(definitions, False, False, text, null, short)
        if (whole := rendered([ask, *_round(form)])) is None:
            return best
        calls, results = _written(whole, definitions)
        if calls and results:
            return replace(form, calls=True, results=True)
        if calls and not best.calls:  # better than a form in which nothing is written
            best = replace(form, calls=True)
    return best


def _round(form: CallForm) -> list[Message]:
    """A call, its result and an answer, in a form."""
    call: ToolCall = {
        "id": "call00001" if form.short else "call_Zq1",
        "type": "function",
        "function": {"name": _NAME, "arguments": {_KEY: _VALUE}},
    }
    turn: Message = {"role": "assistant", "content": "", "tool_calls": [call]}
    told: Message = {"role": "tool", "content": _TOLD, "name": _NAME, "tool_call_id": call["id"]}
    return [*as_wanted([turn, told], form)]


def _written(text: str, definitions: bool) -> tuple[bool, bool]:
    """Whether a rendering holds the call and the result.

    A definition holds name and key too, and only the call the value. Python's own spelling of an object is no
    call, and neither is JSON within a JSON text.
    """
    wrong = (f"'{_KEY}'", f'\\"{_KEY}', "None<", ">None", "\nNone")
    called = _VALUE in text and text.count(_NAME) > definitions and not any(word in text for word in wrong)
    return called, called and _TOLD in text


def _parted(messages: Sequence[Message], parts: bool) -> list[Message]:
    if not parts:
        return list(messages)
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in messages
    ]


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def as_wanted(messages: Sequence[Message], form: CallForm) -> Iterator[Message]:
    """The messages of a conversation in the form that a template reads.

    Args:
        messages: with calls and results.
        form: of the template.

    Yields:
        The messages; those without calls and results as they are.
    """
    short: dict[str, str] = {}
    for message in messages:
        if calls := calls_of(message):
            changed = [_called(call, form, short) for call in calls]
            content = message.get("content") or ""
            message = {**message, "tool_calls": changed, "content": content}
            if form.null and not str(content).strip():
                message["content"] = None
        elif message.get("role") == "tool" and message.get("tool_call_id") in short:
            message = {**message, "tool_call_id": short[message["tool_call_id"]]}
        yield message


def _called(call: ToolCall, form: CallForm, short: dict[str, str]) -> ToolCall:
    """One call in a form; the identifiers that had to be shortened are entered in `short`."""
    inner = call.get("function")
    function: Mapping[str, Any] = inner if isinstance(inner, dict) else call
    arguments = function.get("arguments")
    if form.text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not form.text:
        arguments = arguments_of(call)
    changed = {**call, "function": {**function, "arguments": arguments}}
    name = call.get("id")
    if form.short and isinstance(name, str) and not (len(name) == _IDENTIFIER and name.isalnum()):
        changed["id"] = short.setdefault(name, f"call{len(short):05}")
    return changed


def arguments_of(call: ToolCall) -> Any:
    """The arguments of a call as an object; as they are if they are no JSON text of one."""
    inner = call.get("function")
    arguments = (inner if isinstance(inner, dict) else call).get("arguments")
    if isinstance(arguments, str):
        try:
            found = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        return found if isinstance(found, dict) else arguments
    return {} if arguments is None else arguments
