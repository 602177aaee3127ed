"""A disk that fills up at any moment of a training run: one line, exit code 5, and nothing whole is lost.

Real disks: a small tmpfs in a mount namespace of its own (`small_disk.py`).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from oracles import REPOSITORY
from tiny_base import tiny_base

pytestmark = pytest.mark.slow

TRAIN = ["train", "--data", "data.jsonl", "--out", "disk/out", "--max-steps", "6"]
TRAIN += ["--save-steps", "2", "--save-total-limit", "1", "--base"]
CHECKPOINT = {"adapter_config.json", "adapter_model.safetensors", "lorafold.json", "optimizer.safetensors"}
CHECKPOINT |= {"state.json", "trainable.safetensors"}
FULL = r"error: \S*disk/\.?out\S*: the disk is full; fix: free space or choose an --out on another disk"
Disk = Callable[..., list[Any]]
ROOMY = "size=64m,nr_inodes=1000"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("disk")
    tiny_base(path / "base")
    rows = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(24)]
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def on_a_disk(folder: Path) -> Iterator[Disk]:
    """Takes steps and gives the answers of `small_disk.py`, which starts once for all tests."""
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode
    ):
        pytest.skip("this system allows no mount namespace of one's own (unshare -Urm)")
    program = REPOSITORY / "tests/support/places/small_disk.py"
    command = ["unshare", "-Urm", sys.executable, str(program), str(folder)]
    environment = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1"}
    environment |= {"HOME": str(folder), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as disk:
        assert disk.stdin is not None and disk.stdout is not None
        sent, answered = disk.stdin, disk.stdout

        def ask(*steps: dict[str, Any]) -> list[Any]:
            sent.write(json.dumps(steps) + "\n")
            sent.flush()
            answers: list[Any] = json.loads(answered.readline())
            return answers

        yield ask


def steady(files: dict[str, str] | None) -> dict[str, str]:
    """What two runs of one configuration must have in common, byte for byte."""
    assert files is not None
    names = ("adapter_model.safetensors", "adapter_config.json", "checkpoint-6/optimizer.safetensors")
    return {name: files[name] for name in names}


def checkpoints(files: dict[str, str]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name in files:
        place, _, file = name.rpartition("/")
        if place.startswith("checkpoint-"):
            found.setdefault(place, set()).add(file)
    return found


def is_one_line(answer: dict[str, Any], message: str) -> None:
    assert answer["code"] == 5, answer
    *progress, last = answer["err"].splitlines()
    assert re.fullmatch(message, last), last
    assert "Traceback" not in answer["err"] and not any(line.startswith("error") for line in progress)


def test_a_disk_that_fills_up_at_any_file(on_a_disk: Disk) -> None:
    """For every number of files the disk can hold: stopped in one line, nothing torn, resumed bitwise."""
    whole = on_a_disk({"mount": ROOMY}, {"run": [*TRAIN, "base"]}, {"files": "disk/out"}, {"count": "disk"})
    assert whole[1]["code"] == 0, whole[1]
    expected, most = steady(whole[2]), whole[3]
    steps: list[dict[str, Any]] = []
    for inodes in range(2, most + 12):
        steps += [
            {"mount": f"size=64m,nr_inodes={inodes}"},
            {"run": [*TRAIN, "base"]},
            {"files": "disk/out.run"},
            {"files": "disk/out"},
            {"remount": "nr_inodes=1000"},
            {"run": [*TRAIN, "base", "--resume"]},
            {"files": "disk/out"},
            {"files": "disk/out.run"},
        ]
    answers = on_a_disk(*steps)
    stopped_at = set()
    for start in range(0, len(answers), 8):
        _, first, run, out, _, second, result, left = answers[start : start + 8]
        if first["code"]:
            is_one_line(first, FULL)
            assert out is None  # the result is there whole or not at all
            for name, files in checkpoints(run or {}).items():
                assert files == CHECKPOINT, name
            assert second["code"] == 0, second
            stopped_at.add(re.search(r"resumed at step \d", second["out"]) is not None)
        assert steady(result) == expected and left is None
    assert stopped_at == {False, True}  # before the first checkpoint, and after it


def test_an_old_result_stays_when_the_new_one_does_not_fit(folder: Path, on_a_disk: Disk) -> None:
    """The tokenizer's files are copied last: the disk has room for the checkpoints and not for the result."""
    base = folder / "wordy"
    shutil.copytree(folder / "base", base, dirs_exist_ok=True)
    (base / "merges.txt").write_bytes(b"#" * (8 << 20))
    command = [*TRAIN, str(base), "--force"]
    mounted, old, kept, failed, still, run, _, resumed, new = on_a_disk(
        {"mount": "size=6m"},
        {"run": [*TRAIN, "base", "--seed", "7"]},
        {"files": "disk/out"},
        {"run": command},
        {"files": "disk/out"},
        {"files": "disk/out.run"},
        {"remount": "size=64m"},
        {"run": [*command, "--resume"]},
        {"files": "disk/out"},
    )
    assert mounted is None and old["code"] == 0, old
    is_one_line(failed, FULL)
    assert still == kept and checkpoints(run) == {"checkpoint-6": CHECKPOINT}
    assert resumed["code"] == 0 and "resumed at step 6" in resumed["out"], resumed
    assert new != kept and "merges.txt" in new


def test_a_disk_too_small_is_said_before_the_start(on_a_disk: Disk) -> None:
    _, refused, run = on_a_disk(
        {"mount": "size=300k"}, {"run": [*TRAIN, "base", "--r", "64"]}, {"files": "disk/out.run"}
    )
    is_one_line(
        refused, r"error: \S+out.run: checkpoints need \d+ MiB, \d+ MiB are free; fix: free space, .*"
    )
    assert run is None


def test_no_more_than_a_file_may_hold(on_a_disk: Disk) -> None:
    """RLIMIT_FSIZE, as a quota on one file: the checkpoint's first large file is refused."""
    _, failed, run = on_a_disk(
        {"mount": ROOMY}, {"run": [*TRAIN, "base"], "limit": 40_000}, {"files": "disk/out.run"}
    )
    is_one_line(failed, r"error: \S+: the file is larger than the file system or `ulimit -f` allows; fix: .*")
    assert not checkpoints(run)


def test_a_disk_that_can_only_be_read(on_a_disk: Disk) -> None:
    _, written, _, refused, out = on_a_disk(
        {"mount": ROOMY},
        {"run": [*TRAIN, "base"]},
        {"remount": "ro"},
        {"run": [*TRAIN, "base", "--force", "--seed", "7"]},
        {"files": "disk/out"},
    )
    assert written["code"] == 0
    is_one_line(refused, r"error: \S+: the file system is read-only; fix: choose a folder .*")
    assert steady(out)
