"""Reading data: file types, layouts, what is accepted, and the evaluation split."""

from __future__ import annotations

import csv
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafold.errors import InputError, UnsafeInputError
from lorafold.records.jsontext import CHUNK
from lorafold.train.config import TrainConfig
from lorafold.train.data.load import load_data, load_splits

RECORDS = [
    {"instruction": "Héllo, «who» are you?", "output": 'I am "Silas",\nshipmate. 🐚'},
    {"instruction": "Two, with comma", "output": "tab\there"},
    {"instruction": "三", "output": "你放心"},
]


def conversations(path: Path, **options: Any) -> list[list[tuple[str, str]]]:
    data = load_data([str(path)], **options)
    return [[(turn["role"], turn["content"]) for turn in example.messages] for example in data.examples]


EXPECTED = [[("user", str(r["instruction"])), ("assistant", str(r["output"]))] for r in RECORDS]


def write_json(path: Path) -> None:
    path.write_text(json.dumps(RECORDS, ensure_ascii=False, indent=2), encoding="utf-8")


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(r) + "\n" for r in RECORDS), encoding="utf-8")


def write_table(path: Path) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, ["instruction", "output"], delimiter="\t" if path.suffix == ".tsv" else ","
        )
        writer.writeheader()
        writer.writerows(RECORDS)


def write_parquet(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)


