"""llama.cpp's own chat templates as an oracle: its server's `/apply-template`, in a process of its own.

The server comes from PyPI (`xllamacpp`, a development dependency). Without it these tests skip.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


@lru_cache(maxsize=1)
def llama_model() -> Path:
    """A tiny model for the server to load; its own chat template is never used."""
    from tiny_chat import gguf

    return gguf()


def llama_prompts(template: str, bodies: Sequence[dict[str, Any]], model: Path | None = None) -> list[str]:
    """What llama.cpp writes for requests.

    Args:
        template: the Jinja.
        bodies: requests as for `/v1/chat/completions`.
        model: a GGUF whose special tokens count.

    Returns:
        The prompts; an error of the server is a text that begins with "error".
    """
    if find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed")
    request = {"model": str(model or llama_model()), "template": template, "bodies": list(bodies)}
    ran = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith("prompts ")]
    assert lines, ran.stdout[-500:] + ran.stderr[-1500:]
    answer: list[str] = json.loads(lines[0].removeprefix("prompts "))
    return answer


@contextlib.contextmanager
def running(model: Path) -> Iterator[str]:
    """The address of llama.cpp's server with a model and its own chat template."""
    if find_spec("xllamacpp") is None:
        pytest.skip("xllamacpp is not installed")
    with subprocess.Popen(
        [sys.executable, __file__, "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"model": str(model), "template": "", "bodies": []}))
        process.stdin.close()
        lines = iter(process.stdout.readline, "")
        yield next(line.removeprefix("at ").strip() for line in lines if line.startswith("at "))
        process.kill()


def main() -> None:
    """Serve one model, ask it everything, and go."""
    import xllamacpp

    request = json.load(sys.stdin)
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.chat_template = request["model"], request["template"]
    settings.port, settings.n_ctx, settings.n_parallel, settings.warmup = 0, 256, 1, False
    server = xllamacpp.Server(settings)
    if "--serve" in sys.argv:
        sys.stdout.write(f"at {server.listening_address}\n")
        sys.stdout.flush()
        threading.Event().wait()
    prompts = []
    for body in request["bodies"]:
        asked = urllib.request.Request(
            f"{server.listening_address}/apply-template",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(asked) as answer:
                prompts.append(json.load(answer)["prompt"])
        except urllib.error.HTTPError as error:
            prompts.append(f"error {error.code}: {error.read().decode()[:300]}")
    sys.stdout.write("prompts " + json.dumps(prompts) + "\n")
    sys.stdout.flush()
    os._exit(0)  # its threads are of no more use


if __name__ == "__main__":
    main()
