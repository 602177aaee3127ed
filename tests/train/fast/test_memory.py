"""Memory that runs out: one line, exit code 5, and the last checkpoint is there to go on from.

The limits are real (RLIMIT_AS), the command is the real one.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from oracles import REPOSITORY
from tiny_base import tiny_base

from lorafold.artifacts import damaged_files, read_manifest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="only Linux limits another process's memory"),
]

# Imports what training imports, then allows only so many bytes more.
LIMITED = """
import os, resource, sys
import peft, torch, transformers.models.llama.modeling_llama
from lorafold.cli import main
size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (size, size))
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("memory")
    tiny_base(path / "base")
    for name, size, count in (("short", 10, 32), ("long", 1900, 16)):
        rows = [{"prompt": f"question {i}", "completion": "x" * size} for i in range(count)]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(folder: Path, *command: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def is_one_line(
    process: subprocess.Popen[str],
    line: str = "error: out of memory; fix: lower --per-device-train-batch-size",
) -> None:
    _, err = process.communicate(timeout=300)
    assert process.returncode == 5, err
    assert err.splitlines()[-1].startswith(line)
    assert "Traceback" not in err


def test_in_the_middle_of_a_run(folder: Path) -> None:
    """The evaluation of long examples needs more than the steps on short ones did."""
    train = ["-m", "lorafold", "train", "--base", "base", "--data", "short.jsonl", "--out", "out"]
    train += ["--max-steps", "60", "--save-steps", "5", "--max-length", "2048"]
    train += ["--eval-data", "long.jsonl", "--eval-steps", "55", "--per-device-train-batch-size", "16"]
    process = start(folder, *train)
    while process.poll() is None and not list((folder / "out.run").glob("checkpoint-*/lorafold.json")):
        time.sleep(0.05)
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0])
    size = pages * os.sysconf("SC_PAGE_SIZE") + (16 << 20)
    resource.prlimit(process.pid, resource.RLIMIT_AS, (size, size))
    is_one_line(process)
    assert not (folder / "out").exists()
    kept = sorted((folder / "out.run").glob("checkpoint-*"))
    assert kept
    for path in kept:
        manifest = read_manifest(path)
        assert manifest is not None and not damaged_files(path, manifest)
    process = start(folder, *train, "--resume")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "resumed at step" in out and "60 steps" in out


def test_a_limit_that_leaves_too_little_is_said_before_anything_is_loaded(folder: Path) -> None:
    """Libraries that meet it while they load end the process without a word."""
    flags = ["--base", "base", "--data", "short.jsonl", "--out", "never"]
    process = start(folder, "-c", LIMITED, str(128 << 20), "train", *flags)
    is_one_line(process, "error: ulimit -v: the limit of address space leaves")
    assert not (folder / "never").exists()
