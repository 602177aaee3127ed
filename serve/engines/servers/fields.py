"""Fields of a server's JSON, read by their meaning: a server may put any value in any place.

Each function takes whatever stands there and gives what is usable of it. Servers differ in these places:
Mistral's and Gemini's content is a list of parts, proxies send null for an empty choice, some write numbers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

DEEPEST = 20  # parts within parts
ANSWER = ("content", "refusal")  # where a message or a delta keeps its text, the first that has some
REASONING = ("reasoning_content", "reasoning", "thinking", "reasoning_text", "reasoning_details")
_INNER = ("text", "content", "value", "refusal", "output_text")  # where a part of a list keeps its text


def parsed(raw: bytes | str) -> Any:
    """The JSON value of a text.

    Raises:
        ValueError: it is not JSON, or so deeply nested that nobody can have meant it.
    """
    try:
        # Bytes that are no UTF-8 are replaced: half of a character is no reason to lose an answer.
        return json.loads(raw if isinstance(raw, str) else raw.decode("utf-8-sig", errors="replace"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def fields(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def rows(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list, or a single object as a list of one."""
    found = value if isinstance(value, list) else [value]
    return [row for row in found if isinstance(row, Mapping)]


def text(value: Any, depth: int = DEEPEST) -> str:
    """The text that a value stands for: a string, a number, parts that hold text; "" if there is none."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or value is None or depth == 0:
        return ""
    if isinstance(value, (int, float)):
        return json.dumps(value)
    if isinstance(value, Mapping):
        found = (text(value.get(key), depth - 1) for key in _INNER)
        return next(filter(None, found), "")
    return "".join(text(part, depth - 1) for part in value) if isinstance(value, list) else ""


def said(message: Mapping[str, Any]) -> tuple[str, str]:
    """What a message or a delta adds: (text of the answer, text of the reasoning)."""
    found = [_parts(message.get(key)) for key in ANSWER]
    answer = next(filter(None, (said for said, _ in found)), "")
    reasoning = next(filter(None, (thought for _, thought in found)), "")
    thought = next(filter(None, (text(message.get(key)) for key in REASONING)), "")
    return answer, thought or reasoning


def _parts(content: Any) -> tuple[str, str]:
    """Content with its parts told apart: text and reasoning."""
    if not isinstance(content, (list, Mapping)):
        return text(content), ""
    answer = reasoning = ""
    for part in content if isinstance(content, list) else [content]:
        kind = fields(part).get("type")
        if isinstance(kind, str) and kind.startswith(("thinking", "reasoning")):
            thoughts = (text(part.get(key)) for key in (*REASONING, *_INNER, "summary"))
            reasoning += next(filter(None, thoughts), "")
        else:
            answer += text(part)
    return answer, reasoning


def word(value: Any) -> str | None:
    """A reason as one short word, however it is wrapped; None if there is none."""
    if isinstance(value, Mapping):
        value = next(filter(None, (value.get(key) for key in ("type", "reason", "finish_reason"))), None)
    found = text(value, 1).strip() if isinstance(value, (str, int, float)) else ""
    return found[:60] or None


def count(value: Any) -> int | None:
    """A number of tokens, or None if it cannot be one."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def fault(body: Any) -> str | None:
    """What an error in one of the usual spellings says; None if the value is no error."""
    known = fields(body)
    if known.get("error"):
        return _told(known["error"])
    if known.get("object") == "error" or known.get("type") == "error":
        return _told(known)
    return None


def _told(error: Any, depth: int = DEEPEST) -> str:
    """The text of an error, or of several (FastAPI lists what is wrong with a request)."""
    several = [row for row in error if isinstance(row, Mapping)] if isinstance(error, list) else []
    if several and depth:
        return "; ".join(_told(row, depth - 1) for row in several[:3])[:300]
    for key in ("message", "error", "detail", "msg", "type"):
        value = fields(error).get(key)
        if value and depth and (found := _told(value, depth - 1)):
            return found
    return (text(error) or shortened(error))[:300]


def shortened(value: Any) -> str:
    """The beginning of a value as JSON, for messages."""
    try:
        return json.dumps(value)[:100]
    except RecursionError:
        return "a value that is nested too deeply"


def first_text(row: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The first of some fields that holds a text; "" if none does."""
    return next((value for key in keys if isinstance(value := row.get(key), str) and value), "")
