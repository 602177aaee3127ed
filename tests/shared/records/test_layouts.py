"""Records -> examples: marks of turns, reasoning, text parts, spellings, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafold.errors import InputError
from lorafold.records.chats import read_chats
from lorafold.records.layouts import Example, build_example, recognise, unread

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


def build(record: dict[str, Any], **options: Any) -> Example:
    return build_example(record, "d:1", recognise(record, "d:1", **options), **options)


def turns(**marks: Any) -> dict[str, Any]:
    """Two answers, the first of them marked."""
    return {"messages": [USER, {**ANSWER, **marks}, USER, ANSWER]}


@pytest.mark.parametrize("name", ["weight", "train", "trainable", "loss", "loss_mask"])
@pytest.mark.parametrize("value", [False, 0, 0.0, "false", "0"])
def test_a_turn_that_is_marked_so_is_not_trained(name: str, value: Any) -> None:
    assert build(turns(**{name: value})).marks == (False, False, False, True)
    assert build(turns(**{name: not json.loads(str(value).lower())})).trained == ()
    assert build(turns(**{name: None})).trained == ()


@pytest.mark.parametrize("name", ["mask", "masked"])
def test_a_masked_turn_is_not_trained(name: str) -> None:
    for value in (True, 1, "true"):
        assert build(turns(**{name: value})).marks == (False, False, False, True)
    assert build(turns(**{name: 0})).trained == ()


def test_marks_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(InputError, match=r"messages\[1\].weight: expected true or false .*got 0.5"):
        build(turns(weight=0.5))
    with pytest.raises(InputError, match=r"messages\[1\]: train and mask contradict each other"):
        build(turns(train=True, mask=True))
    assert build(turns(train=False, mask=True)).marks[1] is False


def test_marks_move_with_a_system_message() -> None:
    for record, system in ((turns(loss=0) | {"system": "s"}, None), (turns(loss=0), "s")):
        example = build_example(record, "d:1", recognise(record, "d:1"), system)
        assert example.marks == (False, False, False, False, True)


def test_marks_of_an_answer_are_read_and_those_of_a_question_named() -> None:
    marked = {"messages": [{**USER, "train": True, "weight": 0}, {**ANSWER, "train": True, "reasoning": "r"}]}
    assert list(unread(marked, recognise(marked, "d:1"))) == ["messages[].train"]


@pytest.mark.parametrize(
    "prompt",
    ["q", [USER, ANSWER, USER], [{"role": "system", "content": "s"}, USER, ANSWER, USER]],
    ids=["text", "turns", "system"],
)
@pytest.mark.parametrize("completion", ["b", [{"role": "assistant", "content": "b"}]], ids=["text", "turns"])
def test_of_a_prompt_the_completion_alone_is_trained(prompt: Any, completion: Any) -> None:
    example = build({"prompt": prompt, "completion": completion})
    assert [m["content"] for m, on in zip(example.messages, example.marks, strict=True) if on] == ["b"]
    several = [{"role": "assistant", "content": "b"}, USER, ANSWER]
    example = build({"prompt": prompt, "completion": several})
    assert example.marks[-3:] == (True, False, True) and sum(example.marks) == 2


def test_history_is_trained_as_turns_are() -> None:
    example = build({"instruction": "q", "output": "a", "history": [["x", "y"]]})
    assert example.marks == (False, True, False, True)


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_kept_under_one_name(name: str) -> None:
    example = build({"messages": [USER, {**ANSWER, name: "because"}]})
    assert example.messages[1] == {**ANSWER, "reasoning_content": "because"}
    for nothing in (None, "", " ", False):
        assert build({"messages": [USER, {**ANSWER, name: nothing}]}).messages[1] == ANSWER


PARTS = [{"type": "text", "text": "one, "}, {"type": "text", "text": "two"}]


def test_text_parts_are_joined() -> None:
    for record in (
        {"messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": PARTS}]},
        {"conversations": [{"from": "human", "value": PARTS}, {"from": "gpt", "value": PARTS}]},
        {"prompt": PARTS, "completion": PARTS},
        {"prompt": [{"role": "user", "content": PARTS}], "completion": PARTS},
        {"instruction": PARTS, "output": PARTS},
    ):
        example = build(record)
        assert [message["content"] for message in example.messages] == ["one, two"] * 2
        assert not list(unread(record, recognise(record, "d:1")))
    assert build({"text": PARTS}).text == "one, two"
    null = [{"type": "text", "text": "x", "image_url": None}]  # as parquet fills it
    assert build({"messages": [{"role": "user", "content": null}, ANSWER]}).messages[0]["content"] == "x"


def test_parts_that_are_no_text_are_refused() -> None:
    picture = [PARTS[0], {"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(
        InputError, match=r"messages\[0\].content\[1\]: a part of type 'image_url' is no text"
    ):
        build({"messages": [{"role": "user", "content": picture}, ANSWER]})
    with pytest.raises(InputError, match=r"output: expected a string, got a list"):
        build({"instruction": "q", "output": ["a", "b"]})  # two answers are no parts of one


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"question": "q", "answer": "a"}, "question"),
        ({"query": "q", "response": "a"}, "question"),
        ({"user": "q", "assistant": "a"}, "question"),
        ({"instruction": "q", "response": "a"}, "instruction"),
        ({"prompt": "q", "response": "a"}, "prompt"),
        ({"conversation": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "conversations"),
        ({"Instruction": "q", " OUTPUT ": "a"}, "instruction"),
        ({"messages": None, "instruction": None, "prompt": "q", "completion": "a"}, "prompt"),
    ],
)
def test_spellings_of_question_and_answer(record: dict[str, Any], name: str, tmp_path: Path) -> None:
    assert recognise(record, "d:1").name == name
    example = build(record)
    assert [message["content"] for message in example.messages] == ["q", "a"]
    assert not list(unread(record, recognise(record, "d:1")))
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(record))
    assert next(read_chats(path)).messages == example.messages


def test_the_three_lists_of_layouts_agree() -> None:
    from typing import get_args

    from lorafold.records.layouts import EXPECTED, LAYOUTS
    from lorafold.train.config import LayoutName

    assert set(get_args(LayoutName)) == {"auto", *LAYOUTS}
    answers = {name for row in LAYOUTS.values() for name in row.answer}
    assert answers <= set(EXPECTED), "what training learns, a comparison shows as expected"
