"""`lorafold chat` in a pseudo-terminal: what it writes (pexpect), and what a terminal makes of it (tmux)."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect")

ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[()][0-9A-B]|[=>78])")
CHAT = ["-m", "lorafold", "chat"]


def environment(home: Path, **extra: str) -> dict[str, str]:
    return {
        **{key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "COLUMNS", "LINES")},
        "TERM": "xterm-256color",
        "LORAFOLD_HISTORY": str(home / "history"),
        "OMP_NUM_THREADS": "1",
        **extra,
    }


def plain(text: str) -> str:
    """What was written, without escape sequences."""
    return ESCAPES.sub("", text)


def assert_own_sequences_only(raw: str) -> None:
    """Nothing but what rich and prompt_toolkit themselves send: colours, cursor, erasing; no OSC, no C1."""
    rest = re.sub(r"\x1b\[\??[0-9;]*[ABCDGHJKhlm]|(?<=[› ])\x08", "", raw)
    found = re.search(r"[^\n\r\t\x20-\x7e\u00a0-\u2027\u202f-\u2065\u206a-\U0010ffff]", rest)
    assert not found, repr(rest[max(0, found.start() - 40) : found.start() + 40])
    # Only the line editor clears the screen below it or goes to a place; nothing clears the whole screen.
    assert not re.search(r"\x1b\[[0-9;]*(?:[23]J|H)", raw)


class Terminal:
    """A program in a pseudo-terminal, and what it has written."""

    def __init__(self, home: Path, *arguments: str, columns: int = 100, **extra: str) -> None:
        self.child = pexpect.spawn(
            sys.executable,
            [*CHAT, *arguments],
            dimensions=(40, columns),
            env=environment(home, **extra),
            encoding="utf-8",
            codec_errors="replace",
            cwd=str(home),
            timeout=60,
        )
        self.raw = ""
        self.child.delaybeforesend = None

    def read(self, text: str, timeout: float = 20) -> str:
        """Read until a text appears on the screen; returns what came since the last call, without escapes."""
        got, deadline = "", time.monotonic() + timeout
        while text not in re.sub(r"\s+", " ", plain(got)):
            try:
                got += self.child.read_nonblocking(65536, timeout=1)
            except pexpect.TIMEOUT:
                pass
            except pexpect.EOF:
                self.raw += got
                raise AssertionError(f"ended before {text!r}:\n{plain(self.raw)[-2000:]}") from None
            assert time.monotonic() < deadline, f"no {text!r} in:\n{plain(got)[-3000:]}"
        self.raw += got
        return plain(got)

    def type(self, line: str, text: str) -> str:
        """Type a line and read until a text appears."""
        self.child.send(line + "\r")
        return self.read(text)

    def ask(self, question: str) -> str:
        """Ask a question and read until all have answered: the next command waits for that."""
        self.child.send(question + "\r")
        return self.type("/help quit", "leave (also Ctrl-D)")

    def end(self) -> int:
        """Wait for the end; the exit code."""
        self.child.expect(pexpect.EOF, timeout=60)
        self.raw += self.child.before
        self.child.close()
        return int(self.child.exitstatus)


@contextlib.contextmanager
def terminal(home: Path, *arguments: str, columns: int = 100, **extra: str) -> Iterator[Terminal]:
    """A conversation that has begun; ended, however the test goes."""
    made = Terminal(home, *arguments, columns=columns, **extra)
    try:
        made.read("/help lists the commands")
        yield made
    finally:
        made.child.close(force=True)


class Screen:
    """A shell in tmux, a terminal emulator whose screen, title and clipboard can be looked at.

    Args:
        socket: of a tmux server of its own.
        columns: of the screen.
        lines: of the screen.
    """

    def __init__(self, socket: Path, columns: int, lines: int) -> None:
        self._command = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        size = ["-x", str(columns), "-y", str(lines)]
        self.tmux("new-session", "-d", *size, "-s", "s", "env PS1='$ ' sh")
        self.tmux("set", "-g", "set-clipboard", "on")
        self.tmux("set", "-g", "history-limit", "100000")
        self.wait("$ ")  # what is typed before the shell is there would stand before its prompt

    def tmux(self, *words: str) -> str:
        """What a command of tmux's says."""
        done = subprocess.run([*self._command, *words], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0 or words[0] == "kill-server", done.stderr
        return done.stdout

    def type(self, line: str) -> None:
        """Type a line and Enter."""
        self.tmux("send-keys", "-t", "s", "-l", "--", line)
        self.tmux("send-keys", "-t", "s", "Enter")

    def chat(self, home: Path, *arguments: str) -> None:
        """Begin a conversation."""
        settings = [f"LORAFOLD_HISTORY={home / 'history'}", "OMP_NUM_THREADS=1"]
        unset = ["-u", "NO_COLOR", "-u", "COLUMNS", "-u", "LINES"]
        self.type(shlex.join(["env", *unset, *settings, sys.executable, *CHAT, *arguments]))
        self.wait("/help lists the commands")

    def rows(self) -> list[str]:
        """All rows, those that scrolled away too; joined again where the terminal folded them."""
        return self.tmux("capture-pane", "-t", "s", "-p", "-J", "-S", "-").split("\n")

    def wait(self, text: str, count: int = 1, seconds: float = 15) -> list[str]:
        """Wait until a text stands on the screen, or has; the rows."""
        deadline = time.monotonic() + seconds
        while True:
            rows = self.rows()
            if sum(row.count(text) for row in rows) >= count:
                return rows
            assert time.monotonic() < deadline, f"no {text!r} in:\n" + "\n".join(rows)
            time.sleep(0.05)

    def answered(self) -> list[str]:
        """The rows when all models have answered: the next command waits for that."""
        self.type("/help quit")
        return self.wait("leave (also Ctrl-D)")

    def resize(self, columns: int, lines: int) -> None:
        """Give the screen another size."""
        self.tmux("resize-window", "-t", "s", "-x", str(columns), "-y", str(lines))


@contextlib.contextmanager
def screen(folder: Path, columns: int = 80, lines: int = 24) -> Iterator[Screen]:
    """A screen, closed at the end of the block; skips the test where tmux is missing."""
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    made = Screen(folder / "tmux", columns, lines)
    try:
        yield made
    finally:
        made.tmux("kill-server")
