"""Calls of tools in a server's answer, put together from their parts.

OpenAI's stream sends a call in parts that carry its index, the arguments as pieces of JSON text; Ollama and
whole bodies send it at once, some with the arguments as an object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorafold.chat.dialogue import ToolCall
from lorafold.serve.engines.servers.fields import fields, rows, text


@dataclass(slots=True)
class _Arriving:
    """A call of which more may come."""

    name: str = ""
    identifier: str = ""
    arguments: str = ""


class Calls:
    """The calls of one answer while they arrive."""

    def __init__(self) -> None:
        self._calls: dict[object, _Arriving] = {}  # by index

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, message: Mapping[str, Any]) -> None:
        """Take in the calls, or parts of them, of a message or delta."""
        old = rows(message.get("function_call"))  # one at most, OpenAI's before 2023
        for row in old or rows(message.get("tool_calls")):
            index, function = 0 if old else row.get("index"), fields(row.get("function")) or row
            key = index if isinstance(index, int) else f"call {len(self._calls)}"
            call = self._calls.setdefault(key, _Arriving())
            name = function.get("name")
            call.name = call.name or (name if isinstance(name, str) else "")
            call.identifier = call.identifier or text(row.get("id"))
            given = function.get("arguments")
            whole = isinstance(given, Mapping)
            call.arguments += json.dumps(given, ensure_ascii=False) if whole else text(given)

    @property
    def found(self) -> list[ToolCall]:
        """The calls as OpenAI writes them; those without a name are none."""
        return [
            {
                "id": call.identifier or f"call{number:05}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments or "{}"},
            }
            for number, call in enumerate(self._calls.values())
            if call.name
        ]

    @property
    def shown(self) -> str:
        """The calls as text, one a line: of a model that was given no tools, nobody waits for them."""
        return "\n".join(
            f"[calls {call.name}({call.arguments})]" for call in self._calls.values() if call.name
        )
