"""Calls of tools in a server's answer, put together from their parts, and shown as text.

OpenAI's stream sends a call in parts that carry its index, the arguments as pieces of JSON text; Ollama and
whole bodies send it at once, some with the arguments as an object.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lorafold.serve.engines.servers.fields import fields, rows, text


class Calls:
    """The calls of one answer while they arrive."""

    def __init__(self) -> None:
        self._calls: dict[object, list[str]] = {}  # by index: name, arguments

    def __bool__(self) -> bool:
        return bool(self._calls)

    def add(self, message: Mapping[str, Any]) -> None:
        """Take in the calls, or parts of them, of a message or delta."""
        old = rows(message.get("function_call"))  # one at most, OpenAI's before 2023
        for row in old or rows(message.get("tool_calls")):
            index, function = 0 if old else row.get("index"), fields(row.get("function")) or row
            key = index if isinstance(index, int) else f"call {len(self._calls)}"
            call = self._calls.setdefault(key, ["", ""])
            call[0] = call[0] or text(function.get("name"))
            given = function.get("arguments")
            call[1] += json.dumps(given, ensure_ascii=False) if isinstance(given, Mapping) else text(given)

    @property
    def shown(self) -> str:
        """The calls as text, one a line; those without a name are none."""
        return "\n".join(f"[calls {name}({given})]" for name, given in self._calls.values() if name)
