"""Data sets of the hub, from a hub on loopback through the real `datasets` library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from oracles import REPOSITORY
from tiny_hub import COMMIT, Hub, serve

pytestmark = pytest.mark.slow

ROWS = [{"prompt": "你是谁？", "completion": "甄嬛"}, {"prompt": "b", "completion": "c"}]
TRAIN = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TEST = b'{"prompt": "not this", "completion": "split"}\n'

# Reads data sets in one process, as the library keeps what it knows of the hub's address.
READ = """
import json, sys
from lorafold.errors import LorafoldError
from lorafold.train.data.load import load_data
for spec, offline in json.load(sys.stdin):
    try:
        data = load_data([spec], offline=offline)
        found = [[[turn["role"], turn["content"]] for turn in row.messages] for row in data.examples]
    except LorafoldError as error:
        found = [error.exit_code, str(error)]
    print(json.dumps(found))
"""
EXPECTED = [[["user", row["prompt"]], ["assistant", row["completion"]]] for row in ROWS]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    plain = {"README.md": b"---\nlicense: mit\n---\n", "data/train.jsonl": TRAIN, "data/test.jsonl": TEST}
    datasets = {
        "org/plain": plain,
        "org/gated": plain,
        "org/broken": plain,
        "org/script": {"script.py": b"raise SystemExit('it ran')"},
        "org/split": {"data/test.jsonl": TEST},
        "org/malformed": {"data/train.jsonl": b'{"prompt": \n'},
    }
    with serve(Hub(datasets, gated=("org/gated",), broken=("org/broken",))) as running:
        yield running


def read(hub: Hub, home: Path, *specs: tuple[str, bool]) -> list[list[object]]:
    keep = ("PATH", "HOME", "LANG", "VIRTUAL_ENV")
    environment = {name: os.environ[name] for name in keep if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", READ],
        env={**environment, "PYTHONPATH": str(REPOSITORY), "HF_ENDPOINT": hub.address, "HF_HOME": str(home)},
        input=json.dumps(specs),
        text=True,
        capture_output=True,
        check=True,
        timeout=300,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def home(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds org/plain."""
    folder = tmp_path_factory.mktemp("home")
    assert read(hub, folder, ("org/plain", False)) == [EXPECTED]
    return folder


def test_the_train_split_is_read_and_a_revision_can_be_named(hub: Hub, home: Path) -> None:
    assert read(hub, home, ("org/plain@main", False)) == [EXPECTED]
    other = [[["user", "not this"], ["assistant", "split"]]]
    found = read(
        hub, home, ("org/plain@main#test", False), ("org/split#test", False), ("org/plain#dev", False)
    )
    assert found[:2] == [other, other]
    assert found[2][0] == 3 and str(found[2][1]).endswith("fix: give one of them: org/plain#train")
    assert any("/org/plain/resolve/" in request for request in hub.seen)


def test_refusals_are_one_line(hub: Hub, home: Path) -> None:
    wanted = {
        "org/nothing": (3, "org/nothing: neither a file here nor a data set on the hub; fix: "),
        "org/gated": (3, "org/gated: you have no access to this gated data set; fix: accept its terms"),
        "org/script": (4, "org/script: the data set brings a loading script, which is not run; fix: "),
        "org/split": (3, "org/split: no split called train (splits: test); fix: "),
        "org/malformed": (3, "org/malformed: "),
    }
    found = read(hub, home, *((spec, False) for spec in wanted))
    for (code, says), answer in zip(wanted.values(), found, strict=True):
        assert answer[0] == code and str(answer[1]).startswith(says) and "\n" not in str(answer[1])


def test_a_file_cut_off_is_never_taken_for_whole(hub: Hub, home: Path) -> None:
    ((code, says),) = read(hub, home, ("org/broken", False))
    assert code in (3, 5) and str(says).startswith("org/broken: the hub")
    assert sum("/org/broken/resolve/" in request for request in hub.seen) < 40  # retries are bounded


def test_offline_reads_the_cache_and_never_connects(hub: Hub, home: Path) -> None:
    before = len(hub.seen)
    plain, other = read(hub, home, ("org/plain", True), ("org/other", True))
    assert plain == EXPECTED
    assert other[0] == 5 and str(other[1]).startswith("org/other: the data set is not in the local cache; ")
    assert hub.seen[before:] == []


def test_offline_only_the_commit_that_is_there_is_read(hub: Hub, home: Path) -> None:
    named, other = read(hub, home, (f"org/plain@{COMMIT}", True), ("org/plain@main", True))
    assert named == EXPECTED
    assert other[0] == 5 and f"the copy in the local cache is of commit {COMMIT}" in str(other[1])


def test_a_hub_that_is_away_is_said(home: Path) -> None:
    """And at once: the library would try for long, and then fall back on its cache without a word."""
    away = Hub({}, address="http://127.0.0.1:9")
    cached, other = read(away, home, ("org/plain", False), ("org/other", False))
    assert cached[0] == other[0] == 5
    fix = "check the network, or pass --offline to read the cached copy"
    assert cached[1] == f"org/plain: the hub cannot be reached; fix: {fix}"
    assert str(other[1]).startswith("org/other: the hub cannot be reached")
