"""Command lines with files of strangers: the right exit code, one line, nothing left behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hostile.words import Words, given, judged


@pytest.mark.slow
def test_every_command_ends_as_it_must(tmp_path: Path) -> None:
    seen, wrong = Counter[str](), []
    for words, problem in judged(tmp_path, lambda number, _: number % 4 == 0):
        seen[words.kind] += 1
        if problem:
            wrong.append(f"{words.name}: {problem}")
    assert seen.total() > 200 and len(seen) > 10
    assert wrong == []


def test_the_judge_tells_what_is_wrong(tmp_path: Path) -> None:
    """A command that ends otherwise, and one that writes what it should not."""
    missing = ("inspect", str(tmp_path / "nothing"))
    assert given(Words("", missing, 3), []) == ""
    assert "ended with 3, expected 4" in given(Words("", missing, 4), [])
    (tmp_path / "made").mkdir()
    assert given(Words("", missing, 3), [tmp_path / "made"]) == "left made"


@pytest.mark.parametrize("code", [3, 4])
def test_what_one_command_leaves_is_no_fault_of_the_next(code: int, tmp_path: Path) -> None:
    words, report = Words("", ("inspect", str(tmp_path / "nothing")), code), tmp_path / "report.html"
    report.touch()
    assert given(words, [report]) and not report.exists()
