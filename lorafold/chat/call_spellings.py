"""The calls of tools in what a model wrote: each family has its own spelling, a row of a table here.

    Hermes, Qwen, Granite   <tool_call>{"name": …, "arguments": {…}}</tool_call>
    Qwen3-Coder             <tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>
    GLM                     <tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value></tool_call>
    Mistral                 [TOOL_CALLS][{"name": …, "arguments": {…}}], [TOOL_CALLS]NAME[ARGS]{…}
    DeepSeek                <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME ```json {…} ```<｜tool▁call▁end｜>
    Gemma                   <|tool_call>call:NAME{KEY:<|"|>VALUE<|"|>,KEY:2}<tool_call|>
    Llama 3                 {"name": …, "parameters": {…}} and nothing else, also behind <|python_tag|>

What cannot be read stays text: nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from lorafold.chat.calls import arguments_of
from lorafold.chat.dialogue import ToolCall, calls_of, name_of
from lorafold.chat.sandbox import Message

_ARGUMENTS = ("arguments", "parameters")
_GEMMA_QUOTES = r'<\|"\|>|<escape>'

_Found = list[tuple[str, Any]]  # names and arguments


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _named(value: Any) -> tuple[str, Any] | None:
    """A call as JSON, if the value is one."""
    if isinstance(value, Mapping) and isinstance(value.get("name"), str) and value["name"]:
        arguments = next((value[key] for key in _ARGUMENTS if key in value), None)
        arguments = _json(arguments) if isinstance(arguments, str) else arguments
        if isinstance(arguments, dict):
            return value["name"], arguments
    return None


def _listed(text: str) -> _Found:
    """JSON of one call or of a list of them."""
    value = _json(text.strip())
    rows = [_named(row) for row in (value if isinstance(value, list) else [value])]
    return [row for row in rows if row is not None] if all(rows) else []


def _tagged(key: str, value: str) -> Callable[[str], _Found]:
    """A name, and arguments between tags; a value is JSON if it can be, else text."""

    def read(text: str) -> _Found:
        pairs = re.findall(f"{key}{value}", text, re.DOTALL)
        bare = re.sub(f"{key}{value}", "", text, flags=re.DOTALL)
        name = re.fullmatch(r"\s*(?:<function=)?([\w.:-]+)>?\s*(?:</function>)?\s*", bare)
        if name is None:
            return []
        return [(name[1], {key: _value(told) for key, told in pairs})]

    return read


def _value(text: str) -> Any:
    found = _json(text.strip())
    return text.strip("\n") if found is None and text.strip() != "null" else found


def _gemma(text: str) -> _Found:
    """`NAME{KEY:VALUE,…}`: keys without quotes, texts between marks of their own."""
    name, brace, rest = text.partition("{")
    if not brace or not name.strip():
        return []
    said: dict[str, str] = {}

    def keep(match: re.Match[str]) -> str:
        said[f"\0{len(said)}"] = match[1]
        return f'"\\u0000{len(said) - 1}"'

    plain = re.sub(f"(?:{_GEMMA_QUOTES})(.*?)(?:{_GEMMA_QUOTES})", keep, rest, flags=re.DOTALL)
    plain = re.sub(r"(?<=[:\[,])None\b", "null", plain)  # the template prints Python's
    value = _json("{" + re.sub(r"([{,]\s*|^\s*)([\w.-]+)\s*:", r'\1"\2":', plain))
    return [(name.strip(), _put_back(value, said))] if isinstance(value, dict) else []


def _put_back(value: Any, said: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return said.get(value, value)
    if isinstance(value, dict):
        return {key: _put_back(item, said) for key, item in value.items()}
    return [_put_back(item, said) for item in value] if isinstance(value, list) else value


def _mistral(text: str) -> _Found:
    name, marked, arguments = text.partition("[ARGS]")
    if not marked:
        return _listed(text)
    value = _json(arguments.strip())
    return [(name.partition("[CALL_ID]")[0].strip(), value)] if isinstance(value, dict) else []


def _deepseek(text: str) -> _Found:
    first, _, second = text.partition("<｜tool▁sep｜>")
    name, arguments = first, second
    if first.strip() == "function":
        name, _, arguments = second.partition("\n")
    value = _json(re.sub(r"^\s*```(?:json)?\s*|\s*```\s*$", "", arguments.strip()))
    return [(name.strip(), value)] if isinstance(value, dict) and name.strip() else []


# How a call is written: the pattern, whose group is what stands within, and who reads that.
_SPELLINGS: tuple[tuple[re.Pattern[str], tuple[Callable[[str], _Found], ...]], ...] = tuple(
    (re.compile(pattern, re.DOTALL), readers)
    for pattern, readers in (
        (
            r"<tool_call>(.*?)</tool_call>",
            (
                _listed,
                _tagged(r"<arg_key>\s*(.*?)\s*</arg_key>", r"\s*<arg_value>(.*?)</arg_value>"),
                _tagged(r"<parameter=([^>]*)>", r"(.*?)</parameter>"),
            ),
        ),
        (r"<｜tool▁call▁begin｜>(.*?)<｜tool▁call▁end｜>", (_deepseek,)),
        (r"<\|tool_call>call:(.*?)<tool_call\|>", (_gemma,)),
        (r"<start_function_call>call:(.*?)<end_function_call>", (_gemma,)),
        (r"\[TOOL_CALLS\](.*?)(?=\[TOOL_CALLS\]|</s>|$)", (_mistral,)),
    )
)
# Marks around calls that say nothing once the calls are told apart.
_MARKS = re.compile(
    r"<｜tool▁calls▁(?:begin|end)｜>|<\|python_tag\|>|<\|tool_response>|<\|?(?:im_end|eot_id|eom_id)\|>|</s>"
)


def split_calls(text: str) -> tuple[str, list[ToolCall]]:
    """Tell an answer's text from the calls in it.

    Args:
        text: what a model wrote, its control tokens spelled out.

    Returns:
        The text without the calls, and the calls in order; the text as it was if there are none.
    """
    for pattern, readers in _SPELLINGS:
        found: _Found = []
        for match in pattern.finditer(text):
            read = next(filter(None, (reader(match[1]) for reader in readers)), [])
            if not read:
                return text, []  # half a call is none: what was meant is not known
            found += read
        if found:
            return _MARKS.sub("", pattern.sub("", text)).strip(), _calls(found)
    bare = _MARKS.sub("", text).strip()
    rows = [_listed(part) for part in (re.split(r";\s*(?=\{)", bare) if bare.startswith(("{", "[")) else ())]
    if rows and all(rows):
        return "", _calls([call for row in rows for call in row])
    return text, []


def _calls(found: _Found) -> list[ToolCall]:
    return [
        {"id": f"call{index:05}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(found)
    ]


def told(call: ToolCall) -> str:
    """A call as a reader takes it in: `get_weather(city="Köln", days=2)`."""
    arguments = arguments_of(call)
    if not isinstance(arguments, dict):
        return f"{name_of(call)}({arguments})"
    pairs = (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in arguments.items())
    return f"{name_of(call)}({', '.join(pairs)})"


def told_message(message: Message) -> str:
    """What a message says and calls, for a reader."""
    said = [str(message.get("content") or "")] * bool(message.get("content"))
    return "\n".join([*said, *(f"→ {told(call)}" for call in calls_of(message))])
