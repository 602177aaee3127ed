"""Digests of weights: remembered while a file stays as it is, never beyond that."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from lorafold.serve.engines import digests
from lorafold.serve.engines.digests import Digests, weights_sha256
from lorafold.serve.protocol import About


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, with an empty cache; files count as settled, as their time of change cannot be set."""
    monkeypatch.setenv("LORAFOLD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "RACY", -1)
    path = tmp_path / "w.gguf"
    path.write_bytes(b"one")
    return path


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_what_was_noted_is_not_read_again(weights: Path, tmp_path: Path) -> None:
    assert weights_sha256(weights) == sha256(b"one")
    noted = json.loads((tmp_path / "cache" / "digests.json").read_text())
    assert noted[str(weights.resolve())][-1] == sha256(b"one")
    noted[str(weights.resolve())][-1] = "as noted"
    (tmp_path / "cache" / "digests.json").write_text(json.dumps(noted))
    assert weights_sha256(weights) == "as noted"


def test_a_changed_file_is_read_again(weights: Path) -> None:
    weights_sha256(weights)
    before = os.stat(weights)
    time.sleep(0.02)
    weights.write_bytes(b"two")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # only its time of change differs
    assert weights_sha256(weights) == sha256(b"two")


def test_a_fresh_file_is_not_noted(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "RACY", 3_600_000_000_000)
    assert weights_sha256(weights) == sha256(b"one")
    assert not (tmp_path / "cache" / "digests.json").exists()


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff"])
def test_a_damaged_or_unwritable_note_costs_only_time(weights: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "digests.json").write_bytes(content)
    assert weights_sha256(weights) == sha256(b"one")
    (tmp_path / "cache" / "digests.json").unlink()
    (tmp_path / "cache").rmdir()
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert weights_sha256(weights) == sha256(b"one")


def test_digests_are_shown_by_their_first_digits() -> None:
    def gone() -> str:
        raise FileNotFoundError

    abouts = [
        About("a", "a", "llama.cpp", "", lambda: f"{'ab' * 32}+{'cd' * 32}"),
        About("b", "b", "llama.cpp", "", gone),
    ]
    found = Digests(abouts)
    found.wait()
    assert (found.short(0), found.short(1), found.short(2)) == ("abababab+cdcdcdcd", "", "…")
