"""The conversation at a real pseudo-terminal, and through pipes: every command, and everything hostile."""

from __future__ import annotations

import json
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
from chain_model import chain
from chat_terminal import CHAT, Terminal, assert_own_sequences_only, environment
from model_servers import part, server, streamed

from lorafold.serve.conversation import cleaned
from lorafold.serve.terminal import commands

MODELS = {"/v1/models": {"object": "list", "data": [{"id": "served"}]}}
COMPLETIONS = "/v1/chat/completions"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chat")


@pytest.fixture(scope="module")
def two(home: Path) -> Iterator[Terminal]:
    arguments = [str(tiny_chat.gguf()), str(tiny_chat.gguf(1)), "--max-tokens", "8", "--temperature", "0"]
    terminal = Terminal(home, *arguments)
    terminal.read("/help lists the commands")
    yield terminal
    terminal.child.close(force=True)


def test_two_models_answer_side_by_side(two: Terminal) -> None:
    shown = two.type("hello", "8 tokens")
    assert "base0-F32.gguf" in shown and "base1-F32.gguf" in shown and "│" in shown
    digests = re.findall(r"[0-9a-f]{8} · F32", shown)
    assert len(set(digests)) == 2


COMMANDS = [
    ("/help", "leave (also Ctrl-D)"),
    ("/help vote", "say which answer is better"),
    ("/help q", "leave (also Ctrl-D) (also /exit, /bye, /q)"),
    ("/help nothing", "there is no command /nothing"),
    ("/models", "B base1-F32.gguf F32 · llama.cpp"),
    ("/system be brief", "system: be brief"),
    ("/system -", "system: (none"),
    ("/set seed 7", "repeat_penalty 1.0 seed 7 max_tokens 8"),
    ("/set top_p=0.5", "top_p 0.5"),
    ("/set temperature 9", "temperature 9: above 2 answers are mostly noise"),
    ("/set temperature 0", "temperature 0.0"),
    ("/set temperature hot", "temperature takes a number, got 'hot'"),
    ("/set top_p 2", "top_p: expected 0 to 1, got 2.0"),
    ("/set top_p", "top_p 0.5"),
    ("/set top_k 5.5", "top_k takes a whole number, got '5.5'"),
    ("/set seed -1", "seed: expected 0 to 4294967294, got -1"),
    ("/set max_tokens 0", "max_tokens: expected 1 to 1000000, got 0"),
    ("/set seed none", "seed none (new each time)"),
    ("/set colour red", "there is no setting 'colour'"),
    ("/show", "1 turns; history: each model its own; blind: off"),
    ("/show prompt", "<|im_start|>user hello<|im_end|> <|im_start|>assistant"),
    ("/show promt", "expected nothing or prompt, got 'promt'"),
    ("/show prompt all", "/show takes at most 1 word, got 'prompt all'"),
    ("/tool", "tools: (none: start with --tools FILE)"),
    ("/tool 7", "no call of a tool waits for a result"),
    ("/undo 3", "/undo takes nothing, got '3'"),
    ("/clear now", "/clear takes nothing, got 'now'; fix: /reset"),
    ("/lens a b a", "/lens takes at most 2 words"),
    ("/retry", "8 tokens"),
    ("/follow a", "all follow base0-F32.gguf"),
    ("/follow off", "each model follows its own answers"),
    ("/only b", "answering: B base1-F32.gguf"),
    ("one alone", "8 tokens"),
    ("/vote b", "fewer than two answers stand"),
    ("/vote tie", "fewer than two answers stand"),
    ("/lens b a", "base1-F32.gguf seen by base0-F32.gguf"),
    ("/undo", "forgotten: 'one alone'"),
    ("/only all", "answering: A base0-F32.gguf, B base1-F32.gguf"),
    ("/only z", "there is no model 'z'"),
    ("/vote b", "base1-F32.gguf: 1 won, preferred 100% (95% interval 21% to 100%)"),
    ("/vote", "no vote given"),
    ("/vote z", "no answer stands under 'z'"),
    ("/lens b", "mean KL divergence"),
    ("/lens a b", "base0-F32.gguf seen by base1-F32.gguf"),
    ("/lens a a", "a model is never surprised by itself"),
    ("/lens a c", "there was no model 'c'"),
    ("/swap", "columns: A base1-F32.gguf, B base0-F32.gguf"),
    ("/swap", "columns: A base0-F32.gguf, B base1-F32.gguf"),
    ("/blind on", "names are hidden"),
    ("again", "8 tokens"),
    ("/show prompt", "the prompts would tell which model is which"),
    ("/lens", "answer B seen by answer A"),
    ("/export early.html", "the report shows the names, which a blind vote must not know"),
    ("/vote tie", "2 votes, 1 tie"),
    ("/vote a", "the blind vote is given, and the names are known now"),
    ("/blind off", "names are shown"),
    ("/save talk.json", "saved 2 turns: talk.json"),
    ("/save talk.json", "saved 2 turns: talk.json"),
    ("/save .", "this is a folder"),
    ("/save history", "history: the file exists, and this conversation was not saved to it"),
    ("/export talk.html", "written: talk.html"),
    ("/export talk.html", "the file exists"),
    ("/export talk.doc", "unknown format '.doc'"),
    ("/undo", "forgotten: 'again'; 1 turns are left"),
    ("/load talk.json", "2 turns from talk.json"),
    ("/load none.json", "cannot be read"),
    ("/reset", "a new conversation"),
    ("/save talk.json", "this conversation was not saved to it or loaded from it; fix: choose another name"),
    ("/retry", "nothing was said yet"),
    ("/tool 7", "no call of a tool waits for a result"),
    ("/nonsense", "there is no command /nonsense; fix:"),
    ("/sytem be kind", "there is no command /sytem; did you mean /system?"),
    ("//slash", "8 tokens"),
]


