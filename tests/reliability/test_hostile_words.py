"""Command lines with files of strangers: the right exit code, one line, nothing left behind."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hostile.words import Words, all_words, given


def _outputs(out: Path) -> list[Path]:
    return [out / "made", out / "report.html"]


def _wrong(tmp_path: Path, every: int) -> tuple[Counter[str], list[str]]:
    home, out = tmp_path / "files", tmp_path / "out"
    home.mkdir()
    out.mkdir()
    seen, wrong = Counter[str](), []
    for number, words in enumerate(all_words(home, out)):
        if number % every == 0:
            seen[words.name.partition(":")[0]] += 1
            if problem := given(words, _outputs(out)):
                wrong.append(f"{words.name}: {problem}")
    return seen, wrong


@pytest.mark.slow
def test_every_command_ends_as_it_must(tmp_path: Path) -> None:
    seen, wrong = _wrong(tmp_path, every=4)
    assert seen.total() > 200 and len(seen) > 10
    assert wrong == []


def test_the_judge_tells_what_is_wrong(tmp_path: Path) -> None:
    """A command that ends otherwise, and one that writes what it should not."""
    missing = ("inspect", str(tmp_path / "nothing"))
    assert given(Words("", missing, 3), []) == ""
    assert "ended with 3, expected 4" in given(Words("", missing, 4), [])
    (tmp_path / "made").mkdir()
    assert given(Words("", missing, 3), [tmp_path / "made"]) == "left made"
