"""Real pseudo-terminals: models that are hostile, endless or failing; resized, interrupted, typed ahead."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chain_model import chain
from chat_terminal import Terminal, assert_own_sequences_only, plain, screen, terminal
from model_servers import part, server, streamed

from lorafold.serve.conversation import Conversation

GREEDY = ["--temperature", "0", "--max-tokens"]
MODELS = {"/v1/models": {"object": "list", "data": [{"id": "served"}]}}
CHAT = "/v1/chat/completions"
HOSTILE = (
    "\x1b]0;title\x07\x1b]52;c;c3RvbGVu\x07\x1b]8;;http://evil/\x1b\\link\x1b]8;;\x1b\\"
    "\x1b[2J\x1b[H\x1bc\x9b2J\x9d0;c1\x9crest\rover\x00\x08\x7f\u202egnp\u2066x\u2069 🙂 中文"
)
SHOWN = (
    "␛]0;title␇␛]52;c;c3RvbGVu␇␛]8;;http://evil/␛\\link␛]8;;␛\\"
    "␛[2J␛[H␛c<U+009B>2J<U+009D>0;c1<U+009C>rest␍over␀␈␡<U+202E>gnp<U+2066>x<U+2069>🙂中文"
)


def speaks(pieces: Any, finish: str | None = "stop", **how: Any) -> Any:
    """A server's answer of these pieces, one chunk each."""
    return streamed([*map(part, pieces), part(None, finish), b"[DONE]"], sse=True, **how)


def squeezed(rows: str | list[str]) -> str:
    """What stands on a screen without the blanks and line ends that wrapping needs."""
    return re.sub(r"\s+", "", "".join(rows))


def saved(talk: Terminal, home: Path) -> Conversation:
    """The conversation as /save writes it."""
    talk.type("/save talk.json", "turns: talk.json")
    session = Conversation.load(home / "talk.json", ["a", "b"])
    (home / "talk.json").unlink()
    return session


@pytest.mark.slow
def test_escape_sequences_split_over_tokens_are_shown(tmp_path: Path) -> None:
    # A character a token; and every byte a packet of its own, so that characters of several bytes are split.
    with (
        server(MODELS, {CHAT: speaks(HOSTILE, size=1)}) as (url, _),
        terminal(tmp_path, url, *GREEDY, "500", columns=300) as talk,
    ):
        assert SHOWN in squeezed(talk.type("hello", "98 tokens"))
        assert "�" not in talk.raw
        assert saved(talk, tmp_path).turns[0].answers[0].text == HOSTILE
        talk.type("/export page.html", "written: page.html")
        assert_own_sequences_only(talk.raw)
    found = re.search(r"const DATA = .*?(\{.*\});?\n", (tmp_path / "page.html").read_text())
    assert found and json.loads(found[1])["rows"][0]["answers"][0]["text"] == HOSTILE


@pytest.mark.slow
def test_a_terminal_obeys_nothing(tmp_path: Path) -> None:
    with screen(tmp_path) as tty, server(MODELS, {CHAT: speaks(HOSTILE)}) as (url, _):
        (tmp_path / "raw").write_text("\x1b]0;title\x07\x1b]52;c;c3RvbGVu\x07", encoding="utf-8")

        def stolen() -> list[str]:
            return [tty.tmux("display", "-p", "#{pane_title}").strip(), *tty.tmux("list-buffers").split("\n")]

        before = stolen()
        tty.chat(tmp_path, url, *GREEDY, "500")
        tty.type("hello")
        rows = tty.wait("first ")
        assert SHOWN in squeezed(rows) and any("› hello" in row for row in rows)
        assert stolen() == before
        tty.type("/quit")
        tty.wait("$ ", count=2)
        tty.type(f"cat {tmp_path / 'raw'}")  # this terminal does obey, if it is let
        tty.wait("$ ", count=3)
        assert stolen()[0] == "title" and "stolen" in stolen()[1]


@pytest.mark.slow
def test_characters_split_over_a_local_models_tokens_come_whole(tmp_path: Path) -> None:
    line = "🙂é中\x1b]0;p\x07\u009b2J\u202ex\ry\n".encode()
    models = [str(chain(line, seed)) for seed in (0, 1)]
    with terminal(tmp_path, *models, *GREEDY, str(3 * len(line) + 2), columns=120) as talk:
        shown = squeezed(talk.ask("hello"))
        row = "🙂é中␛]0;p␇<U+009B>2J<U+202E>x␍y"
        # The answer ends within a character: what there is of it is shown as broken, not left out.
        assert f"{row}│{row}" in shown and "�│�" in shown
        assert row in squeezed(talk.type("/lens b", "mean KL divergence"))
        talk.type("/export page.md", "written: page.md")
        assert_own_sequences_only(talk.raw)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", (tmp_path / "page.md").read_text())


