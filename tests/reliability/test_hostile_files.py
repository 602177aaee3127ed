"""Files of strangers for every parser: what once broke, and a sample of what `tools/faults/fuzz.py` gives."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hostile.all_targets import TARGETS
from hostile.outcome import Broken, read_or_refused

from lorafold.errors import InputError

CORPUS = Path(__file__).parents[1] / "support/hostile/corpus"
KEPT = sorted(path for path in CORPUS.glob("*/*"))
FAST = [name for name, target in TARGETS.items() if not target.slow]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_broke_is_read_or_refused(path: Path, tmp_path: Path) -> None:
    read_or_refused(TARGETS[path.parent.name].open(tmp_path), path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_a_file_that_is_right_is_read(name: str, tmp_path: Path) -> None:
    """The seeds reach the end of their parser, or hundreds of changed copies would prove nothing."""
    parse = TARGETS[name].open(tmp_path)
    assert "read" in [read_or_refused(parse, seed) for seed in TARGETS[name].seeds()]


@pytest.mark.parametrize("name", FAST)
def test_changed_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    target, dice = TARGETS[name], random.Random(20)
    parse, seeds = target.open(tmp_path), list(target.seeds())
    for _ in range(60):
        read_or_refused(parse, target.changed(dice.choice(seeds), dice, seeds))


def test_a_refusal_must_be_a_line() -> None:
    def silent(_: bytes) -> None:
        raise InputError("")

    with pytest.raises(Broken):
        read_or_refused(silent, b"")
