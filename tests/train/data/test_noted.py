"""What is odd about a data set is counted and said; what is in order is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafold.cli import main
from lorafold.train.data.load import load_data

GOOD = [{"instruction": f"q{number}", "output": f"a{number}"} for number in range(6)]
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
CHAT = [USER, ANSWER]


def notes(path: Path, rows: list[Any]) -> tuple[str, ...]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_data([str(path)]).notes


CASES: dict[str, tuple[list[Any], str]] = {
    "empty answers": (
        [*GOOD, {"instruction": "x", "output": ""}, {"instruction": "y", "output": " \n"}],
        "2 of 8 examples have an empty answer, which is not trained (first: d.jsonl:7)",
    ),
    "an empty answer in between": (
        [{"messages": [USER, {**ANSWER, "content": " "}, USER, ANSWER]}],
        "1 of 1 examples have an empty answer, which is not trained (first: d.jsonl:1)",
    ),
    "an empty question": (
        [*GOOD, {"instruction": " ", "output": "a"}],
        "1 of 7 examples have an empty question, and are trained so (first: d.jsonl:7)",
    ),
    "all alike": ([*GOOD[:1]] * 20, "only 1 of 20 examples are different; the others repeat them"),
    "alike but for blanks and case": (
        [{"instruction": "Q  one", "output": "A"}, {"instruction": "q one\n", "output": "a"}],
        "only 1 of 2 examples are different; the others repeat them",
    ),
    "a conversation as text": (
        [{"text": json.dumps({"messages": CHAT})}, {"text": json.dumps(CHAT)}, {"text": '{"a": 1}'}],
        "2 of 3 examples are JSON of a conversation, trained as text; write the JSON itself as the record "
        "(first: d.jsonl:1)",
    ),
    "a question at the end": (
        [{"messages": [*CHAT, USER]}],
        "1 of 1 examples end with a question that nobody answers, which teaches nothing (first: d.jsonl:1)",
    ),
    "marked answers": (
        [{"messages": [USER, {**ANSWER, "weight": 0}, USER, ANSWER]}],
        "1 of 2 answers are marked as not trained, or stand in a prompt",
    ),
    "answers in a prompt": (
        [{"prompt": [USER, ANSWER, USER], "completion": "b"}],
        "1 of 2 answers are marked as not trained, or stand in a prompt",
    ),
    "history": (
        [{"instruction": "q", "output": "a", "history": [["x", "y"], ["z", "w"]]}],
        "2 answers in history are trained too",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_oddities_are_counted_and_said(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, said = CASES[case]
    assert notes(tmp_path / "d.jsonl", rows) == (said,)
    assert main(["inspect", str(tmp_path / "d.jsonl")]) == 0
    assert said in " ".join(capsys.readouterr().out.split())


def test_nothing_is_said_of_what_is_in_order(tmp_path: Path) -> None:
    assert notes(tmp_path / "d.jsonl", GOOD) == ()
    assert notes(tmp_path / "d.jsonl", [*GOOD, *GOOD[:5]]) == ()  # some repetition is usual
    assert notes(tmp_path / "d.jsonl", [{"text": f"[{number}] said"} for number in range(3)]) == ()
    assert notes(tmp_path / "d.jsonl", [{"messages": CHAT}]) == ()
