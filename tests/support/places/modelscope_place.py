"""A ModelScope on loopback: repositories, LFS batches, commits, as `modelscope_hub` 0.5.1 asks for them.

That client itself pushed a folder to this server, so both speak the same protocol.
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
from urllib.parse import parse_qs, urlsplit

from loopback import running

PRIVATE, PUBLIC = 1, 5


@dataclass
class Repository:
    """What lies in one."""

    visibility: int
    license: str = ""
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass
class ModelScopeHub:
    """The hub.

    Attributes:
        token: that it knows.
        repositories: by id.
        objects: LFS contents by sha256.
        failing: "METHOD /path" (its beginning) to a status, or "drop" for a connection that breaks.
        seen: requests, as "METHOD path", and whether they brought the token.
        elsewhere: the address of large files, of another host; "" for this one.
        address: of the server.
    """

    token: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    failing: dict[str, int | str] = field(default_factory=dict)
    seen: list[tuple[str, bool]] = field(default_factory=list)
    elsewhere: str = ""
    address: str = ""

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Any]:
        """Status and JSON (or bytes) for a request that brought the token."""
        parts = path.removeprefix("/api/v1/").strip("/").split("/")
        if method == "POST" and parts == ["models"]:
            told = json.loads(body)
            made = Repository(told["Visibility"], told["License"])
            self.repositories.setdefault(f"{told['Path']}/{told['Name']}", made)
            return 200, {"Code": 200, "Success": True, "Data": {"Id": 1}}
        repos = parts[0] == "repos"
        name = "/".join(parts[1 + repos : 3 + repos])
        found = self.repositories.get(name)
        if found is None:
            return 404, {"Code": 10010205001, "Success": False, "Message": "repo not exists"}
        rest = parts[3 + repos :]
        if rest == ["info", "lfs", "objects", "batch"]:
            rows = json.loads(body)["objects"]
            wanted = [row for row in rows if row["oid"] not in self.objects]
            at = self.elsewhere or self.address
            objects = [
                {**row, "actions": {"upload": {"href": f"{at}/lfs/{row['oid']}?signature=x"}}}
                for row in wanted
            ]
            return 200, {"Code": 200, "Success": True, "Data": {"objects": objects}}
        if rest[:1] == ["commit"]:
            for action in json.loads(body)["actions"]:
                lfs = action["type"] == "lfs"
                content = self.objects[action["sha256"]] if lfs else base64.b64decode(action["content"])
                assert len(content) == action["size"]
                found.files[action["path"]] = content
            return 200, {"Code": 200, "Success": True, "Data": {"CommitId": "1"}}
        if rest == ["repo", "files"]:
            rows = [{"Path": path, "Name": path, "Type": "blob"} for path in found.files]
            return 200, {"Code": 200, "Success": True, "Data": {"Files": rows}}
        if rest == ["repo"]:
            content = found.files.get(query["FilePath"][0])
            return (200, content) if content is not None else (404, {"Success": False})
        data = {"Id": 1, "Path": parts[1], "Name": parts[2], "Visibility": found.visibility}
        return 200, {"Code": 200, "Success": True, "Data": data}


@contextmanager
def serve(hub: ModelScopeHub) -> Iterator[ModelScopeHub]:
    """Run the hub for the length of the block."""

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            parts = urlsplit(self.path)
            asked = f"{self.command} {parts.path}"
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            brought = hub.token in f"{self.headers.get('Authorization')} {self.headers.get('Cookie')}"
            hub.seen.append((asked, brought))
            fault = next((told for start, told in hub.failing.items() if asked.startswith(start)), None)
            if fault == "drop":
                self.connection.close()
                return
            if fault:
                said = f"no: {hub.token}"
                status, value = int(fault), {"Code": fault, "Success": False, "Message": said}
            elif parts.path.startswith("/lfs/"):  # the address itself is the permission
                oid = parts.path.removeprefix("/lfs/")
                assert hashlib.sha256(body).hexdigest() == oid
                hub.objects[oid] = body
                status, value = 200, {}
            elif not brought:
                status, value = 401, {"Code": 401, "Success": False, "Message": "not logged in"}
            else:
                status, value = hub.answer(self.command, parts.path, parse_qs(parts.query), body)
            raw = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PUT = respond  # noqa: N815 - the base class's names

        def log_message(self, format: str, *args: object) -> None:
            pass

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as hub.address:
        yield hub
