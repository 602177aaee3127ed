"""JSON of strangers: what has another form than the program indexes is named, and what is right is let be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorafold.artifacts import read_manifest
from lorafold.errors import InputError, LorafoldError, UnsafeInputError
from lorafold.files.jsonfile import read_object
from lorafold.files.shapes import require_shape


@pytest.mark.parametrize(
    ("value", "shape", "says"),
    [
        ({"a": 1}, {"a": str}, '"a" is not a text, but a whole number'),
        ({"a": True}, {"a": int}, '"a" is not a whole number, but true or false'),
        ({"a": [1, "x"]}, {"a": [int]}, '"a[1]" is not a whole number, but a text'),
        ({"a": {"b": []}}, {"a": {"*": dict}}, '"a.b" is not an object, but a list'),
        ({}, {"a!": str}, '"a" is not a text, but null'),
        ({"a": 1.5}, {"a": (str, [str])}, '"a" is not a text or a list, but a number'),
        ({"a": [{"b": 1}]}, {"a": (str, [{"b": str}])}, '"a[0].b" is not a text, but a whole number'),
        ([], {"a": str}, "the whole is not an object, but a list"),
    ],
)
def test_what_departs_is_named(value: Any, shape: Any, says: str) -> None:
    with pytest.raises(InputError) as caught:
        require_shape(value, shape, "file.json")
    assert str(caught.value).startswith(f"file.json: {says}; fix: ")


def test_what_is_missing_or_null_or_unknown_is_let_be() -> None:
    require_shape({"a": None, "z": 3}, {"a": str, "b": [int]}, "file.json")


@pytest.mark.parametrize("name", ["config.json", "other.json"])
def test_deep_nesting_and_half_characters_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text('{"a": ' + "[" * 200 + "]" * 200 + "}")
    with pytest.raises(InputError, match="nested too deeply"):
        read_object(path)
    path.write_text('{"a": "\\ud83d"}')
    with pytest.raises(InputError, match="half a character"):
        read_object(path)
    path.write_text('{"a": "\\ud83d\\udc1a"}')
    assert read_object(path) == {"a": "🐚"}


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "a\nb", ""])
def test_a_manifest_names_files_of_its_folder(name: str, tmp_path: Path) -> None:
    """`push` sends what the manifest names."""
    facts = {"kind": "export", "files": {name: {"size": 1, "sha256": "ab"}}}
    (tmp_path / "lorafold.json").write_text(json.dumps(facts))
    with pytest.raises(UnsafeInputError, match="no file of this folder"):
        read_manifest(tmp_path)


def test_a_message_is_cut_to_what_can_be_read() -> None:
    text = str(LorafoldError("x" * 100_000, at="y" * 100_000, fix="do"))
    assert len(text) < 7000 and text.endswith("x; fix: do") and "characters left out" in text
