"""What reaches the terminal: nothing that a terminal would obey."""

from __future__ import annotations

import os
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafold import console
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


def test_progress_in_a_pipe_tells_the_time_left_at_the_pace_of_this_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 40.0, 100.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    show = console._LineProgress()
    show("train", 60, 100)  # resumed: 60 steps were another run's
    show("train", 70, 100, "loss 1.0")
    assert capsys.readouterr().err.splitlines()[-1] == "train 70%, 2:00 left, loss 1.0"


def screen(width: int, program: str) -> list[str]:
    """What a terminal of this width shows of a program's output, without colours."""
    pexpect = pytest.importorskip("pexpect")
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "xterm"}
    size = (30, width)
    child = pexpect.spawn(sys.executable, ["-c", program], dimensions=size, encoding="utf-8", env=environment)
    child.expect(pexpect.EOF, timeout=60)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", child.before)
    return [line.rstrip("\r") for line in plain.splitlines()]


RESULTS = """
from lorafold.console import print_lines
print_lines([("passed", "word " * 30), ("note", "short"), ("next", "lorafold train" + " --flag" * 9)])
"""
PROGRESS = """
from lorafold.console import live_progress
with live_progress() as show:
    show("read the data", 1, 1, "18 sequences")
    show("train", 2, 100, "loss 4.164, lr 1.7e-04, 22 tok/s, 4.2 GiB and more than there is room for here")
"""


def test_results_at_a_terminal_hang_under_their_text() -> None:
    lines = screen(60, RESULTS)
    assert lines[0].startswith("passed  word") and lines[1].startswith("        word")
    assert any(line.startswith("note    short") for line in lines)
    # A command is longer than the screen and left to the terminal to break: copied, it is one line.
    assert "next    lorafold train" + " --flag" * 9 in lines


@pytest.mark.parametrize("width", [80, 120])
def test_figures_keep_their_columns_beside_a_long_note(width: int) -> None:
    lines = [line for line in screen(width, PROGRESS) if line.strip()][::-1]
    read = next(line for line in lines if "read the data" in line)
    train = next(line for line in lines if "train" in line)
    assert "1/1" in read and "18 sequences" in read
    assert "2/100" in train and "loss 4.164" in train and len(train) <= width
