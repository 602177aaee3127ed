"""Several processes at one output: one writes, the others are told; a reader sees a whole one or a line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny_chat
from oracles import REPOSITORY

from lorafold.artifacts import read_export
from lorafold.errors import LorafoldError


def started(out: Path, *more: str) -> subprocess.Popen[str]:
    """An export in a process of its own."""
    flags = ["--base", str(tiny_chat.folder()), "--quant", "Q8_0", "--pre-tokenizer", "gpt-2", "--no-verify"]
    command = ["export", str(tiny_chat.adapter()), "--out", str(out), *flags, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "lorafold", *command],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_of_several_exports_into_one_folder_one_writes(tmp_path: Path) -> None:
    runs = [started(tmp_path / "out") for _ in range(3)]
    said = {run.pid: run.communicate()[1] for run in runs}
    writer = [run.pid for run in runs if run.returncode == 0]
    assert len(writer) == 1, said
    for run in runs:
        if run.pid not in writer:  # it came while the first one wrote, or after it
            assert run.returncode in (7, 2), said
            expected = f"process {writer[0]} is writing" if run.returncode == 7 else "is not empty"
            assert expected in said[run.pid] and said[run.pid].count("error: ") == 1
    assert read_export(tmp_path / "out")["kind"] == "export"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_reader_beside_a_writer_never_takes_a_mixture(tmp_path: Path) -> None:
    """The manifest of one export and the files of the next do not match: that is said, never used."""
    out, whole, refused = tmp_path / "out", 0, 0
    assert started(out).wait() == 0
    with open(next(out.glob("*.gguf")), "rb") as held:
        before = held.read()
        for name in ("another", "third"):
            run = started(out, "--force", "--name", name)
            while run.poll() is None:
                try:
                    whole += read_export(out)["kind"] == "export"
                except LorafoldError as error:
                    assert "changed since the export" in str(error)
                    refused += 1
            assert run.returncode == 0
        held.seek(0)
        assert held.read() == before, "a reader that has the old file keeps it"
    assert whole > 10 and next(out.glob("*.gguf")).name.startswith("third"), (whole, refused)
