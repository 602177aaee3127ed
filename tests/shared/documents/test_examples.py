"""The examples of the documents are run, on tiny models that lie under the names that the examples use."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import tiny_chat
from documents import code_in, text_of
from oracles import REPOSITORY

BASE = "Qwen/Qwen2-1.5B-Instruct"  # a folder of this name comes before the hub
# What an example needs and a test has not: a server, a hub, a model of full width.
NOT_HERE = (
    "ollama:",
    "--ollama",
    "--llama-server",
    "http://",
    "modelscope:",
    "index-1.9b",  # these three recipes on tiny models of their own: tests/train/test_recipes.py
    "deepseek-7b",
    "llama2-7b",
    "ORG/MODEL",
    "push my-gguf ORG/NAME  ",  # without --plan it connects
    "--to modelscope",
    "IQ3_XXS",
    "…",
    "doctor",
    "demo",
)

pytestmark = pytest.mark.slow


@cache
def material() -> Path:
    """A folder with everything that the examples name."""
    home = Path(mkdtemp(prefix="lorafold-examples-"))
    shutil.copytree(tiny_chat.folder(), home / BASE)
    shutil.copytree(tiny_chat.folder(), home / "Qwen2-1.5B-Instruct")
    for name in ("my-adapter", "style", "facts"):
        shutil.copytree(tiny_chat.adapter(), home / name)
        config = json.loads((home / name / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = BASE
        (home / name / "adapter_config.json").write_text(json.dumps(config))
    for name in ("original.gguf", "tuned.gguf", "base.gguf"):
        shutil.copy(tiny_chat.gguf(int(name == "tuned.gguf")), home / name)
    tiny_chat.exported(str(home / "my-adapter"), home / "my-gguf", base=str(home / BASE))
    rows = [{"instruction": f"question {i}", "output": f"answer {i % 4}"} for i in range(30)]
    (home / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "huanhuan.json").write_text(json.dumps(rows))
    (home / "questions.txt").write_text("Who are you?\n")
    return home


def run(words: list[str], home: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], cwd=home, env=environment, input="Hi\n", capture_output=True, text=True
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python(page: str, tmp_path: Path) -> None:
    home = shutil.copytree(material(), tmp_path / "home")
    shutil.rmtree(home / "my-gguf")
    code = "\n".join(code_in(text_of(page), "python"))
    if "lorafold.train(" in code:
        shutil.rmtree(home / "my-adapter")
    (tmp_path / "example.py").write_text(code)
    run([str(tmp_path / "example.py")], home)


PAGES = {
    "README": 7,
    "docs/export": 5,
    "docs/run-it": 2,
    "docs/memory": 2,
    "docs/mirrors": 2,
    "docs/tutorials": 2,
}


@pytest.mark.parametrize(("page", "least"), [(f"{page}.md", least) for page, least in PAGES.items()])
def test_shell(page: str, least: int, tmp_path: Path) -> None:
    """In the order of the page; what a line makes is made anew, as for a reader who begins there."""
    home, ran = shutil.copytree(material(), tmp_path / "home"), 0
    for line in "\n".join(code_in(text_of(page), "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["lorafold"] or any(part in line.partition("  #")[0] for part in NOT_HERE):
            continue
        if "--out" in words and (made := home / words[words.index("--out") + 1]).is_dir():
            shutil.rmtree(made)
        run(["-m", *words], home)
        ran += 1
    assert ran >= least
