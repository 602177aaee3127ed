"""JSON as people and programs write it: read if it can mean only one thing, else refused in one line."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from lorafold.errors import InputError
from lorafold.records.jsontext import CHUNK, read_json

A, B = {"prompt": "é «1»", "completion": "x"}, {"prompt": "2", "completion": '{"y": [1]}'}
ONE, TWO = (json.dumps(row, ensure_ascii=False) for row in (A, B))
INDENTED = [json.dumps(row, indent=2) for row in (A, B)]


def read(text: str | bytes) -> list[tuple[str, Any]]:
    return list(read_json(io.BytesIO(text if isinstance(text, bytes) else text.encode()), "d"))


SPELLINGS = {
    "lines": f"{ONE}\n{TWO}\n",
    "no line end": f"{ONE}\n{TWO}",
    "array": f"[{ONE}, {TWO}]",
    "array over lines": f"\n [\n{ONE},\n{TWO}\n]\n",
    "comma behind the last item": f"[{ONE},\n{TWO},\n]",
    "joined": ONE + TWO,
    "joined by a blank": f"{ONE} {TWO}",
    "carriage returns alone": f"{ONE}\r{TWO}\r",
    "lines that end with commas": f"{ONE},\n{TWO},\n",
    "objects over several lines": "\n".join(INDENTED),
    "objects over several lines, with commas": ",\n".join(INDENTED),
    "RFC 7464": f"\x1e{ONE}\n\x1e{TWO}\n",
    "in an object": json.dumps({"data": [A, B]}),
    "in an object over lines": json.dumps({"version": "1.1", "meta": {"n": 2}, "train": [A, B]}, indent=1),
    "in an object, with more behind": json.dumps({"examples": [A, B], "count": 2}),
    "in an object, an item a line": f'{{"rows": [{ONE},\n{TWO}\n]}}',
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_same_records(spelling: str) -> None:
    text = SPELLINGS[spelling]
    assert [record for _, record in read(text)] == [A, B]
    assert [record for _, record in read(b"\xef\xbb\xbf" + text.encode())] == [A, B]


def test_places_are_lines() -> None:
    assert [place for place, _ in read(f"{ONE}\n\n{TWO}")] == ["d:1", "d:3"]
    assert [place for place, _ in read(f"{ONE}{TWO}\n{ONE}")] == ["d:1", "d:1", "d:2"]
    assert [place for place, _ in read("\n".join(INDENTED))] == ["d:1", "d:5"]
    assert [place for place, _ in read(SPELLINGS["in an object, an item a line"])] == ["d:1", "d:2"]


def test_records_of_an_array_in_one_line_are_told_apart() -> None:
    three = f"[{ONE}, {TWO}, {ONE},\n{TWO}]"
    places = ["d:1", "d:1 (record 2)", "d:1 (record 3)", "d:2"]
    assert [place for place, _ in read(three)] == places
    assert [place for place, _ in read(f'{{"data": {three}}}')] == places


def test_a_long_list_in_an_object_is_streamed() -> None:
    rows = [{"text": "é" * (CHUNK // 3)} for _ in range(8)]
    text = json.dumps({"info": "x", "data": rows, "n": 8}, ensure_ascii=False)
    found = read_json(io.BytesIO(text.encode()), "d")
    assert next(found)[1] == rows[0] and [record for _, record in found] == rows[1:]


def test_a_list_of_turns_is_a_field_of_a_record_and_no_wrapper() -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    assert read(json.dumps({"items": turns}))[0][1] == {"items": turns}
    chat = {"data": ["q", "a"], "id": "1"}
    assert [record for _, record in read(f"{json.dumps(chat)}\n{json.dumps(chat)}")] == [chat, chat]
    record = {"rows": [{"cell": 1}], "instruction": "q", "output": "a"}
    assert [record for _, record in read(f"{json.dumps(record)}\n{json.dumps(record)}")] == [record, record]
    several = {"instruction": "q", "instances": [{"input": "i", "output": "o"}]}
    assert read(json.dumps(several)) == [("d:1", several)]
    with pytest.raises(InputError, match="a record's field 'instruction' stands beside the list of records"):
        read(json.dumps(record))


def test_nan_is_no_value() -> None:
    assert read('{"a": NaN, "b": 1}')[0][1] == {"a": None, "b": 1}
    assert read('{"a": -Infinity}')[0][1]["a"] == float("-inf")


FAULTS = {
    "Python's spelling": (f"{ONE}\n{{'prompt': 'a'}}", r"d:2: .*single quotes of Python.*json\.dumps"),
    "Python's spelling in an array": ("[\n{'prompt': 'a'}]", r"d:2: .*single quotes of Python"),
    "None": ('{"input": None}', "Python's None"),
    "typographic quotes": ("{“prompt”: “a”}", "typographic quotes"),
    "a comment": (f"// data\n{ONE}", "d:1: .*a comment at column 1"),
    "a line break in a text": ('{"prompt": "a\nb"}', "a line break or another control character"),
    "a lone backslash": ('{"prompt": "C:\\dir"}', "a backslash that escapes nothing"),
    "two lists": (json.dumps({"train": [A], "test": [B]}), "several lists of records: 'train' and 'test'"),
    "something behind": (f"{ONE} x", "d:1: not valid JSON .Expecting value at column"),
    "something behind a list": (json.dumps({"data": [A]}) + "\nx", "d:2: text after the end of the object"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_causes_are_named(fault: str) -> None:
    text, message = FAULTS[fault]
    with pytest.raises(InputError, match=message) as caught:
        read(text)
    assert caught.value.fix and "\n" not in str(caught.value) and "cut off" not in str(caught.value)


@pytest.mark.parametrize(
    "text", [ONE[:12], ONE[:-1], f"{ONE}\n{TWO[:-3]}", f"[{ONE}, {TWO[:9]}", "\n".join(INDENTED)[:-4]]
)
def test_a_file_that_ends_too_early_looks_cut_off(text: str) -> None:
    with pytest.raises(InputError, match="cut off"):
        read(text)
