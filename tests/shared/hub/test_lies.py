"""A hub that lies: whatever it answers, the failure is one line, nothing is half there, no token is told."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_hub import Answer, Hub, go_there, serve

from lorafold.errors import InputError, SystemFault
from lorafold.hub import pace
from lorafold.models import resolve_base

TOKEN = "hf_plantedtokenofatest0123456789"
FILES = {"config.json": b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}', "README.md": b"x"}


@dataclass
class Liar(Hub):
    """A hub with a model, that answers in a wrong way."""

    lie: str = ""

    def answer(self, path: str) -> Answer:
        status, head, body = super().answer(path)
        asks_for_file = "/resolve/" in path
        if self.lie.isdigit():
            return int(self.lie), {}, b"<html>" + b"x" * 3000
        if self.lie == "a page":
            return 200, {"Content-Type": "text/html"}, b"<html>log in</html>"
        if self.lie == "another length" and asks_for_file and self.seen[-1].startswith("HEAD"):
            return status, head, body + b"four"
        if self.lie == "less than it said" and asks_for_file and self.seen[-1].startswith("GET"):
            return status, head, body[:5]
        if self.lie == "sent elsewhere" and asks_for_file:
            return 302, {"Location": f"http://127.0.0.1:{_closed()}/x", "X-Repo-Commit": "0" * 40}, b""
        if self.lie == "sent in a circle" and asks_for_file:
            return 302, {"Location": f"{self.address}{path}"}, b""
        return status, head, body


def _closed() -> int:
    """A port where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Liar]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serve(Liar(models={"org/model": FILES})) as running:
        assert isinstance(running, Liar)
        go_there(running.address, tmp_path / "cache", monkeypatch)
        yield running


def _refused(spec: str, tmp_path: Path) -> str:
    """The line of the failure; nothing that can be taken for the model lies in the cache."""
    with pytest.raises((SystemFault, InputError)) as caught:
        resolve_base(spec)
    line = str(caught.value)
    assert "; fix: " in line and "\n" not in line and len(line) < 400 and "<html>" not in line
    assert TOKEN not in line
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in left if path.name == "config.json"]
    assert not [path for path in left if TOKEN.encode() in path.read_bytes()]
    return line


def test_the_truth_is_read(liar: Liar) -> None:
    assert resolve_base("org/model").config()["model_type"] == "llama"
    assert any(TOKEN in authorization for _, authorization in liar.tokens)


@pytest.mark.parametrize(
    "lie",
    [
        "400",
        "404",
        "418",
        "a page",
        "another length",
        "less than it said",
        "sent elsewhere",
        "sent in a circle",
    ],
)
def test_a_lie_is_one_line_and_leaves_nothing(lie: str, liar: Liar, tmp_path: Path) -> None:
    liar.lie = lie
    _refused("org/model", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("lie", ["429", "500", "502", "503"])
def test_a_hub_that_is_down_is_asked_again_and_then_said(lie: str, liar: Liar, tmp_path: Path) -> None:
    liar.lie = lie
    _refused("org/model", tmp_path)


def test_a_byte_now_and_then_is_given_up(liar: Liar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client's limit counts from one byte to the next, and would wait for years."""
    monkeypatch.setattr(pace, "WATCHED", 0.3)
    liar.pause = 0.02
    began = time.monotonic()
    assert "the server sends too slowly" in _refused("org/model", tmp_path)
    assert time.monotonic() - began < 20


def test_a_certificate_that_is_none(liar: Liar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_there(liar.address.replace("http:", "https:"), tmp_path / "cache", monkeypatch)
    _refused("org/model", tmp_path)


def test_a_hub_that_nobody_answers_at(liar: Liar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_there(f"http://127.0.0.1:{_closed()}", tmp_path / "cache", monkeypatch)
    assert "cannot be reached" in _refused("org/model", tmp_path)
