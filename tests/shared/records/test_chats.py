"""What `train` reads, `compare --prompts`, `export --chats` and `--imatrix-data` read the same way."""

from __future__ import annotations

import gzip
import json
import lzma
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorafold.errors import InputError, UnsafeInputError
from lorafold.export.proof.chats import proof_chats
from lorafold.records.chats import read_chats
from lorafold.serve.comparison.questions import read_prompts
from lorafold.train.data.load import load_data

PARTS = [{"type": "text", "text": "q"}]
RECORDS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    "system": {
        "system": "s",
        "messages": [{"role": "user", "content": PARTS}, {"role": "bot", "content": "a"}],
    },
    "conversations": {"conversations": [{"from": "human", "value": "q"}, {"from": "chatgpt", "value": "a"}]},
    "instruction": {"instruction": "q", "input": "i", "output": "a", "history": [["x", "y"]]},
    "prompt": {"prompt": "q", "completion": "a"},
    "prompt turns": {
        "prompt": [{"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "a"}],
    },
    "question": {"question": "q", "answer": "a"},
    "thought": {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a", "reasoning_content": "r", "weight": 0},
        ]
    },
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("README.txt", "about")
            archive.writestr("a.jsonl.xz", lzma.compress(text))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.mark.parametrize("file", ["d.jsonl", "d.ndjson", "d.json", "d.jsonl.gz", "d.zip"])
@pytest.mark.parametrize("name", RECORDS)
def test_all_four_read_the_same(name: str, file: str, tmp_path: Path) -> None:
    path = write(tmp_path / file, [RECORDS[name]])
    (learnt,) = load_data([str(path)]).examples
    assert [example.messages for example in read_chats(path)] == [learnt.messages]  # --imatrix-data
    assert proof_chats(path, []) == [list(learnt.messages)]
    (asked,) = read_prompts(path)
    said = [(turn["role"], turn["content"]) for turn in learnt.messages]
    assert [(turn["role"], turn["content"]) for turn in asked.messages] == said[:-1]
    assert asked.expected == said[-1][1] == "a"
    assert all(set(turn) == {"role", "content"} for turn in asked.messages)  # nothing else is sent


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=9)
pairs = st.lists(st.tuples(texts.filter(str.strip), texts), min_size=1, max_size=4)


@given(pairs)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_conversation_reads_the_same(tmp_path: Path, said: list[tuple[str, str]]) -> None:
    chat = [
        {"from": role, "value": text}
        for pair in said
        for role, text in zip(("human", "gpt"), pair, strict=True)
    ]
    path = write(tmp_path / "d.jsonl", [{"conversations": chat}])
    (learnt,) = load_data([str(path)]).examples
    assert proof_chats(path, []) == [list(learnt.messages)]
    (asked,) = read_prompts(path)
    assert [*asked.messages] == [*learnt.messages[:-1]] and asked.expected == learnt.messages[-1]["content"]


def test_who_only_asks_needs_no_answer(tmp_path: Path) -> None:
    rows: list[Any] = [
        {"instruction": "q", "input": "i"},
        {"messages": [{"role": "user", "content": "q"}]},
        {"messages": [{"role": "user", "content": "q"}], "expected": "e"},
        {"prompt": "q", "chosen": "c", "rejected": "d"},
        {"prompt": "q", "chosen": [{"role": "assistant", "content": "c"}]},
        {"text": "q"},
        "q",
    ]
    path = write(tmp_path / "d.jsonl", rows)
    asked = read_prompts(path)
    assert [prompt.question for prompt in asked] == ["q\ni", *["q"] * 6]
    assert [prompt.expected for prompt in asked] == [None, None, "e", "c", "c", None, None]
    assert [chat[0]["content"] for chat in proof_chats(path, [])] == [prompt.question for prompt in asked]
    with pytest.raises(InputError, match=r"d.jsonl:1: the field 'output' is missing"):
        load_data([str(path)])
    with pytest.raises(InputError, match=r"'completion' is missing"):  # preferences are not completions
        load_data([str(write(tmp_path / "e.jsonl", rows[3:5]))])


def test_a_text_file_is_questions_or_one_text(tmp_path: Path) -> None:
    for name in ("d.txt", "d.raw", "d"):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbfone\r\n\r\n two\n")
        assert [example.text for example in read_chats(path)] == ["one", "two"]
        assert [example.text for example in read_chats(path, text="whole")] == ["one\r\n\r\n two\n"]
    path = tmp_path / "d.txt.xz"
    path.write_bytes(lzma.compress(b"one\n"))
    assert [prompt.question for prompt in read_prompts(path, "be kind")] == ["one"]


def test_what_is_no_file_of_questions(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        list(read_chats(Path("nobody/questions")))  # no hub is asked for them
    (tmp_path / "d.pkl").write_bytes(b"x")
    with pytest.raises(UnsafeInputError, match="a pickle can run any code"):
        list(read_chats(tmp_path / "d.pkl"))
