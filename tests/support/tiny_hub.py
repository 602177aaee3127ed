"""A Hugging Face hub on loopback: the few endpoints that `datasets` and `huggingface_hub` ask for.

A repository is a dict of file names and contents. `Hub.gated` and `Hub.broken` name repositories that answer
403 and that drop the connection in the middle of a data file. `Hub.seen` lists every request.

Parts of a file are handed out if a request asks for a range. With `Hub.far` the bytes lie on another host, at
signed addresses, as those of large files do on the real hub.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from loopback import running

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NOT_FOUND = (404, {"X-Error-Code": "RepoNotFound"}, b"")

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Hub:
    """What is on the hub.

    Attributes:
        datasets: repository id to file name to content.
        models: the same.
        gated: ids that answer 403.
        broken: ids whose data files end in the middle.
        pause: seconds between one byte of a file and the next; 0: all at once.
        seen: requests, as "METHOD path".
        address: of the server.
        far: a file's address leads to another host, by `localhost` instead of 127.0.0.1.
        signature: that an address must hold there; another one answers 403.
        whole: ranges are ignored.
        marked: parts carry an ETag.
        failing: so many requests for a range answer 503 first.
        ranges: (file's name, first byte, one past the last) of every part that was handed out.
        tokens: (request, Authorization) of every request.
    """

    datasets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    pause: float = 0.0
    seen: list[str] = field(default_factory=list)
    address: str = ""
    far: bool = False
    signature: str = "1"
    whole: bool = False
    marked: bool = True
    failing: int = 0
    ranges: list[tuple[str, int, int]] = field(default_factory=list)
    tokens: list[tuple[str, str]] = field(default_factory=list)

    def part(self, path: str, answer: Answer, asked: str) -> Answer:
        """The answer to a request for a range of it."""
        status, head, body = answer
        first, last = (int(number) for number in asked.removeprefix("bytes=").split("-"))
        if status != 200 or self.whole:
            return answer
        if self.failing:
            self.failing -= 1
            return 503, {}, b""
        if last >= len(body):
            return 416, {}, b""
        self.ranges.append((path.rpartition("/")[2], first, last + 1))
        head = head if self.marked else {key: value for key, value in head.items() if key != "ETag"}
        return 206, head | {"Content-Range": f"bytes {first}-{last}/{len(body)}"}, body[first : last + 1]

    def bytes_of(self, name: str) -> int:
        """Bytes that were handed out of a file, by ranges."""
        return sum(stop - start for file, start, stop in self.ranges if file == name)

    def stored(self, path: str, query: str) -> Answer:
        """What the other host answers."""
        if query != f"signature={self.signature}":
            return 403, {}, b""
        _, _, org, name, *rest = path.split("/")
        body = self.models[f"{org}/{name}"]["/".join(rest)]
        return 200, {"ETag": f'"far-{_oid(body)}"', "Accept-Ranges": "bytes"}, body

    def answer(self, path: str) -> Answer:
        """Status, headers and body for a path."""
        parts = path.lstrip("/").removeprefix("api/").split("/")
        # A model's files lie at the root.
        kind = parts.pop(0) if parts[0] in ("datasets", "models") else "models"
        repositories, name = getattr(self, kind), "/".join(parts[:2])
        if name not in repositories:
            return NOT_FOUND
        if name in self.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b""
        files = repositories[name]
        what, rest = (parts[2], "/".join(parts[4:])) if len(parts) > 2 else ("", "")
        if what == "resolve":
            if rest not in files:
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
            head = {"ETag": f'"{_oid(files[rest])}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if self.far:
                place = self.address.replace("127.0.0.1", "localhost")
                head["Location"] = f"{place}/far/{name}/{rest}?signature={self.signature}"
                head |= {"X-Linked-ETag": head.pop("ETag"), "X-Linked-Size": str(len(files[rest]))}
                return 302, head, b""
            return 200, head, files[rest]
        if what == "tree":
            return _json(_tree(files, rest))
        siblings = [{"rfilename": file} for file in files]
        about = {"id": name, "sha": COMMIT, "private": False, "gated": False, "disabled": False}
        return _json({**about, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings})


def _oid(content: bytes) -> str:
    """git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _tree(files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
    start = f"{folder}/" if folder else ""
    below = sorted({name.removeprefix(start).split("/")[0] for name in files if name.startswith(start)})
    return [
        {
            "type": "file",
            "oid": _oid(files[start + name]),
            "size": len(files[start + name]),
            "path": start + name,
        }
        if start + name in files
        else {"type": "directory", "oid": COMMIT, "size": 0, "path": start + name}
        for name in below
    ]


def _json(value: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run the hub for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            address = urlsplit(self.path)
            path = unquote(address.path)
            hub.seen.append(f"{self.command} {path}")
            hub.tokens.append((f"{self.command} {path}", self.headers.get("Authorization") or ""))
            far = path.startswith("/far/")
            status, head, body = hub.stored(path, address.query) if far else hub.answer(path)
            if (asked := self.headers.get("Range")) and self.command == "GET":
                status, head, body = hub.part(path, (status, head, body), asked)
            cut = any(f"/{name}/resolve/" in path and "/data/" in path for name in hub.broken)
            self.send_response(status)
            for key, value in head.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.send(body[: len(body) // 2] if cut else body, hub.pause * ("/resolve/" in path))

        def send(self, body: bytes, pause: float) -> None:
            with contextlib.suppress(ConnectionError):  # the reader has gone
                for start in range(len(body)) if pause else ():
                    self.wfile.write(body[start : start + 1])
                    time.sleep(pause)
                self.wfile.write(b"" if pause else body)

        do_GET = do_HEAD = respond  # noqa: N815 - the base class's names

        def log_message(self, format: str, *args: object) -> None:
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as hub.address:
        yield hub


def go_there(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process's `huggingface_hub` ask a server on loopback and keep what it fetches in a folder."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