@pytest.mark.parametrize(("line", "text"), COMMANDS, ids=[f"{i:02}{c[0]}" for i, c in enumerate(COMMANDS)])
def test_commands(two: Terminal, line: str, text: str) -> None:
    assert text not in line  # which the line editor shows too
    shown = two.type(line, text)
    if line == "again":
        assert "base0-F32.gguf" not in shown and "?" in shown  # blind


def test_every_command_is_tried() -> None:
    tried = {re.sub(r"\W.*", "", line[1:]) for line, _ in COMMANDS if re.match(r"/\w", line)}
    assert tried | {"edit", "quit"} >= set(commands.COMMANDS)


def test_the_last_question_can_be_edited(two: Terminal, home: Path) -> None:
    two.child.send("/edit\r")
    two.read("//slash")  # the question, to be changed
    two.type(" and more", "8 tokens")
    two.type("/save edited.json", "saved 1 turns")
    saved = json.loads((home / "edited.json").read_text())
    assert saved["turns"][0]["user"] == "/slash and more"


def test_completion(two: Terminal) -> None:
    two.child.send("/mod\t")
    two.read("/models")
    two.type("", "llama.cpp")
    two.child.send("/vote \t")  # the letters of the models, and no others
    assert re.findall(r"\b[a-f]\b", two.read("tie")) == ["a", "b"]
    two.child.sendintr()
    two.child.send("/help bl\t")
    two.read("/help blind")
    two.type("", "hide the names and shuffle the sides")


def test_an_empty_line_is_ignored(two: Terminal) -> None:
    two.child.send("\r\r")
    two.type("/show", "1 turns")


def test_control_text_in_a_question_is_said(two: Terminal) -> None:
    two.type("say <|im_end|> twice", "'<|im_end|>': sent as plain text, not as a control token")
    two.read("8 tokens")
    assert "control token" not in two.type("say a < b |", "8 tokens")


def test_a_paste_is_one_message_and_a_forged_end_sends_nothing(two: Terminal, home: Path) -> None:
    two.type("/reset", "a new conversation")
    two.child.send("\x1b[200~first\nsecond\x00\x1b]0;x\x07\x1b[201~\r/quit\r")
    two.read("/quit")
    time.sleep(0.3)  # an Enter right behind a paste belongs to it
    two.type("", "control characters taken out")
    two.read("8 tokens")
    two.type("/save paste.json", "saved 1 turns")
    user = json.loads((home / "paste.json").read_text())["turns"][0]["user"]
    assert user == "first\nsecond]0;x\n/quit\n"


@pytest.mark.slow
def test_ten_megabytes_pasted(two: Terminal) -> None:
    two.child.send("\x1b[200~")
    for _ in range(160):
        two.child.send("some words\n" * 5958)
    two.child.send("\x1b[201~")
    shown = two.read("[paste 1: 10,486,080 characters]")
    assert "some words\nsome words" not in shown
    time.sleep(0.5)
    two.type("", "the question was not kept")
    two.type("/show", "turns; history")


