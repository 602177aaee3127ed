"""What a stranger sees between our lines: nothing of any library, whatever it wants to tell.

On a processor with bfloat16 instructions `import bitsandbytes` prints an error of its own, and transformers,
PEFT, llama.cpp, numba and matplotlib have much to say. (`test_libraries` provokes bitsandbytes everywhere.)
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from oracles import REPOSITORY
from tiny_run import home

# A step with how far it is, and what a run says before, while and after it.
OURS = re.compile(
    r"[a-z][a-z ]*( …|: [\d.]+ s.*|: \d+/\d+.*)$|(data|model|note|step \d+, evaluation loss [\d.]+): |$"
)


def run(*words: object) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    environment |= {"PYTHONPATH": str(REPOSITORY), "COLUMNS": "100"}
    command = [sys.executable, "-m", "lorafold", *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


@pytest.mark.slow
def test_stderr_is_ours_alone(tmp_path: Path) -> None:
    adapter, out, data = tmp_path / "ad", tmp_path / "gg", home() / "d.jsonl"
    steps = ("--max-steps", 2, "--eval-split", 0.2, "--method", "qlora")
    said = {
        "train": run("train", "--base", home() / "base", "--data", data, "--out", adapter, *steps),
        "export": run("export", adapter, "--out", out, "--quant", "Q8_0"),
        "verify": run("verify", out),
        "chat": run("chat", out, "--prompt", "hi", "--max-tokens", 4),
        "chat in torch": run("chat", f"{home() / 'base'}+{adapter}", "--prompt", "hi", "--max-tokens", 4),
    }
    assert not [(name, line) for name, lines in said.items() for line in lines if not OURS.match(line)]
    assert said["train"] and said["export"]
