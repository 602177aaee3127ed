"""An Ollama on loopback that says what a real one said: recorded from 0.33.0-rc2 with the tiny ChatML model.

`ollama_recording.json` holds the real server's lines while it created the model, and each prompt that it
showed, by the request's messages and `think`. What is to break is a field of `Place`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from loopback import running

RECORDED = json.loads(Path(__file__).with_name("ollama_recording.json").read_text(encoding="utf-8"))


@dataclass
class Place:
    """A server's models and blobs, what it was asked, and how it breaks.

    Attributes:
        models: names that are there.
        blobs: digests that are there.
        asked: method and path of each request.
        created: the fields of each `/api/create`.
        fails: path -> status and error of every answer to it.
        hangs_up: a path at which the connection breaks.
        create: lines of `/api/create`.
        shows_prompts: whether it knows `_debug_render_only`.
        prompt: a function that changes the prompts.
        more_tokens: how many too many it counts.
    """

    url: str = ""
    models: set[str] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    fails: dict[str, tuple[int, str]] = field(default_factory=dict)
    hangs_up: str = ""
    create: list[dict[str, Any]] = field(default_factory=lambda: list(RECORDED["create"]))
    shows_prompts: bool = True
    prompt: Callable[[str], str] = str
    more_tokens: int = 0


def key(messages: Any, think: Any) -> str:
    """How a prompt is found in the recording."""
    text = json.dumps([messages, think], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    place: Place

    def answer(self, status: int, *lines: Any) -> None:
        body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_any(self) -> None:
        path = "/api/blobs" if self.path.startswith("/api/blobs/") else self.path
        self.place.asked.append(f"{self.command} {path}")
        size = int(self.headers.get("Content-Length") or 0)
        if self.place.hangs_up == path and self.command == "POST":
            self.rfile.read(min(size, 1000))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = self.rfile.read(size)
        if path in self.place.fails and self.command != "HEAD":
            status, error = self.place.fails[path]
            self.answer(status, {"error": error})
            return
        if path == "/api/blobs":
            self.blob(self.path.rpartition("/")[2], body)
            return
        route = getattr(self, path.removeprefix("/api/"), None)
        if route is None:
            self.answer(404, {"error": "404 page not found"})
        else:
            route(json.loads(body) if body else {})

    do_GET = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815 - http.server's names

    def blob(self, digest: str, body: bytes) -> None:
        if self.command == "HEAD":
            self.answer(200 if digest in self.place.blobs else 404)
        elif digest != f"sha256:{hashlib.sha256(body).hexdigest()}":
            self.answer(400, {"error": "digest mismatch"})
        else:
            self.place.blobs.add(digest)
            self.answer(201)

    def version(self, _: Any) -> None:
        self.answer(200, RECORDED["version"])

    def show(self, asked: dict[str, Any]) -> None:
        name = asked["model"]
        there = name in self.place.models
        self.answer(200 if there else 404, {} if there else {"error": f"model '{name}' not found"})

    def create(self, asked: dict[str, Any]) -> None:
        missing = set(asked["files"].values()) - self.place.blobs
        assert not missing, missing
        self.place.created.append(asked)
        if self.place.create[-1].get("status") == "success":
            self.place.models.add(asked["model"])
        self.answer(200, *self.place.create)

    def delete(self, asked: dict[str, Any]) -> None:
        there = asked["model"] in self.place.models
        self.place.models.discard(asked["model"])
        self.answer(200 if there else 404)

    def chat(self, asked: dict[str, Any]) -> None:
        if not self.place.shows_prompts:
            self.answer(200, {"message": {"content": "Hi"}, "done": True})
            return
        if asked.get("think"):
            self.answer(400, {"error": f'"{asked["model"]}" does not support thinking'})
            return
        text = RECORDED["prompts"].get(key(asked["messages"], asked.get("think")))
        text = _chatml(asked["messages"]) if text is None else text
        self.answer(200, {"_debug_info": {"rendered_template": self.place.prompt(text)}, "done": False})

    def generate(self, asked: dict[str, Any]) -> None:
        # The tiny model's tokens are bytes, and its three control tokens.
        text = asked["prompt"]
        for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
            text = text.replace(token, "t")
        count = len(text.encode()) + self.place.more_tokens
        if "format" not in asked:  # the random model's bytes are no UTF-8, and then the real one says this
            self.answer(
                200, {"model": "", "created_at": "0001-01-01T00:00:00Z", "response": "", "done": False}
            )
        else:
            self.answer(200, {"response": "t", "done": True, "prompt_eval_count": count})

    def log_message(self, *_: Any) -> None:
        pass


def _chatml(messages: list[dict[str, str]]) -> str:
    """Questions of the proof that were not recorded: the form of those that were."""
    turns = (f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in messages)
    return "".join(turns) + "<|im_start|>assistant\n"


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def ollama_server(**settings: Any) -> Iterator[Place]:
    """Yields a server that runs until the block ends."""
    place = Place(**settings)
    with running(_Quiet(("127.0.0.1", 0), type("Bound", (_Handler,), {"place": place}))) as place.url:
        yield place
