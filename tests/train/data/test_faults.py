"""Every data fault of the list with its line, its field and its exit code."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafold.cli import main
from lorafold.errors import InputError, LorafoldError, SystemFault, UnsafeInputError
from lorafold.records.jsontext import MAX_RECORD
from lorafold.train.data.load import load_data


def jsonl(*lines: str) -> bytes:
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def packed(flags: int, method: int) -> bytes:
    """A zip whose member claims these bits and this compression, in its own header and in the directory."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("a.jsonl", GOOD)
    changed = bytearray(held.getvalue())
    for at in (6, changed.index(b"PK\x01\x02") + 8):  # APPNOTE 4.3.7 and 4.3.12
        changed[at : at + 4] = flags.to_bytes(2, "little") + method.to_bytes(2, "little")
    return bytes(changed)


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
    "tool calls": (
        "d.jsonl",
        jsonl(
            '{"messages": [' + TURN + ', {"role": "assistant", "content": null, "tool_calls": [{"id": 1}]}]}'
        ),
        r"d.jsonl:1: messages\[1\].tool_calls: expected a call with a name; fix: write",
    ),
    "function call": (
        "d.jsonl",
        jsonl(
            GOOD.replace("instruction", "prompt").replace("output", "completion"),
            '{"prompt": "a", "completion": [{"from": "gpt", "value": "", "function_call": {"name": ""}}]}',
        ),
        r"d.jsonl:2: completion\[0\].function_call: expected a call with a name",
    ),
    "two system messages": (
        "d.jsonl",
        jsonl(
            '{"system": "s", "messages": [{"role": "system", "content": "t"}, '
            + TURN
            + ', {"role": "assistant", "content": "b"}]}'
        ),
        "d.jsonl:1: system: messages begins with another system message",
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
    "an encrypted zip": ("d.zip", packed(1, 0), "d.zip: not a readable zip archive .* is encrypted"),
    "a zip packed otherwise": ("d.zip", packed(0, 99), "d.zip: not a readable zip archive .That compression"),
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
    assert caught.value.exit_code == 3 and caught.value.fix
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FAULTS)
def test_the_command_says_it_in_one_line(name: str, tmp_path: Path, capsys: Any) -> None:
    file, content, message = FAULTS[name]
    (tmp_path / file).write_bytes(content)
    assert main(["inspect", str(tmp_path / file)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(message, line) and "; fix: " in line


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        load_data([str(tmp_path / "none.jsonl")])


def test_hub_id_offline() -> None:
    with pytest.raises(SystemFault, match="not in the local cache"):
        load_data(["nobody/a-name-that-is-nowhere"], offline=True)


def test_folder_that_is_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data file is in it \(not read: it is empty\)"):
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
