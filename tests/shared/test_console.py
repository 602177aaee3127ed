"""What reaches the terminal: nothing that a terminal would obey."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafold.console import live_progress, print_error, sanitize


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, 中文 and é", "plain text, 中文 and é"),
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("\x1b[2Jcleared", "␛[2Jcleared"),
        ("a\rb", "a␍b"),
        ("nul\x00del\x7f", "nul␀del␡"),
        ("c1 \x9b31m", "c1 <U+009B>31m"),
        ("\u202eright to left", "<U+202E>right to left"),
        ("\u2066isolate\u2069", "<U+2066>isolate<U+2069>"),
        ("line\u2028separator", "line<U+2028>separator"),
        ("new\nline\tand tab", "new\nline\tand tab"),
        ("👩‍🔬 joined", "👩‍🔬 joined"),
        ("full\u3000width", "full\u3000width"),
        ("lone \ud800", "lone <U+D800>"),
    ],
)
def test_controls_become_visible(text: str, shown: str) -> None:
    assert sanitize(text) == shown


@given(st.text(st.characters(), max_size=200))
def test_nothing_a_terminal_obeys_is_left(text: str) -> None:
    shown = sanitize(text)
    assert not any(ord(char) < 0x20 and char not in "\n\t" for char in shown)
    assert not any(0x7F <= ord(char) <= 0x9F for char in shown)
    assert not any(char in shown for char in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    shown.encode("utf-8")
    assert sanitize(shown) == shown


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_error("a\nb\x1b[31m: wrong; fix: mend it")
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "error: a␊b␛[31m: wrong; fix: mend it\n"


def test_progress_without_a_terminal_is_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with live_progress() as progress:
        for done in range(101):
            progress("write", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "write …" and lines[1].startswith("write: ") and len(lines) == 2
