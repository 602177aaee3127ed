"""`lorafold compare` through its real entry point: outputs, exit codes, Ctrl-C and going on."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
from chain_model import chain
from model_servers import part, refused, server, streamed

COMPARE = [sys.executable, "-m", "lorafold", "compare"]
GREEDY = ["--max-tokens", "5", "--threads", "1"]
MODELS = {"/v1/models": {"object": "list", "data": [{"id": "m"}]}}
FINE = streamed([part("fine"), part(None, "stop"), b"[DONE]"], sse=True)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with questions, where commands are run."""
    (tmp_path / "q.txt").write_text("one\ntwo\nthree\n")
    return tmp_path


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMPARE, *arguments, *GREEDY],
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, and so perhaps this test run, ignore SIGINT; a user's command does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(home: Path, *arguments: str) -> tuple[int, str, list[str]]:
    """Exit code, standard output, and the lines of standard error that are no progress."""
    process = start(home, *arguments)
    out, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return process.returncode, out, [line for line in err.splitlines() if line.startswith(("note", "error"))]


def test_all_outputs_and_what_is_told(home: Path) -> None:
    (home / "q.jsonl").write_text('{"prompt": "o\\u001bne"}\n{"prompt": "two"}\n')
    outs = [word for name in ("r.md", "r.jsonl", "r.html") for word in ("--out", f"new/{name}")]
    models = [str(chain(b"abcdefg\n", 1)), str(chain(b"hijklm\n", 2))]
    code, out, told = run(home, "--prompts", "q.jsonl", *outs, *models)
    assert code == 0 and told == ["note: 1 control character taken out of 1 question"]
    assert "│ one      │ abcde" in out and "saved  new/r.md\nsaved  new/r.jsonl\nsaved  new/r.html\n" in out
    written = (home / "new/r.md").read_text()
    shown = re.findall(r"^(?:## |> )(.*)", written, re.M)
    assert shown == ["1. one", "abcde", "hijkl", "2. two", "abcde", "hijkl"]
    head, *rows = (json.loads(line) for line in (home / "new/r.jsonl").read_text().splitlines())
    assert [card["source"] for card in head["models"]] == models
    assert [answer["text"] for row in rows for answer in row["answers"]] == ["abcde", "hijkl"] * 2
    names = [card["name"] for card in head["models"]]
    assert f"<title>{names[0]} against {names[1]}</title>" in (home / "new/r.html").read_text()
    assert sorted(path.name for path in (home / "new").iterdir()) == ["r.html", "r.jsonl", "r.md"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_same_command_goes_on_after_a_signal(number: signal.Signals, code: int, home: Path) -> None:
    asked: list[str] = []
    go_on = threading.Event()

    def reply(handler: Any, body: Any) -> None:
        asked.append(body["messages"][-1]["content"])
        if asked[-1] == "three":
            go_on.wait(60)
        FINE(handler, body)

    with server(MODELS, {"/v1/chat/completions": reply}) as (url, _):
        command = ["--prompts", "q.txt", "--out", "r.md", url, str(tiny_chat.gguf())]
        process = start(home, *command)
        for _ in range(600):
            if "three" in asked:
                break
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        said = "note: 2 of 3 questions asked; the same command goes on at question 3\n"
        assert process.returncode == code and "Traceback" not in err
        assert said in err and not (home / "r.md").exists() and not list(home.glob("*.lock"))
        go_on.set()
        asked.clear()
        done, _, told = run(home, *command)
    assert done == 0 and asked == ["three"]
    assert told == ["note: 4 answers taken over from an earlier run"]
    written = (home / "r.md").read_text()
    assert "## 1. one\n" in written and "## 3. three\n" in written and written.count("> fine\n") == 3
    assert sorted(path.name for path in home.iterdir()) == ["q.txt", "r.md"]


def test_a_model_that_never_answers_is_an_exit_code(home: Path) -> None:
    with server(MODELS, {"/v1/chat/completions": refused(500, {"error": "no memory"})}) as (url, _):
        command = ["--prompts", "q.txt", "--out", "r.md", url, str(chain(b"abcdefg\n", 1))]
        code, out, told = run(home, *command)
    assert code == 3 and len(told) == 2
    assert told[0] == "note: with --force the same command asks 3 questions that failed again"
    assert told[1].startswith(f"error: {url}: 3 of 3 answers failed: ") and "no memory" in told[1]
    # What the other model said is not lost.
    first, second, *_ = re.findall(r"^> (.*)", (home / "r.md").read_text(), re.M)
    assert first.startswith("(failed: ") and "no memory" in first and second == "abcde"
    assert "(failed: " in out and "saved  r.md" in out


def test_a_model_that_fails_at_times_is_a_note(home: Path) -> None:
    def reply(handler: Any, body: Any) -> None:
        bad = body["messages"][-1]["content"] == "two"
        (refused(500, {"error": "no memory"}) if bad else FINE)(handler, body)

    with server(MODELS, {"/v1/chat/completions": reply}) as (url, _):
        code, _, told = run(home, "--prompts", "q.txt", url, str(chain(b"abcdefg\n", 1)))
    assert code == 0 and len(told) == 1
    assert told[0].startswith(f"note: {url}: 1 of 3 answers failed: ") and "no memory" in told[0]


def test_a_missing_model_leaves_nothing(home: Path) -> None:
    code, _, told = run(home, "--prompts", "q.txt", "--out", "new/r.html", "no.gguf", str(tiny_chat.gguf()))
    assert (code, told) == (3, ["error: no.gguf: no such file; fix: check the path"])
    assert [path.name for path in home.iterdir()] == ["q.txt"]
