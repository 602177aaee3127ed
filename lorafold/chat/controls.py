"""Control tokens in text: where they stand, and how what people typed is kept from looking like one."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import Any

from lorafold.chat.dialogue import Dialogue, tools_of
from lorafold.chat.sandbox import Message


def split_controls(text: str, controls: frozenset[str]) -> list[tuple[str, bool]]:
    """Cut a text at control tokens, the longest first; (piece, is a control token)."""
    pattern = _pattern(controls)
    if pattern is None:
        return [(text, False)] if text else []
    return [(piece, index % 2 == 1) for index, piece in enumerate(pattern.split(text)) if piece]


_patterns: dict[frozenset[str], re.Pattern[str] | None] = {}


def _pattern(controls: frozenset[str]) -> re.Pattern[str] | None:
    if controls not in _patterns:
        longest_first = sorted((token for token in controls if token), key=lambda token: (-len(token), token))
        joined = "|".join(map(re.escape, longest_first))
        _patterns[controls] = re.compile(f"({joined})") if joined else None
    return _patterns[controls]


def neutralised(messages: Sequence[Message], controls: frozenset[str]) -> tuple[Dialogue, dict[str, str]]:
    """The conversation with control-token text replaced by random words, and the words' meanings.

    Args:
        messages: the conversation.
        controls: the tokenizer's control tokens.

    Returns:
        The messages and tools without any, and word -> what it stands for.
    """
    pattern, words = _pattern(controls), dict[str, str]()
    if pattern is None:
        return Dialogue(messages, tools_of(messages)), words

    def word(match: re.Match[str]) -> str:
        name = f"Zw{secrets.token_hex(8)}wZ"
        words[name] = match[0]
        return name

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(word, value)
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        return [clean(item) for item in value] if isinstance(value, list) else value

    cleaned = [{**clean(message), "role": message["role"]} for message in messages]
    return Dialogue(cleaned, map(clean, tools_of(messages))), words


def control_text(messages: Sequence[Message], controls: frozenset[str]) -> list[str]:
    """Control tokens that people typed: what an engine that takes the prompt as one text would obey.

    Args:
        messages: the conversation.
        controls: the tokenizer's control tokens.

    Returns:
        Those in the contents, each once, in order.
    """
    return list(dict.fromkeys(neutralised(messages, controls)[1].values()))