def write_saved(path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(RECORDS).save_to_disk(str(path))


def write_saved_splits(path: Path) -> None:
    import datasets

    train = datasets.Dataset.from_list(RECORDS)
    datasets.DatasetDict({"test": train.select([0]), "train": train}).save_to_disk(str(path))


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.jsonl", "".join(json.dumps(r) + "\n" for r in RECORDS))
        archive.writestr("a/README", "not data")


def write_tar(path: Path) -> None:
    inner = path.with_name("inner.jsonl")
    write_jsonl(inner)
    with tarfile.open(path, "w:gz") as archive:
        archive.add(inner, "a/data.jsonl")


WRITERS = {
    "d.json": write_json,
    "d.jsonl": write_jsonl,
    "d.csv": write_table,
    "d.tsv": write_table,
    "d.parquet": write_parquet,
    "saved": write_saved,
    "splits": write_saved_splits,
    "d.zip": write_zip,
    "d.tar.gz": write_tar,
    "array.jsonl": write_json,
    "lines.json": write_jsonl,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_type_round_trips(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    assert conversations(path) == EXPECTED


def test_hash_is_of_the_examples_not_of_the_file(tmp_path: Path) -> None:
    hashes = set()
    for name in ("d.json", "d.jsonl", "d.csv", "d.parquet"):
        WRITERS[name](tmp_path / name)
        hashes.add(load_data([str(tmp_path / name)]).sha256)
    assert len(hashes) == 1
    (tmp_path / "d.jsonl").write_text(json.dumps(RECORDS[0]) + "\n")
    assert load_data([str(tmp_path / "d.jsonl")]).sha256 not in hashes


def test_pickled_frame_needs_leave(tmp_path: Path) -> None:
    import pandas

    path = tmp_path / "d.pkl"
    pandas.DataFrame(RECORDS).to_pickle(path)
    with pytest.raises(UnsafeInputError, match=r"can run any code.*--allow-pickle"):
        load_data([str(path)])
    assert conversations(path, allow_pickle=True) == EXPECTED


def test_what_a_pickled_frame_lacks_is_null(tmp_path: Path) -> None:
    """pandas fills a column with NaN where a record lacks the field."""
    import pandas

    path = tmp_path / "d.pkl"
    pandas.DataFrame([{**RECORDS[0], "input": "x"}, RECORDS[1]]).to_pickle(path)
    first, second = conversations(path, allow_pickle=True)
    assert first[0] == ("user", str(RECORDS[0]["instruction"]) + "\nx") and second == EXPECTED[1]


def test_text_files_split_at_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "d.txt"
    path.write_bytes(b"first\r\nsecond line\r\n\r\n\r\nthird\r\n")
    data = load_data([str(path)])
    assert [example.text for example in data.examples] == ["first\r\nsecond line", "third"]
    assert [example.place for example in data.examples] == ["d.txt:1", "d.txt:5"]
    assert data.layouts == {"text": 2}


LAYOUTS: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "instruction": (
        {"instruction": "a", "input": "b", "output": "c", "system": "s", "history": [["q", "r"]]},
        [("system", "s"), ("user", "q"), ("assistant", "r"), ("user", "a\nb"), ("assistant", "c")],
    ),
    "null input": (
        {"instruction": "a", "input": None, "output": "c", "history": None},
        [("user", "a"), ("assistant", "c")],
    ),
    "messages": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        [("user", "a"), ("assistant", "b")],
    ),
    "conversations": (
        {"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        [("system", "s"), ("user", "a"), ("assistant", "b")],
    ),
    "messages with a system field": (
        {
            "system": "s",
            "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        },
        [("system", "s"), ("user", "a"), ("assistant", "b")],
    ),
    "system twice, the same": (
        {
            "system": "s",
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
            ],
        },
        [("system", "s"), ("user", "a"), ("assistant", "b")],
    ),
    "no calls": (
        {
            "messages": [
                {"role": "user", "content": "a", "tool_calls": None},
                {"role": "assistant", "content": "b", "tool_calls": []},
            ]
        },
        [("user", "a"), ("assistant", "b")],
    ),
    "prompt": ({"prompt": "a", "completion": "b"}, [("user", "a"), ("assistant", "b")]),
    "prompt with a system field": (
        {"prompt": "a", "completion": "b", "system": "s"},
        [("system", "s"), ("user", "a"), ("assistant", "b")],
    ),
    "prompt as messages": (
        {
            "prompt": [{"role": "user", "content": "a"}],
            "completion": [{"role": "assistant", "content": "b"}],
        },
        [("user", "a"), ("assistant", "b")],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str, tmp_path: Path) -> None:
    record, expected = LAYOUTS[name]
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(record))
    assert conversations(path) == [expected]


def test_system_message_for_those_without_one(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    own = {"instruction": "a", "output": "b", "system": "own"}
    path.write_text(json.dumps({**own, "system": None}) + "\n" + json.dumps(own))
    found = conversations(path, system="given")
    assert [turns[0] for turns in found] == [("system", "given"), ("system", "own")]


def test_fields_that_are_not_used_are_said_once_a_source(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a", "name": "Ann"}, {"role": "assistant", "content": "b"}]
    rows = [
        {"messages": turns, "id": i, "tools": [{}] * (i % 2), "system": None, "meta": {}} for i in range(4)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n')
    odd = {"a\nb": 1} | {f"c{i}": 1 for i in range(13)}
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "x"} | odd))
    data = load_data([str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "c.jsonl")])
    named = ", ".join(f"c{i}" for i in range(11))
    assert data.notes == (
        "a.jsonl: fields not used: messages[].name, id, tools",
        f"c.jsonl: fields not used: 'a\\nb', {named} and 2 more",
    )


def test_messages_column_of_a_csv_is_json(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    turns = json.dumps(LAYOUTS["messages"][0]["messages"])
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["messages"], [turns]])
    assert conversations(path) == [[("user", "a"), ("assistant", "b")]]


def test_byte_order_mark_and_crlf_are_accepted(tmp_path: Path) -> None:
    for name, text in (
        ("d.jsonl", "\r\n".join(json.dumps(r) for r in RECORDS)),
        ("d.json", json.dumps(RECORDS, indent=1).replace("\n", "\r\n")),
    ):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert conversations(path) == EXPECTED


def test_one_object_over_several_lines(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + json.dumps(RECORDS[0], indent=1).encode())
        assert conversations(path) == EXPECTED[:1]