@pytest.mark.slow
def test_half_characters_of_a_server_end_nothing(tmp_path: Path) -> None:
    """JSON may hold lone surrogates, which no file in UTF-8 can."""
    thinking = part(None, reasoning_content="so\ud800")
    lines = [json.dumps(line).encode() for line in (thinking, part("a\udc80b"), part(None, "stop"))]
    listed = {"/v1/models": {"object": "list", "data": [{"id": "ser\ud83dved"}]}}
    with (
        server(listed, {CHAT: streamed([*lines, b"[DONE]"], sse=True)}) as (url, _),
        terminal(tmp_path, url, *GREEDY, "8") as talk,
    ):
        assert "ser<U+D83D>ved" in talk.type("hello", "first ")
        answer = saved(talk, tmp_path).turns[0].answers[0]
        assert (answer.text, answer.reasoning) == ("a\ufffdb", "so\ufffd")
        for ending in ("html", "md", "jsonl"):
            talk.type(f"/export page.{ending}", f"written: page.{ending}")


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 50])
def test_an_answer_longer_than_the_screen_is_whole(columns: int, tmp_path: Path) -> None:
    """Words too long for a pane, more lines than the terminal has: all stands there once, in order."""
    first = [f"{number:04}" for number in range(400)]  # one word of 1,600 characters
    second = [f"第{number}行\n" for number in range(90)]
    other = {"/v1/models": {"object": "list", "data": [{"id": "other"}]}}
    with (
        screen(tmp_path, columns) as tty,
        server(MODELS, {CHAT: speaks(first, pause=0.001)}) as (one, _),
        server(other, {CHAT: speaks(second, pause=0.001)}) as (two, _),
    ):
        tty.chat(tmp_path, one, two, *GREEDY, "1000")
        tty.type("hello")
        rows = tty.answered()
        panes = [row.partition("│") for row in rows] if columns == 80 else [(row, "", row) for row in rows]
        assert "".join(first) in squeezed([left.removeprefix("› hello") for left, _, _ in panes])
        assert "".join(second).replace("\n", "") in squeezed([right for _, _, right in panes])


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(100, 90, 70), (100, 80, 50), (50, 65, 90)])
def test_the_screen_is_resized_amid_an_answer(widths: tuple[int, ...], tmp_path: Path) -> None:
    words = [[f"{letter}{number} " for number in range(120)] for letter in "xy"]
    other = {"/v1/models": {"object": "list", "data": [{"id": "other"}]}}
    with (
        screen(tmp_path, widths[0], 12) as tty,
        server(MODELS, {CHAT: speaks(words[0], pause=0.012)}) as (one, _),
        server(other, {CHAT: speaks(words[1], pause=0.012)}) as (two, _),
    ):
        tty.chat(tmp_path, one, two, *GREEDY, "1000")
        tty.type("hello")
        for number, width in enumerate(widths[1:], 1):
            tty.wait(f"x{30 * number}")
            tty.resize(width, 12 + number)
        rows = tty.answered()
        text = " ".join(rows)
        for letter in "xy":
            numbers = [int(found) for found in re.findall(rf"\b{letter}(\d+)\b", text)]
            assert numbers == list(range(120))


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Terminal]:
    models = [str(chain(b"abcdefg\n", 1)), str(chain(b"hijklm\n", 2))]
    with terminal(tmp_path, *models, *GREEDY, "900000", "--context", "900000") as talk:
        yield talk


def test_ctrl_c_stops_models_that_never_end(endless: Terminal, tmp_path: Path) -> None:
    endless.type("tell me everything", "abcdefg")
    endless.child.sendintr()
    endless.read("stopped")
    turn = saved(endless, tmp_path).turns[0]
    assert [turn.answers[i].reason for i in (0, 1)] == ["cancelled", "cancelled"]
    assert turn.answers[0].text.startswith("abcdefg\n") and turn.answers[1].text.startswith("hijklm\n")
    endless.type("/set max_tokens 20", "seed none (new each time) max_tokens 20")
    endless.type("go on", "20 tokens")
    session = saved(endless, tmp_path)
    for model in (0, 1):  # both go on from what they had said
        roles = [message["content"] for message in session.messages(model)]
        assert roles == ["tell me everything", turn.answers[model].text, "go on"]
        assert session.turns[1].answers[model].prompt_tokens > len(turn.answers[model].text)
    endless.child.sendintr()  # at the prompt: clears the line, does not leave
    endless.type("again", "20 tokens")


