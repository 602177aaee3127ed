"""Conversations with tools that the tests share, as OpenAI writes them."""

from __future__ import annotations

import json
from typing import Any

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather <now> & later.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "A city."},
                "days": {"type": "integer", "description": "How many days."},
            },
            "required": ["city"],
        },
    },
}
ARGUMENTS = {"city": "Köln", "days": 2}


def call(identifier: str = "call00000", *, text: bool = False, name: str = "get_weather") -> dict[str, Any]:
    """A call, with its arguments as an object or as JSON text."""
    arguments = json.dumps(ARGUMENTS, ensure_ascii=False) if text else ARGUMENTS
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


def tool_chat(*, text: bool = False, content: str | None = "", system: bool = True) -> list[dict[str, Any]]:
    """A question, a call, its result, and two answers."""
    return [
        *([{"role": "system", "content": "Be kind."}] if system else []),
        {"role": "user", "content": "Weather in Köln?"},
        {"role": "assistant", "content": content, "tool_calls": [call(text=text)]},
        {
            "role": "tool",
            "content": '{"degrees": 7, "sky": "grey"}',
            "name": "get_weather",
            "tool_call_id": "call00000",
        },
        {"role": "assistant", "content": "Seven degrees."},
        {"role": "user", "content": "Thanks"},
        {"role": "assistant", "content": "Welcome!"},
    ]
