"""Where a file comes from is told only of the file that was proven."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny_chat

from lorafold.artifacts import MANIFEST, sha256_file
from lorafold.serve.origin import origin_of


@pytest.fixture
def export(tmp_path: Path) -> Path:
    shutil.copy(tiny_chat.gguf(), tmp_path / "m.gguf")
    return tmp_path


def note(folder: Path, **facts: Any) -> None:
    entry = {"sha256": sha256_file(folder / "m.gguf"), "size": 1}
    manifest = {
        "kind": "export",
        "files": {"m.gguf": entry},
        "base": {"id": "org/base"},
        "adapters": [{"folder": "/somewhere/tuned", "weight": 1.0}],
        "proof": [{"name": "files", "verdict": "passed"}, {"name": "logits", "verdict": "passed"}],
        **facts,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))


def told(folder: Path) -> str:
    return origin_of(str(folder), sha256_file(folder / "m.gguf") + "+" + "0" * 64)


def test_an_export_tells_what_it_is(export: Path) -> None:
    assert told(export) == ""
    note(export)
    assert told(export) == "exported from org/base + tuned; proof passed"
    note(export, proof=[{"verdict": "passed"}, {"verdict": "not checked"}], adapters=[])
    assert told(export) == "exported from org/base; 1 of 2 checks passed"
    note(export, proof=[])
    assert told(export) == "exported from org/base + tuned; not proven"


def test_another_file_of_that_name_is_not_vouched_for(export: Path) -> None:
    note(export)
    shutil.copy(tiny_chat.gguf(1), export / "m.gguf")
    assert told(export) == ""


@pytest.mark.parametrize("facts", [{"files": {"m.gguf": 3}}, {"kind": "train"}, {"base": 1, "adapters": 2}])
def test_odd_manifests(export: Path, facts: dict[str, Any]) -> None:
    note(export, **facts)
    assert told(export) in ("", "exported from ; proof passed")
    (export / MANIFEST).write_text("{")
    assert told(export) == ""
