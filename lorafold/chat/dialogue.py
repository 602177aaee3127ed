"""A conversation: its messages in order, and the tools that the assistant may call.

A message is a dict with "role" (system, user, assistant, tool) and "content" (a text). An assistant's may
have "tool_calls", a tool's result has "name" and "tool_call_id". All of it is written as OpenAI does:

    tools       [{"type": "function", "function": {"name", "description", "parameters"}}]
    tool_calls  [{"id", "type": "function", "function": {"name", "arguments"}}]

`arguments` are an object or its JSON text; `calls.as_wanted` gives each template the form that it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, overload

from lorafold.chat.sandbox import Message

Tool = dict[str, Any]
ToolCall = dict[str, Any]


class Dialogue(tuple[Message, ...]):
    """Messages with the tools that they may call.

    It is a tuple of messages, so that whoever knows nothing of tools takes it as such; a part of it keeps the
    tools.

    Args:
        messages: in order.
        tools: definitions, as OpenAI writes them.
    """

    tools: tuple[Tool, ...]

    def __new__(cls, messages: Iterable[Message] = (), tools: Iterable[Tool] = ()) -> Dialogue:
        """A conversation; messages that are one already do not bring their tools."""
        made = super().__new__(cls, messages)
        made.tools = tuple(tools)
        return made

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> Message: ...
    @overload
    def __getitem__(self, index: slice[Any, Any, Any], /) -> Dialogue: ...
    def __getitem__(self, index: SupportsIndex | slice[Any, Any, Any], /) -> Message | Dialogue:
        """A message, or a part of the conversation with its tools."""
        if isinstance(index, slice):
            return Dialogue(super().__getitem__(index), self.tools)
        return super().__getitem__(index)


def tools_of(messages: Sequence[Message]) -> tuple[Tool, ...]:
    """The tools of a conversation; none of a plain list of messages."""
    return messages.tools if isinstance(messages, Dialogue) else ()


def with_tools(messages: Sequence[Message]) -> bool:
    """Whether a conversation has tools, calls or results."""
    return bool(tools_of(messages)) or any(
        message.get("role") == "tool" or calls_of(message) for message in messages
    )


def but(messages: Sequence[Message], changed: Iterable[Message]) -> Dialogue:
    """Other messages with the tools of a conversation."""
    return Dialogue(changed, tools_of(messages))


def calls_of(message: Message) -> list[ToolCall]:
    """The calls of a message."""
    calls = message.get("tool_calls")
    return [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []


def name_of(called: ToolCall | Tool) -> str:
    """The name of the function that is called or defined."""
    function = called.get("function")
    return str((function if isinstance(function, dict) else called).get("name") or "")


def says(message: Message) -> bool:
    """Whether a message says something: a text, or a call."""
    return bool(str(message.get("content") or "").strip() or calls_of(message))