def test_array_items_across_chunks(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    records = [{"text": f"{i} " + "é" * (CHUNK // 5)} for i in range(12)]
    path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    data = load_data([str(path)])
    assert [example.text for example in data.examples] == [record["text"] for record in records]
    assert [example.place for example in data.examples] == [f"d.json:{2 + 3 * i}" for i in range(12)]


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


@given(st.lists(st.tuples(text, text), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_json_and_jsonl_read_the_same(tmp_path_factory: Any, rows: list[tuple[str, str]]) -> None:
    folder = tmp_path_factory.mktemp("json")
    records = [{"instruction": a, "output": b} for a, b in rows]
    (folder / "d.json").write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8", newline="")
    (folder / "d.jsonl").write_text("\n".join(json.dumps(r) for r in records), encoding="utf-8")
    expected = [[("user", a), ("assistant", b)] for a, b in rows]
    assert conversations(folder / "d.json") == conversations(folder / "d.jsonl") == expected


def test_evaluation_split_is_drawn_by_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(20)))
    config = TrainConfig(base="x", data=(str(path),), out=tmp_path / "o", eval_split=0.2, seed=1)
    train, held_out = load_splits(config)
    assert held_out is not None
    texts = [example.text for example in train.examples], [example.text for example in held_out.examples]
    assert len(texts[0]) == 16 and len(texts[1]) == 4 and set(texts[0]).isdisjoint(texts[1])
    assert (train.layouts, held_out.layouts) == ({"text": 16}, {"text": 4})
    again = load_splits(config)[1]
    assert again is not None and again.sha256 == held_out.sha256
    with pytest.raises(InputError, match="leaves nothing to train on"):
        path.write_text('{"text": "one"}')
        load_splits(config)


def test_inspect_shows_a_saved_data_set_and_what_is_dropped(tmp_path: Path) -> None:
    from tiny_base import tiny_tokenizer

    from lorafold.inspection import inspect_path

    write_saved(tmp_path / "saved")
    assert dict(inspect_path(str(tmp_path / "saved")).lines)["layout"] == "instruction × 3"
    tagged = tmp_path / "tagged.jsonl"
    tagged.write_text('{"prompt": "a", "completion": "b", "tools": [1]}\n')
    note = ("note", "tagged.jsonl: fields not used: tools")
    assert note in inspect_path(str(tagged)).lines
    base = tmp_path / "base"
    tiny_tokenizer(base)
    (base / "config.json").write_text("{}")
    path = tmp_path / "d.jsonl"
    path.write_text(
        '{"prompt": "a", "completion": "b"}\n' + f'{{"prompt": "{"x" * 90}", "completion": "b"}}\n' * 9
    )
    assert note in inspect_path(str(tagged), base=str(base)).lines
    shown = dict(inspect_path(str(path), base=str(base), max_length=60).lines)
    assert shown["dropped"].startswith("9 examples, nothing is left to learn: d.jsonl:2, d.jsonl:3")
    assert shown["dropped"].endswith("d.jsonl:6 and more")


def test_inspect_takes_layout_system_and_template_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A base without a template, and records that two layouts fit."""
    from tiny_base import tiny_tokenizer

    from lorafold.cli import main

    base = tmp_path / "base"
    tiny_tokenizer(base)
    (base / "config.json").write_text("{}")
    (base / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a", "completion": "b", "text": "c"}\n')
    command = ["inspect", str(path), "--base", str(base)]
    assert main(command) == 3
    assert "no chat template" in capsys.readouterr().err
    assert main([*command, "--chat-template", "chatml", "--system", "S"]) == 0
    shown = capsys.readouterr().out
    assert "prompt × 1" in shown and "system\nS<|im_end|>" in shown and "⟦b<|im_end|>⟧" in shown
    assert main([*command, "--chat-template", "chatml", "--layout", "text"]) == 0
    shown = capsys.readouterr().out
    assert "text × 1" in shown and "⟦<|im_end|>⟧" in shown
