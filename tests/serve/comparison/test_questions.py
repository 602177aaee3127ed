"""Question files: every layout, what is taken out of questions, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorafold.errors import InputError
from lorafold.serve.comparison.questions import read_prompts

QUESTIONS = {
    "a.jsonl": '{"prompt": "one", "completion": "1"}\n\n{"question": "two"}\n',
    "b.jsonl": '{"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"}]}\n'
    '{"conversations": [{"from": "human", "value": "two"}]}\n',
    "c.json": '[{"instruction": "one", "input": "", "output": "1"}, "two"]',
    "d.csv": 'id,question,expected\n7,one,1\n8,"two",\n',
    "e.txt": "\ufeffone\r\n\r\ntwo\n",
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_question_files(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(QUESTIONS[name], encoding="utf-8", newline="")
    prompts = read_prompts(path, system="be kind")
    assert [prompt.question for prompt in prompts] == ["one", "two"]
    assert prompts[0].expected == (None if name == "e.txt" else "1")
    assert prompts[1].messages[0] == {"role": "system", "content": "be kind"}
    assert len(read_prompts(path, limit=1)) == 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", b"\n\n", "no question in it"),
        ("a.txt", b"\xff\xff", "a.txt:1: invalid UTF-8"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt"', "a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"colour": "x"}', "a.jsonl:1: no known layout has the fields 'colour'"),
        ("a.jsonl", b"3", "expected an object, got a number"),
        ("a.jsonl", b'{"messages": [{"role": "judge", "content": "x"}]}', "unknown role 'judge'"),
        (
            "a.jsonl",
            b'{"messages": [{"role": "system", "content": "x"}]}',
            "no user turn, so there is no question",
        ),
        ("a.json", b"[", "not valid JSON"),
        ("a.json", b"[" * 100_000, "nested too deeply"),
        ("a.jsonl", b'{"messages":' + b"[" * 100_000, "a.jsonl:1: nested too deeply"),
        ("a.jsonl", b'{"prompt": "a\\ud800"}', "a.jsonl:1: prompt: holds half of a surrogate pair"),
        ("a.jsonl", b'{"prompt": "\\u001b\\u0007"}', "a.jsonl:1: an empty question"),
        ("a.csv", b"system,output\nx,y\n", "the field 'instruction' is missing"),
        ("a.csv", b"a,b\n1,2\n", "no known layout has the fields 'a', 'b'"),
        ("a.csv", b'"prompt\nx', "a.csv:1: not valid CSV"),
    ],
)
def test_question_files_that_are_wrong(name: str, text: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(text)
    with pytest.raises(InputError, match=said):
        read_prompts(path)
    with pytest.raises(InputError, match="there is no such file"):
        read_prompts(tmp_path / "none")


ALPACA = {
    "a.csv": 'Instruction,input,output,system\nTranslate,"Good, you",Bon,be brief\n'
    "Greet,,Hi,\n,only this,x,\n",
    "a.jsonl": '{"instruction": "Translate", "input": "Good, you", "output": "Bon", "system": "be brief"}\n'
    '{"instruction": "Greet", "input": "", "output": "Hi", "system": ""}\n'
    '{"instruction": "", "input": "only this", "output": "x"}\n',
}


@pytest.mark.parametrize("name", ALPACA)
def test_alpaca_with_input_and_system(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(ALPACA[name])
    prompts = read_prompts(path, system="be kind")
    # One line end between the two, as training's layout has it: the adapter has seen no other.
    assert [prompt.question for prompt in prompts] == ["Translate\nGood, you", "Greet", "only this"]
    assert [prompt.messages[0]["content"] for prompt in prompts] == ["be brief", "be kind", "be kind"]
    assert [prompt.expected for prompt in prompts] == ["Bon", "Hi", "x"]


def test_control_characters_are_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(
        '{"prompt": "a\\u000b\\u001b[2J\\r\\nb\\tc", "system": "s\\u0000"}\n{"prompt": "plain"}\n'
    )
    first, second = read_prompts(path)
    assert [message["content"] for message in first.messages] == ["s", "a[2J\nb\tc"]
    assert (first.removed, second.removed) == (3, 0)
