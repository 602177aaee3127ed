"""Texts that a terminal would obey, split anywhere: a sample of `tools/faults/split_texts.py`."""

from __future__ import annotations

import pytest
from tool_modules import tool

split_texts = tool("faults/split_texts.py")


def test_nothing_is_left_that_a_terminal_obeys() -> None:
    assert split_texts.texts(3000, seed=1) == (3000, 0)


def test_the_count_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same texts without the sanitiser are full of them."""
    monkeypatch.setattr(split_texts, "sanitize", lambda text: text)
    assert split_texts.texts(100, seed=1)[1] > 100
