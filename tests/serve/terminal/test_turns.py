"""What a conversation keeps, at a real pseudo-terminal: answers, votes, letters, settings, files, pastes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
from chain_model import chain
from chat_terminal import Terminal, screen, terminal
from model_servers import part, refused, server, streamed

GREEDY = ["--temperature", "0", "--max-tokens", "6"]
MODELS = {"/v1/models": {"object": "list", "data": [{"id": "served"}]}}
COMPLETIONS = "/v1/chat/completions"
FINE = streamed([part("fine"), part(None, "stop"), b"[DONE]"], sse=True)
LONG = "summarise this text. " * 600


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Two models of different answers, under names of their own."""
    found = []
    for name, (line, seed) in {"one": (b"abcdefg\n", 1), "two": (b"hijklm\n", 2)}.items():
        found.append(str(tmp_path / f"{name}.gguf"))
        Path(found[-1]).symlink_to(chain(line, seed))
    return found


@pytest.fixture
def talk(files: list[str], tmp_path: Path) -> Iterator[Terminal]:
    with terminal(tmp_path, *files, *GREEDY) as made:
        yield made


def saved(talk: Terminal, home: Path) -> dict[str, Any]:
    """The conversation as /save writes it."""
    talk.type("/save now.json", "turns: now.json")
    found: dict[str, Any] = json.loads((home / "now.json").read_text())
    return found


def texts(turn: dict[str, Any]) -> dict[str, str]:
    return {index: answer["text"] for index, answer in turn["answers"].items()}


def test_models_that_are_not_asked_again_keep_their_answers(talk: Terminal, tmp_path: Path) -> None:
    talk.ask("hello")
    talk.type("/vote a", "one.gguf: 1 won")
    talk.type("/only b", "answering: B two.gguf")
    talk.type("/system be brief", "system: be brief")
    talk.type("/retry", "A one.gguf: the old answer stands")
    (turn,) = saved(talk, tmp_path)["turns"]
    assert texts(turn) == {"0": "abcdef", "1": "hijklm"} and turn["vote"] is None  # B's answer was replaced
    assert turn["system"] == "be brief" and turn["answers"]["0"]["under"] == [None, None]
    talk.type("/vote b", "two.gguf: 1 won")
    talk.type("/only all", "answering: A one.gguf, B two.gguf")
    assert "stands" not in talk.type("/retry", "6 tokens")
    (turn,) = saved(talk, tmp_path)["turns"]
    assert turn["vote"] is None and turn["answers"]["0"]["under"] is None


def test_a_model_that_fails_when_asked_again_keeps_its_answer(files: list[str], tmp_path: Path) -> None:
    replies = iter([FINE, *[refused(500, {"error": "gone"})] * 9])
    with (
        server(MODELS, {COMPLETIONS: lambda handler, body: next(replies)(handler, body)}) as (url, _),
        terminal(tmp_path, url, files[0], *GREEDY) as talk,
    ):
        talk.ask("hello")
        talk.type("/vote a", "served: 1 won")
        talk.type("/only a", "answering: A served")
        talk.type("/retry", "the old ones stand")  # nobody said a word
        talk.type("/only all", "B one.gguf")
        talk.type("/retry", "A served: the old answer stands")
        (turn,) = saved(talk, tmp_path)["turns"]
    assert texts(turn) == {"0": "fine", "1": "abcdef"} and turn["answers"]["0"]["error"] == ""
    assert turn["vote"] is None


def test_a_vote_goes_by_the_letters_above_the_answers(talk: Terminal, tmp_path: Path) -> None:
    talk.ask("hello")
    talk.type("/swap", "columns: A two.gguf, B one.gguf")
    talk.type("/vote a", "one.gguf: 1 won")  # whose answer stands under A
    assert "one.gguf seen by two.gguf" in talk.type("/lens a b", "KL divergence")
    assert "A one.gguf" in re.sub(r"\s+", " ", talk.type("/show prompt", "B two.gguf"))
    talk.ask("and now?")
    talk.type("/vote a", "two.gguf: 1 won")
    talk.type("/save talk.json", "saved 2 turns")
    talk.type("/load talk.json", "2 turns from talk.json")
    talk.type("/swap", "columns: A one.gguf, B two.gguf")
    talk.type("/vote b", "one.gguf: 2 won")


