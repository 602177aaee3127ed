"""A Hugging Face hub on loopback that takes uploads: repositories, git-LFS, commits.

The protocol is the hub's own, as `huggingface_hub` speaks it: `repos/create`, `preupload`, the LFS batch API
(https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md), and commits as JSON lines.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml
from loopback import running

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repository:
    """What lies in one."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def tags(self) -> list[str]:
        """Those of its card."""
        head = self.files.get("README.md", b"").decode().split("---")
        return list((yaml.safe_load(head[1]) or {}).get("tags", ())) if len(head) > 2 else []


@dataclass
class PushHub:
    """The hub.

    Attributes:
        token: that it knows.
        repositories: by id.
        objects: LFS contents by sha256.
        failing: "METHOD /path" (its beginning) to a status, or "drop" for a connection that breaks.
        seen: requests, as "METHOD path".
        address: of the server.
    """

    token: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    failing: dict[str, int | str] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    address: str = ""

    def answer(self, method: str, path: str, body: bytes, token: str) -> tuple[int, Any]:
        """Status and JSON for a request."""
        parts = path.strip("/").split("/")
        if method == "PUT" and parts[0] == "lfs":  # the address itself is the permission
            assert hashlib.sha256(body).hexdigest() == parts[1]
            self.objects[parts[1]] = body
            return 200, {}
        if token != self.token:
            return 401, {"error": "Invalid credentials"}
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told.get('organization') or 'me'}/{told['name']}"
            if name in self.repositories:
                return 409, {"error": "You already created this model repo"}
            private = told.get("visibility") == "private" or told.get("private") is True
            self.repositories[name] = Repository(private)
            return 200, {"url": f"{self.address}/{name}"}
        if path == "/api/validate-yaml":
            head = json.loads(body)["content"].split("---")
            errors = [] if isinstance(yaml.safe_load(head[1]), dict) else [{"message": "no head"}]
            return 200, {"errors": errors, "warnings": []}
        if parts[:2] == ["api", "models"]:
            return self._model("/".join(parts[2:4]), parts[4:], body)
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {
                "transfer": "basic",
                "objects": [self._object(row) for row in json.loads(body)["objects"]],
            }
        return 404, {"error": f"no {path}"}

    def _object(self, row: dict[str, Any]) -> dict[str, Any]:
        known = row["oid"] in self.objects
        href = {"upload": {"href": f"{self.address}/lfs/{row['oid']}"}}
        return {"oid": row["oid"], "size": row["size"], **({} if known else {"actions": href})}

    def _model(self, name: str, rest: list[str], body: bytes) -> tuple[int, Any]:
        found = self.repositories.get(name)
        if found is None:
            return 404, {"error": "Repository not found"}
        if rest[:1] == ["preupload"]:
            rows = json.loads(body)["files"]
            big = (".gguf", ".safetensors")
            return 200, {
                "files": [
                    {
                        "path": row["path"],
                        "uploadMode": "lfs" if row["path"].endswith(big) else "regular",
                        "shouldIgnore": False,
                    }
                    for row in rows
                ]
            }
        if rest[:1] == ["commit"]:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    found.files[value["path"]] = base64.b64decode(value["content"])
                if line["key"] == "lfsFile":
                    found.files[value["path"]] = self.objects[value["oid"]]
            url = f"{self.address}/{name}/commit/{COMMIT}"
            return 200, {"success": True, "commitUrl": url, "commitOid": COMMIT, "hookOutput": ""}
        about = {"_id": "1", "id": name, "sha": COMMIT, "private": found.private, "tags": found.tags}
        return 200, {**about, "siblings": [{"rfilename": file} for file in found.files]}


@contextmanager
def serve(hub: PushHub) -> Iterator[PushHub]:
    """Run the hub for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            path = unquote(urlsplit(self.path).path)
            asked = f"{self.command} {path}"
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            hub.seen.append(asked)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            fault = next((told for start, told in hub.failing.items() if asked.startswith(start)), None)
            if fault == "drop":
                self.connection.close()
                return
            status, value = (
                (int(fault), {"error": f"no: {token}"})
                if fault
                else hub.answer(self.command, path, body, token)
            )
            raw = json.dumps(value).encode()
            self.send_response(status)
            if status == 404 and "/api/models/" in path:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PUT = do_HEAD = respond  # noqa: N815 - the base class's names

        def log_message(self, format: str, *args: object) -> None:
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as hub.address:
        yield hub
