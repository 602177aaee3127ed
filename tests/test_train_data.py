"""Reading data: file types, layouts, and every data fault of the list with its line and exit code."""

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

from lorafold.errors import InputError, LorafoldError, SystemFault, UnsafeInputError
from lorafold.train.config import TrainConfig
from lorafold.train.data import load_data, load_splits
from lorafold.train.jsontext import CHUNK, MAX_RECORD

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
    "prompt": ({"prompt": "a", "completion": "b"}, [("user", "a"), ("assistant", "b")]),
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


def jsonl(*lines: str) -> bytes:
    return "\n".join(lines).encode("utf-8", "surrogatepass")


GOOD = '{"instruction": "a", "output": "b"}'
TURN = '{"role": "user", "content": "a"}'
FAULTS: dict[str, tuple[str, bytes, str]] = {
    "empty": ("d.jsonl", b"", "d.jsonl: the data set is empty"),
    "empty array": ("d.json", b"[]", "d.json: the data set is empty"),
    "invalid UTF-8": ("d.jsonl", GOOD.encode() + b'\n{"a": "\xff"}', "d.jsonl:2: invalid UTF-8"),
    "invalid UTF-8 in an array": ("d.json", b"[" + GOOD.encode() + b',\n"\xff"]', "d.json:2: invalid UTF-8"),
    "truncated last line": ("d.jsonl", jsonl(GOOD, GOOD[:20]), "d.jsonl:2: not valid JSON.*looks cut off"),
    "truncated array": ("d.json", b"[" + GOOD.encode() + b",\n" + GOOD[:20].encode(), "d.json:2: .*cut off"),
    "missing field": (
        "d.jsonl",
        jsonl(GOOD, '{"instruction": "a"}'),
        "d.jsonl:2: the field 'output' is missing",
    ),
    "missing field in the first": (
        "d.jsonl",
        jsonl('{"output": "a"}'),
        "d.jsonl:1: .*'instruction' is missing",
    ),
    "no layout": ("d.jsonl", jsonl('{"foo": "a"}'), "d.jsonl:1: no known layout has the fields 'foo'"),
    "null": ("d.jsonl", jsonl(GOOD, '{"instruction": "a", "output": null}'), "d.jsonl:2: output: .*got null"),
    "wrong type": ("d.jsonl", jsonl('{"instruction": 3, "output": "b"}'), "instruction: .*got a number"),
    "not an object": ("d.jsonl", jsonl(GOOD, "[1]"), "d.jsonl:2: expected an object, got a list"),
    "unknown role": (
        "d.jsonl",
        jsonl('{"messages": [{"role": "wizard", "content": "a"}]}'),
        r"messages\[0\].role: unknown role 'wizard'",
    ),
    "wrong order": (
        "d.jsonl",
        jsonl('{"messages": [{"role": "assistant", "content": "b"}, ' + TURN + "]}"),
        r"messages\[0\]: wrong order: expected user, got assistant",
    ),
    "no assistant turn": ("d.jsonl", jsonl('{"messages": [' + TURN + "]}"), "no assistant turn"),
    "turns not a list": ("d.jsonl", jsonl('{"messages": 5}'), "messages: expected a list, got a number"),
    "turn not an object": ("d.jsonl", jsonl('{"messages": [5]}'), r"messages\[0\]: expected an object"),
    "turn without content": (
        "d.jsonl",
        jsonl('{"messages": [{"role": "user"}]}'),
        r"messages\[0\]: the field 'content' is missing",
    ),
    "history not pairs": (
        "d.jsonl",
        jsonl('{"instruction": "a", "output": "b", "history": [["x"]]}'),
        r"history\[0\]: expected \[user, answer\]",
    ),
    "duplicate key": ("d.jsonl", jsonl('{"instruction": "a", "instruction": "b", "output": "c"}'), "twice"),
    "duplicate key in an array": ("d.json", b'[\n{"a": 1, "a": 2}]', "d.json:2: the key 'a' occurs twice"),
    "NUL": ("d.jsonl", jsonl(GOOD, r'{"instruction": "a", "output": "b\u0000"}'), "d.jsonl:2: output: .*NUL"),
    "lone surrogate": (
        "d.jsonl",
        jsonl(r'{"instruction": "a\ud83d", "output": "b"}'),
        r"d.jsonl:1: instruction: .*surrogate pair \(U\+D83D\)",
    ),
    "deep nesting": ("d.jsonl", b"[" * 100_000, "d.jsonl:1: nested too deeply"),
    "deep nesting in a line": ("d.jsonl", jsonl(GOOD, '{"a":' * 100_000), "d.jsonl:2: nested too deeply"),
    "not JSON": ("d.json", b"hello", "d.json:1: not valid JSON"),
    "text after the array": ("d.json", b"[" + GOOD.encode() + b"]\nx", "d.json:2: text after the end"),
    "missing comma": (
        "d.json",
        b"[" + GOOD.encode() + b"\n" + GOOD.encode() + b"]",
        "d.json:2: .*expected ,",
    ),
    "too few columns": ("d.csv", b"instruction,output\na,b\nc\n", "d.csv:3: expected 2 columns, got 1"),
    "column twice": ("d.csv", b"output,output\na,b\n", "d.csv:1: a column name occurs twice"),
    "open quote": ("d.csv", b'instruction,output\n"a,b\n', "d.csv:2: not valid CSV"),
    "not parquet": ("d.parquet", b"hello", "d.parquet: not a readable parquet file"),
    "not a zip": ("d.zip", b"hello", "d.zip: not a readable zip"),
    "not a tar": ("d.tar", b"hello", "d.tar: not a readable tar"),
    "unknown type": ("d.docx", b"x", r"d.docx: unknown file type \(known: .json"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_data_faults_name_line_and_field(name: str, tmp_path: Path) -> None:
    file, content, message = FAULTS[name]
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_data([str(path)])
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        load_data([str(tmp_path / "none.jsonl")])


def test_hub_id_offline() -> None:
    with pytest.raises(SystemFault, match="not in the local cache"):
        load_data(["nobody/a-name-that-is-nowhere"], offline=True)


def test_folder_that_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder that `datasets` saved"):
        load_data([str(tmp_path)])


def make_script(path: Path) -> Path:
    path.write_text("print(1)")
    return path


def make_script_folder(path: Path) -> Path:
    path.mkdir()
    make_script(path / "load.py")
    return path


def make_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../d.jsonl", GOOD)
    return path


def make_tar(path: Path) -> Path:
    inner = path.with_name("inner.jsonl")
    inner.write_text(GOOD)
    with tarfile.open(path, "w") as archive:
        archive.add(inner, "/etc/d.jsonl")
        archive.getmembers()[0].name = "/etc/d.jsonl"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a/../../d.jsonl")
        archive.addfile(info)
    return path


@pytest.mark.parametrize(
    ("name", "make"),
    [("d.py", make_script), ("folder", make_script_folder), ("d.zip", make_zip), ("d.tar", make_tar)],
)
def test_unsafe_sources(name: str, make: Any, tmp_path: Path) -> None:
    path = make(tmp_path / name)
    with pytest.raises(UnsafeInputError) as caught:
        load_data([str(path)])
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("name", ["d.jsonl", "d.json"])
def test_a_50_mb_line_needs_bounded_memory(name: str, tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / name
    with open(path, "wb") as file:
        file.write(b'[{"text": "' if name == "d.json" else b'{"text": "')
        for _ in range(50):
            file.write(b"x" * (1 << 20))
        file.write(b'"}]' if name == "d.json" else b'"}')
    tracemalloc.start()
    with pytest.raises(InputError, match=f"longer than {MAX_RECORD >> 20} MiB"):
        load_data([str(path)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MAX_RECORD


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


@given(st.binary(max_size=200))
@settings(max_examples=80, deadline=None)
def test_any_bytes_are_read_or_refused(tmp_path_factory: Any, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for suffix in ("json", "jsonl", "csv", "txt"):
        path = folder / f"d.{suffix}"
        path.write_bytes(raw)
        try:
            data = load_data([str(path)])
        except LorafoldError as error:
            assert error.exit_code == 3
        else:
            assert data.examples


def test_evaluation_split_is_drawn_by_the_seed(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"text": str(i)}) + "\n" for i in range(20)))
    config = TrainConfig(base="x", data=(str(path),), out=tmp_path / "o", eval_split=0.2, seed=1)
    train, held_out = load_splits(config)
    assert held_out is not None
    texts = [example.text for example in train.examples], [example.text for example in held_out.examples]
    assert len(texts[0]) == 16 and len(texts[1]) == 4 and set(texts[0]).isdisjoint(texts[1])
    again = load_splits(config)[1]
    assert again is not None and again.sha256 == held_out.sha256
    with pytest.raises(InputError, match="leaves nothing to train on"):
        path.write_text('{"text": "one"}')
        load_splits(config)