@pytest.mark.slow
def test_an_endless_answer_is_capped(tmp_path: Path) -> None:
    model = str(chain(b"abcdefg\n", 1))
    with terminal(tmp_path, model, "--temperature", "0", "--context", "300") as talk:
        talk.type("/set", "max_tokens 1024")  # endless is no choice
        talk.type("/set max_tokens 40", "seed none (new each time) max_tokens 40")
        assert "40 tokens" in talk.type("hello", "cut at max_tokens")
        talk.type("/set max_tokens 100000", "seed none (new each time) max_tokens 100000")
        talk.type("hello", "the context is full")
        talk.type("and now?", "messages were left out")
        assert "the message has" in talk.type("x" * 400, "the question was not kept")
        talk.type("/show", "3 turns;")


def test_one_model_fails_and_the_other_goes_on(tmp_path: Path) -> None:
    local = str(chain(b"abcdefg\n", 1))
    with (
        server(MODELS, {CHAT: speaks(["Half an ", "answer\x1b[2J"], cut=300)}) as (url, bodies),
        terminal(tmp_path, url, local, *GREEDY, "16", columns=50) as talk,
    ):
        shown = talk.ask("hello")
        assert "Half an" in shown and "abcdefg" in shown and "first 0" in shown and "failed" in shown
        assert "the server broke off in the middle of an answer" in re.sub(r"\s+", " ", shown)
        talk.ask("and now?")
        session = saved(talk, tmp_path)
        assert_own_sequences_only(talk.raw)
    # What failed is no part of its history; the other's is whole.
    assert [message["content"] for message in bodies[-1]["messages"]] == ["and now?"]
    assert [message["role"] for message in session.messages(1)] == ["user", "assistant", "user"]


@pytest.mark.slow
def test_ctrl_c_while_a_server_is_silent(tmp_path: Path) -> None:
    def silent(handler: Any, body: Any) -> None:
        handler.rfile.read(1)  # until the client hangs up

    local = str(chain(b"abcdefg\n", 1))
    with (
        server(MODELS, {CHAT: silent}) as (url, _bodies),
        terminal(tmp_path, url, local, *GREEDY, "8") as talk,
    ):
        talk.type("hello", "8 tokens")
        talk.child.sendintr()
        talk.read("stopped")
        session = saved(talk, tmp_path)
        assert session.turns[0].answers[0].reason == "cancelled"
        assert session.turns[0].answers[1].reason == "length"


def test_control_characters_are_no_part_of_a_question(tmp_path: Path) -> None:
    with (
        server(MODELS, {CHAT: speaks(["fine"])}) as (url, bodies),
        terminal(tmp_path, url, *GREEDY, "8") as talk,
    ):
        talk.type("a\x9b2Jb\x84c", "2 control characters taken out of the message")
        talk.read("1 token")
        assert bodies[-1]["messages"][-1]["content"] == "a2Jbc"
        talk.child.send("\x1b[200~a\x00b\x1b]52;c;eA==\x07c\x9b2Jd\x85e\x7ff\ngh\x1b[201~")
        talk.read("gh")
        time.sleep(0.3)  # an Enter right behind a paste belongs to it
        talk.type("", "6 control characters taken out of the message")
        talk.read("1 token")
        assert bodies[-1]["messages"][-1]["content"] == "ab]52;c;eA==c2Jdef\ngh"


@pytest.mark.slow
def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path) -> None:
    model = str(chain(b"abcdefg\n", 1))
    talk = Terminal(tmp_path, model, model, *GREEDY, "16", TERM="dumb")
    talk.child.send("hello\n")
    talk.read("[B]")
    talk.child.sendeof()
    assert talk.end() == 0
    assert plain(talk.raw) == talk.raw and talk.raw.count("abcdefg") == 4


@pytest.mark.slow
def test_keys_typed_amid_an_answer_wait_for_the_prompt(tmp_path: Path) -> None:
    with (
        server(MODELS, {CHAT: speaks(["One ", "by ", "one"], pause=0.1)}) as (url, bodies),
        terminal(tmp_path, url, *GREEDY, "8") as talk,
    ):
        talk.type("hello", "One")
        talk.child.send("second question\r\x04")
        shown = talk.read("3 tokens")
        assert "second" not in shown
        talk.read("3 tokens")
        assert talk.end() == 0
    assert [message["content"] for message in bodies[-1]["messages"]][-1] == "second question"
