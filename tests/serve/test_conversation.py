"""Conversations: histories in step, votes, and files that may be anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorafold.errors import InputError, SystemFault
from lorafold.serve.config import Sampling
from lorafold.serve.conversation import TIE, Answer, Conversation, Turn, share_interval
from lorafold.serve.protocol import Finished, Started, Token
from lorafold.serve.terminal.views import dropped_note, summary


def session() -> Conversation:
    made = Conversation(["a", "b"], Sampling(seed=1), "be kind")
    made.turns = [
        Turn("one", {0: Answer("A1", reason="stop"), 1: Answer("B1", reason="stop")}, [0, 1], vote=1),
        Turn("two", {0: Answer("A2", reason="stop"), 1: Answer("", reason="failed", error="x")}, [0, 1]),
        Turn("three", {1: Answer("B3", reason="cancelled")}, [0, 1], blind=True, vote=TIE),
        Turn("four", {}, [0, 1]),
    ]
    for turn in made.turns:
        turn.system = "be kind"
    return made


OLD = ("user", "answers", "blind", "vote")


def said(session: Conversation, model: int) -> list[str]:
    return [message["content"] for message in session.messages(model)]


def test_each_model_has_its_own_history() -> None:
    assert said(session(), 0) == ["be kind", "one", "A1", "two", "A2", "four"]
    assert said(session(), 1) == ["be kind", "one", "B1", "three", "B3", "four"]


def test_all_can_follow_one() -> None:
    following = session()
    following.turns[-1].follow = 0
    assert said(following, 1) == said(session(), 0)


def test_calls_wait_where_a_model_goes_on() -> None:
    made = session()
    calls = [{"type": "function", "function": {"name": "look", "arguments": {}}}]
    made.turns[-1].answers = {0: Answer("", reason="stop", calls=calls), 1: Answer("B4", reason="stop")}
    assert (made.waiting(0), made.waiting(1)) == (calls, [])
    made.follow = 0
    assert made.waiting(1) == calls
    made.follow = 1
    assert made.waiting(0) == []


def test_a_turn_is_what_it_was_when_it_was_asked() -> None:
    changed = session()
    changed.system, changed.follow = "be a pirate", 0  # for the next question
    assert [changed.messages(1, turn) for turn in range(4)] == [
        session().messages(1, turn) for turn in range(4)
    ]
    kept = Answer("B4", reason="stop", under=("be brief", 0))  # of an earlier attempt, under another system
    changed.turns[-1].answers[1] = kept
    assert said(changed, 1) == ["be brief", "one", "A1", "two", "A2", "four"] and said(changed, 0) == said(
        session(), 0
    )


def test_files_from_before_turns_had_settings_of_their_own(tmp_path: Path) -> None:
    old = session().as_json()
    old |= {"follow": 0, "turns": [{k: v for k, v in turn.items() if k in OLD} for turn in old["turns"]]}
    for turn in old["turns"]:
        turn["order"] = [1] if turn["blind"] else [0, 1]
        turn["answers"] = {
            k: {n: v for n, v in a.items() if n != "under"} for k, a in turn["answers"].items()
        }
    path = tmp_path / "s.json"
    path.write_text(json.dumps(old))
    loaded = Conversation.load(path, ["a", "b"])
    assert said(loaded, 1) == said(session(), 0)  # all that is known is the last setting
    assert [turn.columns for turn in loaded.turns] == [[0, 1], [0, 1], [1], [0, 1]]


@pytest.mark.parametrize(
    ("now", "vote", "texts"),
    [
        ({1: Answer("B2", reason="stop")}, None, ["A1", "B2"]),
        ({0: Answer("A2", reason="stop"), 1: Answer("half", reason="failed", error="x")}, None, ["A2", "B1"]),
        ({1: Answer("half", reason="failed", error="x")}, 1, ["A1", "B1"]),
        ({2: Answer("C1", reason="stop")}, 1, ["A1", "B1", "C1"]),
    ],
)
def test_what_was_not_answered_again_stays(
    now: dict[int, Answer], vote: int | None, texts: list[str]
) -> None:
    old = session().turns[0]
    new = Turn("one", now, [0, 1, 2], system="be a pirate")
    kept = new.carry_over(old)
    assert [new.answers[index].text for index in sorted(new.answers)] == texts and new.vote == vote
    assert all(new.answers[index].under == ("be kind", None) for index in kept)
    assert new.asked == sorted(new.answers)


def test_names_stay_hidden_only_if_nobody_knows_them() -> None:
    for blind, before in ((True, True), (True, False), (False, True)):
        old = Turn("q", {0: Answer("A", reason="stop")}, [0], blind=before)
        new = Turn("q", {1: Answer("B", reason="stop")}, [1], blind=blind)
        assert new.carry_over(old) == [0] and new.hidden == (blind and before)
        assert new.columns == new.asked == [1, 0]


def test_the_file_of_a_conversation_is_known(tmp_path: Path) -> None:
    path, made = tmp_path / "s.json", session()
    assert made.file is None
    made.save(path)
    for names in (["a", "b"], ["b", "a"]):
        assert made.file == Conversation.load(path, names).file == path
    assert Conversation.load(path, ["a"]).file is None  # saving again would lose b's answers


def test_an_answer_grows_with_events() -> None:
    answer = Answer()
    for event in (
        Started(10, 4, 2, 0.1),
        Token("Hel", 5, -0.5, 0.2),
        Token("lo", 6, -0.25, 0.4),
        Finished("stop", 0.5, "!"),
    ):
        answer.take(event)
    assert (answer.text, answer.ids, answer.logprobs) == ("Hello!", [5, 6], [-0.5, -0.25])
    assert (answer.prompt_tokens, answer.reused, answer.dropped) == (10, 4, 2)
    assert answer.first == 0.2 and answer.rate == pytest.approx(1 / 0.3)
    failed = Answer()
    failed.take(SystemFault("gone", at="server"))
    assert failed.reason == "failed" and failed.error == "server: gone"


def test_a_session_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    session().save(path)
    assert Conversation.load(path, ["a", "b"]) == session()
    assert len(Conversation.load(path, ["a"]).turns[0].answers) == 1  # fewer models than before


def test_a_session_goes_on_with_models_in_another_order_and_with_others(tmp_path: Path) -> None:
    path, made = tmp_path / "s.json", session()
    made.follow = made.turns[-1].follow = 0
    made.turns[0].answers[0].ids = [49_000]  # of a's vocabulary, which another model need not have
    made.save(path)
    swapped = Conversation.load(path, ["b", "new", "a"])
    assert said(swapped, 2) == said(made, 0) and swapped.follow == 2 and swapped.turns[0].vote == 0
    assert swapped.turns[0].asked == [2, 0] and swapped.turns[2].vote == TIE
    others = Conversation.load(path, ["c", "d"])
    assert said(others, 1) == said(made, 1) and others.turns[0].answers[0].ids == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[]", "not a session"),
        ('{"format": "lorafold-session-1"}', "incomplete"),
        (json.dumps({**session().as_json(), "turns": [{"user": 3}]}), "incomplete"),
        (json.dumps({**session().as_json(), "sampling": {"colour": 3}}), "incomplete"),
        (json.dumps({**session().as_json(), "system": 3}), "incomplete"),
        (json.dumps(session().as_json()).replace('"under": null', '"under": [3]'), "incomplete"),
        (json.dumps({**session().as_json(), "sampling": {"top_p": 3}}), "incomplete"),
        (json.dumps(session().as_json()).replace('"tokens": 0', '"tokens": "many"'), "incomplete"),
        (json.dumps(session().as_json()).replace('"logprobs": []', '"logprobs": ["x"]'), "incomplete"),
    ],
)
def test_a_damaged_session_is_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        Conversation.load(path, ["a", "b"])
    with pytest.raises(InputError, match="cannot be read"):
        Conversation.load(tmp_path / "none", ["a"])


def test_votes_are_counted() -> None:
    assert session().votes() == ({0: 0, 1: 1}, 1)


def test_the_interval_is_wilsons() -> None:
    # Worked by hand: 7 of 10, z = 1.96: centre (0.7 + 0.19207) / 1.38415, half width 0.24776.
    share, low, high = share_interval(7, 0, 3)
    assert (share, round(low, 4), round(high, 4)) == (0.7, 0.3968, 0.8922)
    assert share_interval(0, 0, 0) == (0.5, 0.0, 1.0)
    assert share_interval(6, 2, 2)[0] == 0.7  # a tie is half a vote
    assert 0 <= share_interval(0, 0, 3)[1] < share_interval(0, 0, 3)[2] < 1


def test_an_overflowing_context_is_announced() -> None:
    assert summary(Answer(tokens=3, first=0.5, elapsed=1.5, reason="context")) == (
        "3 tokens · 2.0/s · first 0.50 s · the context is full"
    )
    assert dropped_note(Answer(dropped=4)) == "the context is full: the oldest 4 messages were left out"
    assert dropped_note(Answer()) == ""