def test_no_name_is_told_before_the_vote(talk: Terminal) -> None:
    talk.type("/blind on", "names are hidden")
    talk.ask("hello")
    shown = talk.type(
        "/show prompt", "<|im_start|>user hello<|im_end|>"
    )  # the first question: all read the same
    talk.type("/retry", "first ")
    talk.type("/only b", "answering: B two.gguf")
    shown += talk.type("/retry", "the old answer stands")
    assert ".gguf" not in shown
    talk.type("/vote a", " was two.gguf")


def test_the_lens_does_not_tell_which_one_is_a_server(files: list[str], tmp_path: Path) -> None:
    with (
        server(MODELS, {COMPLETIONS: FINE}) as (url, _),
        terminal(tmp_path, url, files[0], *GREEDY, "--blind") as talk,
    ):
        talk.ask("hello")
        for letter in "ab":
            assert "served" not in talk.type(f"/lens {letter}", "the lens waits for the vote")
        talk.type("/vote tie", "served: 0 won")
        talk.type("/lens b a", "served")


def test_models_of_one_name_are_told_apart_by_their_paths(files: list[str], tmp_path: Path) -> None:
    models = []
    for folder, file in zip(("a", "b"), files, strict=True):
        (tmp_path / folder).mkdir()
        models.append(f"{folder}/model.gguf")
        (tmp_path / models[-1]).symlink_to(Path(file).resolve())
    with terminal(tmp_path, *models, *GREEDY) as talk:
        talk.ask("hello")
        talk.type("/vote b", "b/model.gguf: 1 won")
        talk.type("/save talk.json", "saved 1 turns")
        talk.type("/export page.md", "written: page.md")
    assert "a/model.gguf" in (tmp_path / "page.md").read_text()
    with terminal(tmp_path, *reversed(models), *GREEDY) as talk:
        talk.type("/load talk.json", "1 turns from talk.json")
        talk.type("/show", "b/model.gguf: 1 won")
        (turn,) = saved(talk, tmp_path)["turns"]
    assert texts(turn) == {"1": "abcdef", "0": "hijklm"}  # each with the model that said it


def test_turns_keep_the_settings_they_were_asked_under(tmp_path: Path) -> None:
    models = [str(tiny_chat.gguf()), str(tiny_chat.gguf(1))]
    with terminal(tmp_path, *models, *GREEDY) as talk:

        def exported(name: str) -> list[dict[str, Any]]:
            talk.type(f"/export {name}.jsonl", f"written: {name}.jsonl")
            rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()[1:]]
            return [{"messages": row["messages"], "kl": [a["kl"] for a in row["answers"]]} for row in rows]

        talk.ask("first")
        talk.ask("second")
        before = exported("before")
        talk.type("/system be a pirate", "system: be a pirate")
        talk.type("/follow a", "all follow base0")
        assert exported("after") == before
        assert "pirate" not in talk.type("/show prompt", "<|im_start|>user second<|im_end|>")
        talk.ask("third")
        shown = talk.type("/show prompt", "<|im_start|>user third<|im_end|>")
        assert "<|im_start|>system be a pirate<|im_end|>" in re.sub(r"\s+", " ", shown)
        talk.type("/system -", "system: (none")
        third = exported("third")
    assert third[:2] == before and third[2]["messages"][0] == {"role": "system", "content": "be a pirate"}


@pytest.mark.slow
def test_only_its_own_file_is_replaced(talk: Terminal, tmp_path: Path) -> None:
    talk.ask("first")
    talk.type("/save mine.json", "saved 1 turns")
    talk.type("/reset", "a new conversation")
    talk.ask("other")
    talk.type("/save mine.json", "choose another name")
    assert json.loads((tmp_path / "mine.json").read_text())["turns"][0]["user"] == "first"
    talk.type("/save other.json", "saved 1 turns")
    talk.type("/load mine.json", "1 turns from mine.json")
    talk.type("/save other.json", "choose another name")
    talk.ask("more")
    talk.type("/save mine.json", "saved 2 turns")


def test_plain_lines_tell_figures_to_somebody_who_reads_along(files: list[str], tmp_path: Path) -> None:
    with terminal(tmp_path, *files, *GREEDY, "--plain") as talk:
        shown = talk.ask("hello")
    found = re.findall(r"\(6 tokens · [0-9.]+/s · first [0-9.]+ s · cut at max_tokens\)", shown)
    assert len(found) == 2


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Terminal, list[Any]]]:
    """A conversation, and what the model was asked."""
    with server(MODELS, {COMPLETIONS: FINE}) as (url, bodies), terminal(tmp_path, url, *GREEDY) as talk:
        yield talk, bodies


