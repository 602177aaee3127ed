"""Texts that a terminal would obey, split anywhere: a sample of `tools/faults/split_texts.py`."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest
from oracles import REPOSITORY


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = REPOSITORY / "tools/faults/split_texts.py"
    spec = importlib.util.spec_from_file_location("split_texts", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["split_texts"] = module
    spec.loader.exec_module(module)
    return module


def test_nothing_is_left_that_a_terminal_obeys(tool: ModuleType) -> None:
    assert tool.texts(3000, seed=1) == (3000, 0)


def test_the_count_counts(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same texts without the sanitiser are full of them."""
    monkeypatch.setattr(tool, "sanitize", lambda text: text)
    assert tool.texts(100, seed=1)[1] > 100