def test_nothing_the_models_said_was_obeyed(two: Terminal) -> None:
    """The models speak random bytes; no control sequence of theirs may have reached the terminal."""
    assert_own_sequences_only(two.raw)


def test_the_history_is_private_and_the_end_is_zero(two: Terminal, home: Path) -> None:
    two.child.send("\x04")
    assert two.end() == 0
    history = home / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "hello" in [json.loads(line) for line in history.read_text().splitlines()]


@pytest.mark.slow
def test_a_linked_history_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("x")
    (tmp_path / "history").symlink_to(tmp_path / "theirs")
    terminal = Terminal(tmp_path, str(tiny_chat.gguf()), "--max-tokens", "4")
    terminal.read("the history is not kept")
    terminal.type("hello", "tokens")
    terminal.type("/quit", "")
    assert terminal.end() == 0
    assert (tmp_path / "theirs").read_text() == "x"


@pytest.mark.slow
def test_narrow_and_without_colour(tmp_path: Path) -> None:
    models = [str(tiny_chat.gguf()), str(tiny_chat.gguf(1))]
    arguments = [*models, "--max-tokens", "6", "--temperature", "0"]
    terminal = Terminal(
        tmp_path, *arguments, columns=50, NO_COLOR="1", COLUMNS="120"
    )  # as some shells leave it
    terminal.read("/help lists")
    shown = terminal.type("hello", "6 tokens")
    shown += terminal.read("6 tokens") if shown.count("6 tokens") < 2 else ""
    assert "│" not in shown
    terminal.type("/lens b", "KL divergence")
    terminal.child.send("\x04")
    assert terminal.end() == 0
    colours = re.findall(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7])(?:;[0-9;]*)?m", terminal.raw)
    assert not colours


def run(home: Path, *arguments: str, stdin: str | bytes = "") -> subprocess.CompletedProcess[str]:
    raw = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [sys.executable, *CHAT, *arguments],
        input=raw,
        capture_output=True,
        env=environment(home),
        timeout=120,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
    )


def test_json_for_scripts(home: Path) -> None:
    models = [str(tiny_chat.gguf()), str(tiny_chat.gguf(1))]
    options = ["--prompt", "hello", "--json", "--max-tokens", "5", "--temperature", "0"]
    done = run(home, *models, *options)
    assert done.returncode == 0, done.stderr
    (row,) = map(json.loads, done.stdout.splitlines())
    assert row["prompt"] == "hello" and len(row["answers"]) == 2
    assert all(len(a["sha256"]) == 64 and a["tokens"] <= 5 for a in row["answers"])
    assert row["answers"][0]["text"] != row["answers"][1]["text"]
    assert json.loads(run(home, *models, *options).stdout)["answers"][0]["text"] == row["answers"][0]["text"]


def test_piped_questions_and_plain_lines(home: Path) -> None:
    done = run(
        home,
        str(tiny_chat.gguf()),
        "--max-tokens",
        "5",
        "--temperature",
        "0",
        stdin=b"hello\n\nbad \xff\x00 byte\n",
    )
    assert done.returncode == 0
    assert "\x1b" not in done.stdout and "1 control characters were taken out" in done.stderr


@pytest.mark.slow
def test_a_saved_conversation_goes_on(home: Path, tmp_path: Path) -> None:
    turn = {"user": "hello", "answers": {"0": {"text": "hi", "reason": "stop"}}, "order": [0]}
    saved = {"format": "lorafold-session-1", "models": ["x"], "system": None, "follow": None, "sampling": {}}
    path = tmp_path / "talk.json"
    path.write_text(json.dumps({**saved, "turns": [{**turn, "blind": False, "vote": None}]}))
    options = ["--prompt", "and?", "--json", "--max-tokens", "3", "--temperature", "0"]
    alone = json.loads(run(home, str(tiny_chat.gguf()), *options).stdout)["answers"][0]
    more = json.loads(run(home, str(tiny_chat.gguf()), *options, "--session", str(path)).stdout)["answers"][0]
    assert more["prompt_tokens"] == alone["prompt_tokens"] + len("<user.hello>.<assistant.hi>.")
    assert more["tokens"] <= 3


def interrupted(process: subprocess.Popen[bytes]) -> int:
    """The exit code after Ctrl-C."""
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert b"Traceback" not in error, error
    return process.returncode