def paste(talk: Terminal, text: str, number: int) -> None:
    talk.child.send(f"\x1b[200~{text}\x1b[201~")
    talk.read(f"[paste {number}: {len(text):,} characters]")
    time.sleep(0.3)  # an Enter right behind a paste belongs to it


def question(bodies: list[Any]) -> str:
    return str(bodies[-1]["messages"][-1]["content"])


def test_a_long_paste_is_recalled_whole(served: tuple[Terminal, list[Any]], tmp_path: Path) -> None:
    talk, bodies = served
    paste(talk, LONG, 1)
    talk.type(" please", "first ")
    assert question(bodies) == LONG + " please"
    talk.child.send("\x1b[A")
    talk.read("[paste 1: 12,600 characters] please")
    talk.type("!", "first ")
    assert question(bodies) == LONG + " please!"
    talk.child.send("/edit\r")
    talk.read("[paste 2: 12,608 characters]")  # recalled for a change
    talk.type("?", "first ")
    assert question(bodies) == LONG + " please!?"
    talk.child.send("\x04")
    assert talk.end() == 0
    kept = [json.loads(line) for line in (tmp_path / "history").read_text().splitlines()]
    assert kept == [LONG + " please", LONG + " please!", "/edit", LONG + " please!?"]


@pytest.mark.slow
def test_a_paste_too_long_for_the_history_file(served: tuple[Terminal, list[Any]], tmp_path: Path) -> None:
    talk, bodies = served
    paste(talk, LONG * 2, 1)
    talk.type("", "first ")
    talk.child.send("\x1b[A")
    talk.read("[paste 1: 25,200 characters]")
    talk.type("", "first ")
    assert question(bodies) == LONG * 2
    assert (tmp_path / "history").read_text() == ""


def test_a_question_that_was_not_kept_can_be_sent_again(tmp_path: Path) -> None:
    replies = iter([*[refused(404, {"error": "not yet"})] * 3, FINE])
    with (
        server(MODELS, {COMPLETIONS: lambda handler, body: next(replies)(handler, body)}) as (url, bodies),
        terminal(tmp_path, url, *GREEDY) as talk,
    ):
        paste(talk, LONG, 1)
        talk.type("", "the question was not kept")
        replies = iter([FINE])
        talk.child.send("\x1b[A")
        talk.type("", "first ")
        assert question(bodies) == LONG


KEYS = {  # typed behind a place holder between a and b -> what is sent
    "\x7f": "ab",  # backspace
    "\x17": "ab",  # Ctrl-W
    "\x1b[D\x1b[3~": "ab",  # one step to the left is before it; delete
    "\x1b[D\x7f": f"{LONG}b",  # the character before it
    "\x1b[D-": f"a-{LONG}b",
    "\x01\x1b[C\x1b[C-": f"a{LONG}-b",  # from the left one step over it
    "\x01\x1b[C\x0b": "a",  # all to the end of the line
    "\x01\x1bf\x1bf\x7f": "ab",  # a word within it is all of it
}


def test_a_place_holder_is_one_character_to_all_keys(served: tuple[Terminal, list[Any]]) -> None:
    talk, bodies = served
    for number, (keys, left) in enumerate(KEYS.items(), 1):
        talk.child.send("ab\x1b[D")
        paste(talk, LONG, number)
        talk.child.send(keys)
        talk.type("", "first ")
        assert question(bodies) == left, repr(keys)


@pytest.mark.slow
def test_what_is_shown_of_a_removed_paste(tmp_path: Path) -> None:
    """Nothing of the place holder stays on the screen."""
    with screen(tmp_path) as tty, server(MODELS, {COMPLETIONS: FINE}) as (url, _):
        tty.chat(tmp_path, url, *GREEDY)
        (tmp_path / "long").write_text(LONG)
        tty.tmux("load-buffer", str(tmp_path / "long"))
        tty.tmux("paste-buffer", "-p", "-t", "s")
        tty.wait("[paste 1: 12,600 characters]")
        tty.tmux("send-keys", "-t", "s", "BSpace")
        deadline = time.monotonic() + 15
        while any("paste 1" in row for row in tty.rows()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
