"""A running Ollama, asked through its API: create a model, show its prompts, count its tokens, remove it.

https://docs.ollama.com/api. Each fault of the network and of the server is one line.
"""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lorafold.errors import InputError, LorafoldError, SystemFault
from lorafold.export.ollama.rules import Refused
from lorafold.libraries.ollama import ollama_url

TIMEOUT = 600.0  # seconds of silence: a server that loads a large model says nothing for minutes
_CHUNK = 1 << 20  # bytes of a file sent at once

_ONE_TOKEN = {"options": {"num_predict": 1}}

_Message = dict[str, Any]
Sent = Callable[[int], None]  # told how many bytes of a file have gone


class _Asked:
    """A server that is asked by HTTP."""

    url: str
    name: str  # in messages
    start: str  # what to do if nobody answers

    def _ask(self, method: str, path: str, asked: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        content = None if asked is None else json.dumps(asked).encode()
        try:
            return self._send(method, path, content, {"Content-Type": "application/json"} if content else {})
        except TimeoutError as error:
            raise SystemFault(
                f"{self.name} said nothing for {TIMEOUT:.0f} s", at=self.url, fix="look at its log"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise SystemFault(
                f"{self.name} does not answer ({error})",
                at=self.url,
                fix=self.start,
            ) from error

    def _send(self, method: str, path: str, content: Any, headers: Mapping[str, str]) -> tuple[int, bytes]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=TIMEOUT)
        try:
            try:
                connection.request(method, parts.path + path, content, dict(headers))
            except (BrokenPipeError, ConnectionResetError):
                answer = connection.getresponse()  # a server that takes no more may have said why
            else:
                answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _fault(self, status: int, said: str) -> LorafoldError:
        """The one line for an answer that is an error."""
        lower = said.lower()
        if "no space left" in lower or "disk full" in lower:
            return SystemFault(
                f"the server's disk is full: {said}",
                at=self.url,
                fix="free space there, or set OLLAMA_MODELS",
            )
        if status in (401, 403):
            return SystemFault(
                f"the server refuses access (HTTP {status})", at=self.url, fix="ask who runs it, or sign in"
            )
        if status == 429:
            return SystemFault("the server has too much to do (HTTP 429)", at=self.url, fix="try again later")
        if "template" in lower and status in (400, 500):
            return InputError(
                f"Ollama refuses the TEMPLATE: {said}",
                at=self.url,
                fix="please report this; --ollama-path jinja needs no TEMPLATE",
            )
        wrong = status == 400
        said = said or "it gives no reason"
        problem = f"{self.name} {'refuses this' if wrong else 'failed'} (HTTP {status}): {said}"
        return (InputError if wrong else SystemFault)(
            problem[:400], at=self.url, fix="look at the server's log; an update may help"
        )


class Ollama(_Asked):
    """The API of a running Ollama.

    Args:
        host: its address; empty: OLLAMA_HOST, else this machine.
    """

    name = "Ollama"
    start = "start it with `ollama serve`, or name its address in OLLAMA_HOST"

    def __init__(self, host: str = "") -> None:
        self.url = ollama_url(host)

    def version(self) -> str:
        """The server's version.

        Raises:
            SystemFault: nobody answers, or it is no Ollama.
        """
        status, body = self._ask("GET", "/api/version")
        version = _object(body).get("version")
        if status in (401, 403, 429) or status >= 500:
            raise self._fault(status, _said(body))
        if status != 200 or not isinstance(version, str):
            problem = f"this is not Ollama: it does not tell a version (HTTP {status})"
            raise SystemFault(problem, at=self.url, fix="name another address")
        return version

    def has(self, name: str) -> bool:
        """Whether a model of this name is there."""
        status, body = self._ask("POST", "/api/show", {"model": name})
        if status in (200, 404):
            return status == 200
        raise self._fault(status, _said(body))

    def upload(self, path: Path, digest: str | None = None, sent: Sent | None = None) -> str:
        """Bring a file to the server, unless it is there already.

        Args:
            path: the file.
            digest: its sha256 in hex, if it is known.
            sent: told how many bytes have gone.

        Returns:
            The digest by which the server knows it.

        Raises:
            SystemFault: the upload broke off, or the server cannot keep the file.
        """
        name = f"sha256:{digest or _sha256(path)}"
        status, _ = self._ask("HEAD", f"/api/blobs/{name}")
        if status == 200:
            return name
        if status != 404:
            raise self._fault(status, "")
        gone = 0

        def pieces() -> Iterator[bytes]:
            nonlocal gone
            with path.open("rb") as file:
                while piece := file.read(_CHUNK):
                    yield piece
                    gone += len(piece)
                    if sent is not None:
                        sent(gone)

        size = path.stat().st_size
        try:
            status, body = self._send("POST", f"/api/blobs/{name}", pieces(), {"Content-Length": str(size)})
        except (OSError, http.client.HTTPException) as error:
            raise SystemFault(
                f"the upload of {path.name} broke off after {gone:,} of {size:,} bytes ({error})",
                at=self.url,
                fix="look at the server's disk and log, and run this again",
            ) from error
        if status not in (200, 201):
            raise self._fault(status, _said(body))
        return name

    def create(self, name: str, fields: Mapping[str, Any], tell: Callable[[str], None]) -> None:
        """Create a model of uploaded files.

        Args:
            name: the model's name.
            fields: `files`, `template`, `parameters` and so on: https://docs.ollama.com/api/create.
            tell: told what the server is doing.

        Raises:
            InputError: it refuses the TEMPLATE or another field.
            SystemFault: it cannot.
        """
        status, body = self._ask("POST", "/api/create", {"model": name, **fields, "stream": True})
        if status != 200:
            raise self._fault(status, _said(body))
        done = False
        for line in body.splitlines():
            row = _object(line)
            if "error" in row:
                raise self._fault(int(row.get("status") or 500), str(row["error"]))
            tell(str(row.get("status", "")))
            done = row.get("status") == "success"
        if not done:
            raise SystemFault(
                "the server hung up while it created the model", at=self.url, fix="try it again"
            )

    def delete(self, name: str) -> None:
        """Remove a model.

        Raises:
            SystemFault: it is still there.
        """
        status, body = self._ask("DELETE", "/api/delete", {"model": name})
        if status not in (200, 404):
            raise self._fault(status, _said(body))

    def prompt(
        self, name: str, messages: Sequence[_Message], think: bool | None, **more: Any
    ) -> str | Refused:
        """The exact prompt that the server would send, without an answer.

        Args:
            name: the model.
            messages: the conversation.
            think: the request's `think`; None leaves it out.
            more: other fields of the request: `tools`.

        Returns:
            The prompt, or what the server says if it refuses the request's `think` or `more` (HTTP 400).

        Raises:
            SystemFault: the server shows no prompts, or fails.
        """
        body = self._chat(name, messages, think, _debug_render_only=True, **more)
        if isinstance(body, Refused):
            return body
        prompt = (body.get("_debug_info") or {}).get("rendered_template")
        if not isinstance(prompt, str):
            raise SystemFault(
                f"Ollama {self.version()} does not show its prompts",
                at=self.url,
                fix="update it: 0.30 and later do",
            )
        return prompt

    def count(self, name: str, prompt: str) -> int | None:
        """How many tokens the server reads for a prompt as it stands; it answers with one token.

        Raw: an answer to a chat goes through llama.cpp's reader of answers, which may refuse what it says.
        The answer is bound to `true` or `false`: after one that is no whole UTF-8 Ollama tells no count.
        """
        asked: dict[str, Any] = {"model": name, "prompt": prompt, "raw": True, "stream": False, **_ONE_TOKEN}
        asked["format"] = {"type": "boolean"}
        status, body = self._ask("POST", "/api/generate", asked)
        if status != 200:
            raise self._fault(status, _said(body))
        count = _object(body).get("prompt_eval_count")
        return count if isinstance(count, int) else None

    def _chat(self, name: str, messages: Sequence[_Message], think: bool | None, **more: Any) -> Any:
        asked: dict[str, Any] = {"model": name, "messages": list(messages), "stream": False, **more}
        asked |= _ONE_TOKEN  # a server that does not know the debug field answers
        if think is not None:
            asked["think"] = think
        status, body = self._ask("POST", "/api/chat", asked)
        if status == 400 and (think is not None or len(more) > 1):
            return Refused(_said(body))
        if status != 200:
            raise self._fault(status, _said(body))
        return _object(body)


class LlamaServer(_Asked):
    """The API of a running llama-server: https://github.com/ggml-org/llama.cpp/tree/master/tools/server.

    Args:
        url: its address.
    """

    name = "llama-server"
    start = "start it with `llama-server -m FILE.gguf`, or name its address"

    def __init__(self, url: str) -> None:
        self.url = (url if "://" in url else f"http://{url}").rstrip("/").removesuffix("/v1")

    def prompt(self, messages: Sequence[_Message], think: bool | None) -> str:
        """The exact prompt that the server would read."""
        body: dict[str, Any] = {"messages": list(messages)}
        if think is not None:
            body["chat_template_kwargs"] = {"enable_thinking": think}
        prompt = self._post("/apply-template", body).get("prompt")
        if not isinstance(prompt, str):
            raise SystemFault(
                "this is not llama-server: it does not show a prompt", at=self.url, fix="name another address"
            )
        return prompt

    def ids(self, prompt: str) -> list[int]:
        """The token ids that the server reads for a prompt."""
        body = {"content": prompt, "add_special": True, "parse_special": True}
        found = self._post("/tokenize", body).get("tokens")
        return [int(token) for token in found] if isinstance(found, list) else []

    def _post(self, path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        status, body = self._ask("POST", path, asked)
        if status != 200:
            raise self._fault(status, _said(body))
        return _object(body)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _object(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _said(body: bytes) -> str:
    """What an error's body says."""
    said = _object(body).get("error")
    if isinstance(said, dict):
        said = said.get("message")
    return str(said or body.decode("utf-8", "replace").strip())[:300]
