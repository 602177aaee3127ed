"""ModelScope: a repository is made, large files go up one after the other, one commit joins them.

The protocol is that of its own client (modelscope_hub 0.5.1, `_legacy_api.py` and `_upload.py`): a repository
by `POST /api/v1/models`, large files by the batch request of Git LFS, a commit with small files in base64. A
file that ModelScope has already (by its sha256) is not sent again. The token comes from MODELSCOPE_API_TOKEN;
it goes to ModelScope's own hosts and is part of no message.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from lorafold.artifacts import sha256_file
from lorafold.errors import InputError, LorafoldError, SystemFault, UsageError
from lorafold.export.hub.client import PushFile
from lorafold.progress import Progress

_TOKEN, _ENDPOINT = "MODELSCOPE_API_TOKEN", "MODELSCOPE_ENDPOINT"
_HOME = "https://modelscope.cn"
_TIMEOUT = 300.0  # seconds of silence
_CHUNK = 1 << 20  # bytes of a file sent at once
_SMALL = 64 * 1024  # bytes: a larger file goes by LFS, as do weights of any size
_WEIGHTS = (".gguf", ".safetensors", ".model")
_PRIVATE, _PUBLIC = 1, 5
_OWN_FILES = {".gitattributes", "README.md", "configuration.json"}  # what a new repository may begin with
_OURS = b"Made by lorafold"
_AGAIN = "give the same command again: what ModelScope has is not sent a second time"
_MESSAGE = "lorafold: the export, its model card and its proof"
_NOT_FOUND = 404

_STATUS: Mapping[int, tuple[str, str]] = {
    401: ("ModelScope does not know you: the token is wrong or expired", f"set {_TOKEN}"),
    403: ("your token may not write there", "use a namespace that is yours"),
    404: ("ModelScope has no such namespace, or your token does not see it", "check ORG in ORG/NAME"),
    409: ("the name is taken", "choose another name"),
    413: ("ModelScope refuses a file of this size", "export with --split-max-size"),
    429: ("ModelScope asks to wait: too many requests", f"wait some minutes, then {_AGAIN}"),
    507: ("your storage on ModelScope is full", "free some, or choose another namespace"),
}


def push_modelscope(
    repo: str, files: Sequence[PushFile], *, public: bool, force: bool, license_: str, progress: Progress
) -> str:
    """Make the repository and fill it.

    Args:
        repo: "org/name".
        files: all of them.
        public: everybody may see it.
        force: also into a repository that something else is in.
        license_: of the model, or "".
        progress: told the bytes that are there.

    Returns:
        Its address.

    Raises:
        UsageError: the name is taken, or the repository is public and that was not asked for.
        SystemFault: no token, or ModelScope, the network or the disk failed; the same command goes on.
    """
    token = os.environ.get(_TOKEN, "").strip()
    if not token:
        raise SystemFault("no token of ModelScope was found", at=repo, fix=f"set {_TOKEN}")
    scope = _ModelScope(repo, token)
    scope.make(public=public, force=force, license_=license_)
    total, done = sum(file.size for file in files), 0
    progress("push", 0, total)
    actions = []
    for file in sorted(files, key=lambda file: file.size):
        actions.append(scope.sent(file))
        done += file.size
        progress("push", done, total, file.name)
    scope.call("POST", f"repos/models/{repo}/commit/master", {"commit_message": _MESSAGE, "actions": actions})
    return f"{scope.endpoint}/models/{repo}"


class _ModelScope:
    """A repository there."""

    def __init__(self, repo: str, token: str) -> None:
        self.repo, self._token = repo, token
        given = os.environ.get(_ENDPOINT, "").strip().rstrip("/") or _HOME
        self.endpoint = given if "://" in given else f"https://{given}"

    def make(self, *, public: bool, force: bool, license_: str) -> None:
        """Make the repository, or see that the one that is there may be filled."""
        status, body = self._send("GET", f"{self.endpoint}/api/v1/models/{self.repo}")
        if status == _NOT_FOUND:
            owner, _, name = self.repo.partition("/")
            seen = _PUBLIC if public else _PRIVATE
            asked = {"Path": owner, "Name": name, "Visibility": seen, "License": license_ or "other"}
            self.call("POST", "models", asked)
            return
        found = self._data(status, body)
        listed = self.call("GET", f"models/{self.repo}/repo/files?Revision=master&Recursive=True") or {}
        names = [str(row.get("Path") or row.get("Name")) for row in listed.get("Files") or ()]
        others = sorted(set(names) - _OWN_FILES)
        if others and not force and not self._is_ours(names):
            problem = f"the repository exists and holds other files ({', '.join(others[:3])})"
            raise UsageError(problem, at=self.repo, fix="choose another name, or pass --force to add to it")
        if found.get("Visibility") == _PUBLIC and not public:
            problem = "the repository exists and everybody can see it"
            raise UsageError(
                problem, at=self.repo, fix="pass --public, or make it private on ModelScope first"
            )

    def _is_ours(self, names: Sequence[str]) -> bool:
        if "README.md" not in names:
            return False
        card = f"{self.endpoint}/api/v1/models/{self.repo}/repo?Revision=master&FilePath=README.md"
        status, body = self._send("GET", card)
        return status == 200 and _OURS in body

    def sent(self, file: PushFile) -> dict[str, Any]:
        """Bring a file there, unless it is there; its line of the commit."""
        action = {"action": "create", "path": file.name, "size": file.size}
        if file.size <= _SMALL and not file.name.endswith(_WEIGHTS):
            text = base64.b64encode(b"".join(_pieces(file))).decode()
            return {**action, "type": "normal", "sha256": "", "content": text, "encoding": "base64"}
        content = file.content
        oid = hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else sha256_file(content)
        asked = {"operation": "upload", "objects": [{"oid": oid, "size": file.size}]}
        answer = self.call("POST", f"repos/models/{self.repo}/info/lfs/objects/batch", asked)
        rows = (answer or {}).get("objects") or ()
        href = next((_href(row) for row in rows if row.get("oid") == oid), None)
        if href:  # what needs no upload has no address
            self._upload(href, file)
        return {**action, "type": "lfs", "sha256": oid, "content": "", "encoding": ""}

    def _upload(self, href: str, file: PushFile) -> None:
        status, body = self._send("PUT", href, _pieces(file), size=file.size)
        said = _json(body)
        if status not in (200, 201) or said.get("Code") not in (None, 200, "200"):
            raise self._fault(status, said)

    def call(self, method: str, path: str, asked: Mapping[str, Any] | None = None) -> Any:
        """A request of the API, and the data of its answer."""
        content = None if asked is None else json.dumps(asked).encode()
        return self._data(*self._send(method, f"{self.endpoint}/api/v1/{path}", content))

    def _data(self, status: int, body: bytes) -> Any:
        said = _json(body)
        if status not in (200, 201) or said.get("Success") is False:
            raise self._fault(status, said)
        return said.get("Data", said)

    def _send(self, method: str, url: str, content: Any = None, size: int | None = None) -> tuple[int, bytes]:
        parts = urlsplit(url)
        home = urlsplit(self.endpoint)
        headers = {"Content-Type": "application/json"} if size is None else {"Content-Length": str(size)}
        host, own = parts.hostname or "", home.hostname or ""
        if (host == own or host.endswith(f".{own}")) and parts.scheme == home.scheme:
            headers |= {"Authorization": f"Bearer {self._token}", "Cookie": f"m_session_id={self._token}"}
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(host, parts.port, timeout=_TIMEOUT)
        place = parts.path + (f"?{parts.query}" if parts.query else "")
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the answer may say why
                connection.request(method, place, content, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except FileNotFoundError as error:
            raise InputError("a file is gone", at=self.repo, fix="export again") from error
        except (OSError, http.client.HTTPException) as error:
            what = "the upload broke off" if size is not None else "ModelScope does not answer"
            raise SystemFault(f"{what} ({type(error).__name__})", at=self.repo, fix=_AGAIN) from error
        finally:
            connection.close()

    def _fault(self, status: int, said: Mapping[str, Any]) -> LorafoldError:
        if status in _STATUS:
            problem, fix = _STATUS[status]
            return SystemFault(f"{problem} (HTTP {status})", at=self.repo, fix=fix)
        reason = str(said.get("Message") or "").replace(self._token, "…")[:160]
        told = f": {reason}" if reason else ""
        what = "failed" if status >= 500 else "refuses this"
        return SystemFault(f"ModelScope {what} (HTTP {status}){told}", at=self.repo, fix=_AGAIN)


def _pieces(file: PushFile) -> Iterator[bytes]:
    if isinstance(file.content, bytes):
        yield file.content
        return
    with file.content.open("rb") as opened:
        while piece := opened.read(_CHUNK):
            yield piece


def _href(row: Mapping[str, Any]) -> str | None:
    action = (row.get("actions") or {}).get("upload") or {}
    return action.get("href")


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
