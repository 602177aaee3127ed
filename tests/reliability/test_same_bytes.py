"""An export has the same bytes wherever, whenever and on whatever kind of machine it is made."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_chat
from oracles import REPOSITORY

QUANTS = "Q4_K_M,Q8_0,Q5_1,F16"

# What differs from machine to machine and from run to run; llvmlite's name of the host is numba's default.
OTHERWISE: dict[str, dict[str, str]] = {
    "hash seed, locale and time zone": {
        "PYTHONHASHSEED": "4711",
        "LC_ALL": "tr_TR.UTF-8",
        "LANG": "C",
        "TZ": "Pacific/Auckland",
    },
    "one thread": {"OMP_NUM_THREADS": "1", "LORAFOLD_TEST_THREADS": "1"},
    "a machine with AVX2 and no AVX-512": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""},
    "a machine without FMA": {"NUMBA_CPU_NAME": "sandybridge", "NUMBA_CPU_FEATURES": ""},
}


def exported(place: Path, base: Path, adapter: Path, **environment: str) -> dict[str, str]:
    """sha256 of each file of an export made by a process of its own in a folder of its own."""
    place.mkdir(parents=True)
    threads = environment.pop("LORAFOLD_TEST_THREADS", "3")
    flags = ["--quant", QUANTS, "--pre-tokenizer", "gpt-2", "--name", "tiny", "--threads", threads]
    command = [sys.executable, "-m", "lorafold", "export", adapter, "--base", base, "--out", "out", *flags]
    known = {**os.environ, "NUMBA_CACHE_DIR": str(place / "numba"), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*map(str, command), "--no-verify"],
        cwd=place,
        env={**known, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((place / "out").glob("*"))
        if path.suffix == ".gguf" or path.name == "Modelfile"
    }


@pytest.mark.slow
def test_an_export_is_the_same_everywhere(tmp_path: Path) -> None:
    base = shutil.copytree(tiny_chat.folder(), tmp_path / "base")
    adapter = shutil.copytree(tiny_chat.adapter(), tmp_path / "adapter")
    here = exported(tmp_path / "here", base, adapter)
    assert len(here) == 5
    for number, (how, environment) in enumerate(OTHERWISE.items()):
        deep = tmp_path / f"elsewhere ä {number}" / "and deeper"
        moved = shutil.copytree(base, tmp_path / f"moved {number}")
        assert exported(deep, moved, adapter, **environment) == here, how
