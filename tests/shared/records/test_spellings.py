"""Turns, roles and fields as programs spell them, and records that are no examples to train on."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from lorafold.cli import main
from lorafold.errors import InputError
from lorafold.records.layouts import Example, build_example, recognise, unread
from lorafold.train.data.load import load_data

Q, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
ASKED = [("user", "q", False), ("assistant", "a", True)]
TWICE = [("user", "x", False), ("assistant", "y", True), *ASKED]


def build(record: dict[str, Any], layout: str = "auto") -> Example:
    return build_example(record, "d:1", recognise(record, "d:1", layout))


def turns(example: Example) -> list[tuple[str, str, bool]]:
    pairs = zip(example.messages, example.marks, strict=True)
    return [(message["role"], message["content"], on) for message, on in pairs]


RECORDS: dict[str, tuple[dict[str, Any], list[tuple[str, str, bool]]]] = {
    "capitals": (
        {"messages": [{"role": "User", "content": "q"}, {"role": " ASSISTANT", "content": "a"}]},
        ASKED,
    ),
    "Gemini": (
        {
            "contents": [
                {"role": "user", "parts": [{"text": "q"}]},
                {"role": "model", "parts": [{"text": "a"}]},
            ]
        },
        ASKED,
    ),
    "OpenAI's developer": (
        {"messages": [{"role": "developer", "content": "s"}, Q, A]},
        [("system", "s", False), *ASKED],
    ),
    "OpenAssistant": (
        {"messages": [{"role": "prompter", "content": "q"}, {"role": "assistant", "content": "a"}]},
        ASKED,
    ),
    "Cohere": (
        {"messages": [{"role": "User", "content": "q"}, {"role": "Chatbot", "content": "a"}]},
        ASKED,
    ),
    "from and content": (
        {"conversations": [{"from": "human", "content": "q"}, {"from": "gpt", "content": "a"}]},
        ASKED,
    ),
    "role and value": (
        {"conversations": [{"role": "user", "value": "q"}, {"role": "gpt", "value": "a"}]},
        ASKED,
    ),
    "from and text": ({"dialogue": [{"from": "human", "text": "q"}, {"from": "ai", "text": "a"}]}, ASKED),
    "Firefly": (
        {"conversation": [{"human": "x", "assistant": "y"}, {"human": "q", "assistant": "a"}]},
        TWICE,
    ),
    "XTuner": (
        {"conversation": [{"system": "s", "input": "q", "output": "a"}]},
        [("system", "s", False), *ASKED],
    ),
    "a marked pair": (
        {"conversation": [{"human": "x", "assistant": "y", "loss": 0}, {"human": "q", "assistant": "a"}]},
        [("user", "x", False), ("assistant", "y", False), *ASKED],
    ),
    "ms-swift": ({"query": "q", "response": "a", "history": [["x", "y"]]}, TWICE),
    "ms-swift without history": ({"query": "q", "response": "a", "history": None}, ASKED),
    "history as objects": (
        {"instruction": "q", "output": "a", "history": [{"query": "x", "response": "y"}]},
        TWICE,
    ),
    "history as turns": (
        {
            "question": "q",
            "answer": "a",
            "history": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        },
        TWICE,
    ),
    "history before a prompt": (
        {"prompt": "q", "response": "a", "history": [["x", "y"]]},
        [("user", "x", False), ("assistant", "y", False), *ASKED],
    ),
    "one turn as the completion": ({"prompt": [Q], "completion": A}, ASKED),
    "Dolly": ({"instruction": "i", "context": "c", "response": "a"}, [("user", "i\nc", False), ASKED[1]]),
    "OpenOrca": (
        {"system_prompt": "s", "question": "q", "response": "a"},
        [("system", "s", False), *ASKED],
    ),
    "Bedrock": (
        {
            "system": [{"text": "s"}],
            "messages": [
                {"role": "user", "content": [{"text": "q"}]},
                {"role": "assistant", "content": [{"text": "a"}]},
            ],
        },
        [("system", "s", False), *ASKED],
    ),
    "turns by columns": (
        {"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}},
        ASKED,
    ),
    "input and output": ({"input": "q", "output": "a"}, ASKED),
    "an empty instruction": ({"instruction": "", "input": "q", "output": "a"}, ASKED),
    "human and bot": ({"Human": "q", "Bot": "a"}, ASKED),
    "Chinese headers": ({"问题": "q", "回答": "a"}, ASKED),
    "Chinese instructions": ({"指令": "q", "输入": "", "输出": "a"}, ASKED),
    "Spanish headers": ({"Pregunta": "q", "Respuesta ": "a"}, ASKED),
    "problem and solution": ({"problem": "q", "solution": "a"}, ASKED),
    "null everywhere": (
        {"messages": None, "system": "s", "instruction": "q", "input": None, "output": "a", "history": None},
        [("system", "s", False), *ASKED],
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_spellings_of_a_record(name: str) -> None:
    record, expected = RECORDS[name]
    assert turns(build(record)) == expected
    assert not list(unread(record, recognise(record, "d:1")))


@pytest.mark.parametrize(
    "thought",
    [
        {"type": "thinking", "thinking": "because", "signature": "x"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "be"}, {"type": "text", "text": "cause"}]},
        {"type": "reasoning", "text": "because"},
    ],
    ids=["Anthropic", "Mistral", "a text"],
)
def test_thoughts_among_the_parts_are_no_part_of_the_answer(thought: dict[str, Any]) -> None:
    answer = {"role": "assistant", "content": [thought, {"type": "text", "text": "a"}]}
    record = {"messages": [Q, answer]}
    example = build(record)
    assert turns(example) == ASKED and example.messages[1]["reasoning_content"] == "because"
    assert not list(unread(record, recognise(record, "d:1")))
    with pytest.raises(InputError, match=r"content: expected a string, got a list"):
        build({"messages": [Q, {"role": "assistant", "content": [thought]}]})


@pytest.mark.parametrize("name", ["training", "loss_scale"])
def test_further_marks_of_turns(name: str) -> None:
    assert build({"messages": [Q, {**A, name: 0}, Q, {**A, name: True}]}).marks == (False, False, False, True)
    with pytest.raises(InputError, match=rf"messages\[1\]\.{name}: expected true or false .*got 0\.3"):
        build({"messages": [Q, {**A, name: 0.3}]})


@pytest.mark.parametrize("role", ["narrator", "Wizard", "", 3, None])
def test_an_unknown_role_is_named_with_those_that_are_known(role: Any) -> None:
    with pytest.raises(InputError, match=rf"messages\[0\]\.role: unknown role {role!r} \(known: .*model"):
        build({"messages": [{"role": role, "content": "q"}, A]})


CHOSEN: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "turns": {"prompt": [Q], "chosen": [A], "rejected": [A]},
    "whole conversations": {"chosen": [Q, A], "rejected": [Q, A]},
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    },
    "instruction": {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
    "question": {"question": "q", "chosen": "a", "rejected": "b"},
}


@pytest.mark.parametrize("name", CHOSEN)
def test_preferences_are_refused_unless_the_chosen_answer_is_asked_for(name: str) -> None:
    with pytest.raises(InputError, match=r"d:1: .*: this is preference data .*; fix: --layout chosen trains"):
        build(CHOSEN[name])
    assert turns(build(CHOSEN[name], "chosen")) == ASKED
    assert list(unread(CHOSEN[name], recognise(CHOSEN[name], "d:1", "chosen"))) == ["rejected"]


def test_of_preferences_with_earlier_answers_the_chosen_alone_is_trained() -> None:
    record = {"messages": [Q, A, {**Q, "content": "r"}], "chosen": A, "rejected": A}
    with pytest.raises(InputError, match="preference data"):  # not the answer before the question
        build(record)
    assert [on for *_, on in turns(build(record, "chosen"))] == [False, False, False, True]
    assert turns(build({"messages": [Q, A], "chosen": [Q, A], "prompt": "q"})) == ASKED  # UltraFeedback
    with pytest.raises(InputError, match="chosen: no question stands before it"):
        build({"chosen": "Human: q Assistant: a", "rejected": "b"}, "chosen")


@pytest.mark.parametrize("verdict", [{"label": False}, {"kto_tag": False}, {"label": "False"}])
def test_answers_to_avoid_are_no_examples(verdict: dict[str, Any]) -> None:
    for record in (
        {"prompt": "q", "completion": "a"},
        {"messages": [Q, A]},
        {"instruction": "q", "output": "a"},
    ):
        with pytest.raises(InputError, match=r"false, so the answer is one that a model shall not give"):
            build({**record, **verdict})
        assert turns(build({**record, **dict.fromkeys(verdict, True)})) == ASKED
        assert turns(build({**record, **dict.fromkeys(verdict, 0)})) == ASKED  # a class, not a verdict
    assert build({"text": "x", **verdict}).text == "x"


def test_the_chosen_answers_are_trained_by_the_command_line(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(CHOSEN["texts"]) + "\n")
    assert main(["inspect", str(path)]) == 3
    assert "--layout chosen" in capsys.readouterr().err
    assert main(["inspect", str(path), "--layout", "chosen"]) == 0
    shown = capsys.readouterr().out
    assert "chosen × 1" in shown and "fields not used: rejected" in shown


FAULTS: dict[str, tuple[list[Any], str]] = {
    "a turn a line": ([Q], r"d\.jsonl:1: no known layout .*; fix: this is a turn alone: write {\"messages\""),
    "another layout later": (
        [{"instruction": "q", "output": "a"}, {"messages": [Q, A]}],
        r"d\.jsonl:2: the field 'instruction' is missing .*; fix: put records of the layout messages into",
    ),
    "a slip in the instruction": (
        [{"instrution": "q", "input": "x", "output": "a"}],
        r"the field 'instrution' is not known; 'instruction' is; fix: rename it",
    ),
    "a slip in the answer": ([{"instruction": "q", "ouput": "a"}], "'output' is missing .*'ouput'"),
    "Python's spelling": (
        [{"messages": str([Q, A])}],
        r"expected a list, got Python's spelling .*json\.dumps",
    ),
    "a table by columns": (
        [{"instruction": {"0": "q", "1": "r"}, "output": {"0": "a", "1": "b"}}],
        r"d\.jsonl:1: a table written column by column: 'instruction', 'output'; fix: .*records",
    ),
    "an object around the turns": (
        [{"conversation": {"messages": [Q, A]}}],
        "conversation: expected a list, got an object with the fields 'messages'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_causes_and_cures_of_records(fault: str, tmp_path: Path) -> None:
    rows, message = FAULTS[fault]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=message) as caught:
        load_data([str(tmp_path / "d.jsonl")])
    assert "\n" not in str(caught.value) and caught.value.fix


TABLES = {
    "a.csv": ("Who are you?,Silas\nWhere?,On the rock\n", "is no header but data: write .*: question,answer"),
    "b.csv": ("Say hello!\n", "is no header but data: write this line above it: text"),
    "c.csv": (
        "hi,hello\nbye,farewell\n",
        "rename the columns; if the first line is no header, .*question,answer",
    ),
    "d.tsv": ("hi\thello\tx\n1\t2\t3\n", "above it: instruction\tinput\toutput"),
    "a.tsv.csv": ("hi,hello\nbye,farewell\n", "above it: question,answer"),
    "A.CSV": ("hi,hello\nbye,farewell\n", "above it: question,answer"),
    "a.csv.xz": ("hi,hello\nbye,farewell\n", "above it: question,answer"),
    "e.csv": ("w,x,y,z\n1,2,3,4\n", "fix: rename the fields"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_without_a_header_is_told_the_line_that_it_needs(name: str, tmp_path: Path) -> None:
    text, message = TABLES[name]
    content = (text + text).encode()
    (tmp_path / name).write_bytes(lzma.compress(content) if name.endswith(".xz") else content)
    with pytest.raises(InputError, match=message):
        load_data([str(tmp_path / name)])
