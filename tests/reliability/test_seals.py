"""Sealed records: a bit that changes is found, wherever it is; what others wrote is read as before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorafold.artifacts import damaged_files
from lorafold.files.seals import has_changed, is_intact, sealed

RECORD = {"number": 3, "text": "ä\u2028\ud800 1e-05", "loss": 1e-05, "none": None}


@pytest.mark.parametrize("indent", [None, 1, 2])
def test_a_record_comes_back_with_its_digest(indent: int | None) -> None:
    text = sealed(RECORD, indent=indent)
    assert is_intact(text) and not has_changed(text)
    assert {**json.loads(text), "sha256": ""} == {**RECORD, "sha256": ""}
    assert text.endswith("}\n") and ("\n" in text[:-1]) == (indent is not None)


@pytest.mark.parametrize("indent", [None, 2])
def test_every_single_bit_is_found(indent: int | None) -> None:
    content = sealed(RECORD, indent=indent).encode()
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            text = changed.decode()
            json.loads(text)
        except ValueError:
            continue  # no reader takes it
        assert has_changed(text) if indent else not is_intact(text), (bit, text)


def test_what_carries_no_seal_is_not_said_to_have_changed() -> None:
    old = json.dumps({"files": {"a": {"size": 1, "sha256": "0" * 64}}}, indent=2) + "\n"
    rewritten = json.dumps({**json.loads(sealed(RECORD, indent=2)), "number": 4})
    for text in (old, rewritten, "{}", ""):
        assert not has_changed(text) and not is_intact(text)


def test_an_old_manifest_without_a_seal_may_lack_what_is_needed(tmp_path: Path) -> None:
    """A bit changed in the name of an entry: a file without a checksum counts as damaged, no KeyError."""
    (tmp_path / "a").write_text("a")
    for entry in ({"size": 1, "rha256": "0"}, {}, None, 3):
        assert damaged_files(tmp_path, {"files": {"a": entry}}) == ["a"]