def scripted(home: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """A script's conversation, under way; Ctrl-C reaches it also where the test run ignores it."""
    return subprocess.Popen(
        [sys.executable, *CHAT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(home),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def test_ctrl_c_ends_a_script(home: Path) -> None:
    endless = str(chain(b"abcdefg\n", 1))
    options = ["--prompt", "x", "--temperature", "0", "--max-tokens", "900000", "--context", "900000"]
    process = scripted(home, endless, *options)
    assert process.stdout is not None and process.stdout.read(1) == b"a"
    assert interrupted(process) == 130


def test_ctrl_c_before_the_first_word_ends_a_script(home: Path) -> None:
    def silent(handler: Any, body: Any) -> None:
        handler.rfile.read(1)  # until the client hangs up

    with server(MODELS, {COMPLETIONS: silent}) as (url, bodies):
        process = scripted(home, url, "--prompt", "one", "--prompt", "two")
        while not bodies:
            assert process.poll() is None
            time.sleep(0.05)
        assert interrupted(process) == 130 and len(bodies) == 1


def test_an_empty_answer_is_no_failure(home: Path) -> None:
    nothing = streamed([part("", role="assistant"), part(None, "stop"), b"[DONE]"], sse=True)
    with server(MODELS, {COMPLETIONS: nothing}) as (url, _):
        done = run(home, url, "--prompt", "one")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "note: served: the answer is empty\n")


def test_piped_lines_of_windows_are_the_same_questions(home: Path) -> None:
    fine = streamed([part("fine"), part(None, "stop"), b"[DONE]"], sse=True)
    with server(MODELS, {COMPLETIONS: fine}) as (url, bodies):
        assert run(home, url, stdin=b"\xef\xbb\xbfhello\r\nthere\r\n").returncode == 0
    assert [body["messages"][-1]["content"] for body in bodies] == ["hello", "there"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("a.gguf", "--blind"), "--blind: one model alone cannot be compared"),
        (
            ("a.gguf", "b.gguf", "--blind", "--prompt", "x"),
            "--blind: a blind vote needs somebody at a terminal",
        ),
        (("a.gguf", "b.gguf", "--blind", "--json"), "--blind: a blind vote needs somebody at a terminal"),
        (("a.gguf", "b.gguf", "--blind"), "--blind: a blind vote needs somebody at a terminal"),
        (("a.gguf", "--seed", "-1"), "--seed: expected 0 to 4294967294, got -1"),
    ],
)
def test_what_cannot_be_meant_is_one_line(arguments: tuple[str, ...], said: str, home: Path) -> None:
    done = run(home, *arguments, stdin="hello\n")
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_a_session_goes_on_as_it_was_saved(home: Path, tmp_path: Path) -> None:
    saved = {
        "format": "lorafold-session-1",
        "models": ["x"],
        "system": "be kind",
        "follow": None,
        "turns": [],
    }
    path = tmp_path / "talk.json"
    path.write_text(json.dumps({**saved, "sampling": {"temperature": 0, "seed": 5, "max_tokens": 6}}))
    options = [str(chain(b"abcdefg\n", 1)), "--session", str(path), "--prompt", "x", "--json"]
    (as_saved,) = json.loads(run(home, *options).stdout)["answers"]
    assert (as_saved["text"], as_saved["seed"]) == ("abcdef", 5)
    (given,) = json.loads(run(home, *options, "--max-tokens", "3", "--system", "").stdout)["answers"]
    assert (given["text"], given["seed"]) == ("abc", 5)
    assert as_saved["prompt_tokens"] - given["prompt_tokens"] == len("<system.be kind>.")


def test_a_failed_question_is_an_exit_code(home: Path) -> None:
    done = run(home, str(tiny_chat.gguf()), "--prompt", "x" * 900, "--context", "128")
    assert done.returncode == 3 and "error: the message has" in done.stderr


def test_a_files_name_is_not_obeyed(tmp_path: Path) -> None:
    model = tmp_path / "a\x1b[2Jb.gguf"
    model.symlink_to(tiny_chat.gguf())
    done = run(tmp_path, str(model), "--prompt", "x", "--context", "90000", "--max-tokens", "1")
    assert done.returncode == 0 and "note: a␛[2Jb.gguf: the model was made for 2,048 tokens" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout


def test_a_missing_model_is_one_line(home: Path) -> None:
    done = run(home, "none.gguf", "--prompt", "x")
    assert done.returncode == 3
    assert done.stderr == "error: none.gguf: no such file; fix: check the path\n"


def test_control_characters_are_taken_out_of_questions() -> None:
    assert cleaned("a\r\nb\rc\td\x00\x1b[2J\x85é中") == ("a\nb\nc\td[2Jé中", 3)
