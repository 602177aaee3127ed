"""JSON over HTTP to a model server: small requests, and answers that arrive line by line until cancelled."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lorafold.errors import InputError, LorafoldError, SystemFault, UsageError
from lorafold.serve.engines.servers.fields import parsed
from lorafold.serve.engines.servers.refusals import cause_of, is_page, message_of, page_text, pause
from lorafold.serve.protocol import Cancel

CONNECT_SECONDS = 10.0  # to a connection, and to a short answer
ANSWER_SECONDS = 600.0  # to the next line: a server may have to load the model first
_LONGEST_LINE = 10_000_000  # bytes


@dataclass(frozen=True, slots=True)
class Server:
    """A model server's address.

    Attributes:
        url: http(s)://host[:port][/path], without a slash at the end.
        headers: sent with every request; may hold a key, which no message shows.
        sign_in: what to do if the server wants to know who asks.
    """

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    sign_in: str = "set the server's key in OPENAI_API_KEY"

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            valid = False
        if not (valid and self.url.isascii() and self.url.isprintable() and " " not in self.url):
            raise UsageError("not the address of a server", at=self.url, fix="write http://HOST:PORT")

    def get(self, path: str) -> Any:
        """The JSON that a path answers with.

        Raises:
            SystemFault: no connection, or the server failed.
            InputError: the server refused the request.
        """
        return self._whole("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """The JSON that a path answers a JSON body with (errors as in `get`)."""
        return self._whole("POST", path, body)

    def _whole(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        with self._request(method, path, body, None, CONNECT_SECONDS) as response:
            try:
                raw = response.read(_LONGEST_LINE)
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = f"the server broke off its answer ({type(error).__name__})"
                raise Failed(problem, at=self.url, fix=_LOG) from error
            try:
                return parsed(raw)
            except ValueError as error:
                fix = WRONG_ADDRESS
                if is_page(page := raw.decode("utf-8", errors="replace")):
                    problem = f"there is a web page at this address, not a model server ({page_text(page)})"
                    raise SystemFault(problem, at=self.url, fix=fix) from error
                problem = f"the server's answer is not JSON: {raw[:60]!r}"
                raise Failed(problem, at=self.url, fix=fix) from error

    def lines(self, path: str, body: Mapping[str, Any], cancel: Cancel) -> Iterator[bytes]:
        """The lines of a streamed answer, as they come, without what ends them.

        The iterator ends early, without an error, once `cancel` is set.
        """
        request = self._request("POST", path, body, cancel, ANSWER_SECONDS)
        with contextlib.suppress(_Cancelled), request as response:
            while not cancel.is_set():
                line = self._line(response, cancel)
                if not line:
                    return
                yield from line.splitlines()  # bytes: at CR and LF, and nowhere within a text

    def _line(self, response: http.client.HTTPResponse, cancel: Cancel) -> bytes:
        try:
            return response.readline(_LONGEST_LINE)
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            if cancel.is_set():
                return b""
            late = isinstance(error, TimeoutError)
            problem = f"was silent for {ANSWER_SECONDS:g} s" if late else "broke off"
            raise SystemFault(
                f"the server {problem} in the middle of an answer ({type(error).__name__})",
                at=self.url,
                fix="look at the server's log, and ask again",
            ) from error

    @contextlib.contextmanager
    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        cancel: Cancel | None,
        seconds: float,
    ) -> Iterator[http.client.HTTPResponse]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        connection = (
            http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=CONNECT_SECONDS, context=ssl.create_default_context()
            )
            if parts.scheme == "https"
            else http.client.HTTPConnection(parts.hostname, parts.port, timeout=CONNECT_SECONDS)
        )
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self.headers}
        try:
            try:
                connection.connect()
                connected: socket.socket = connection.sock
                connected.settimeout(seconds)
                if cancel is not None:
                    cancel.on_set(lambda: _shut(connected))
                data = None if body is None else json.dumps(body).encode()
                connection.request(method, parts.path + path, data, headers)
                response = connection.getresponse()
            except (OSError, http.client.HTTPException, ValueError) as error:
                if cancel is not None and cancel.is_set():
                    raise _Cancelled from None
                fix = "start it, or check the address"
                raise SystemFault(
                    f"the server does not answer ({_reason(error)})", at=self.url, fix=fix
                ) from error
            if packed := response.headers.get("Content-Encoding", "").strip():
                raise Failed(
                    f"the server packs its answers ({packed}), though nobody asked for it",
                    at=self.url,
                    fix="turn compression off in the server, or in the proxy before it",
                )
            if response.status >= 300:
                raise self._refusal(response)
            yield response
        finally:
            connection.close()

    def _refusal(self, response: http.client.HTTPResponse) -> LorafoldError:
        """What a server's error means: the request is wrong (3xx, 4xx), or the server failed."""
        raw, status, wait = b"", response.status, pause(response.headers.get("Retry-After"))
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            raw = response.read(100_000)
        told = message_of(raw) if raw else ""
        problem = f"the server answered {status} {response.reason}: {told}"[:500]
        if status < 400:
            place = response.headers.get("Location") or "an address that it does not name"
            problem = f"the server answered {status} and points to {place}"[:500]
            return ServerRefused(problem, at=self.url, fix="pass the address of the model server itself")
        if cause := cause_of(status, raw[:4000].decode(errors="replace")):
            answer = problem.removeprefix("the server answered ")
            return cause.kind(f"{cause.problem} ({answer})", at=self.url, fix=cause.fix)
        if status in (401, 403):
            return InputError(problem, at=self.url, fix=self.sign_in)
        if status in _NOT_THE_REQUEST:
            return InputError(problem, at=self.url, fix=_NOT_THE_REQUEST[status] + wait)
        if status < 500:
            page = is_page(raw[:1000].decode(errors="replace"))
            fix = WRONG_ADDRESS if page else "check the model's name and the settings"
            return ServerRefused(problem, at=self.url, fix=fix, status=status)
        return Failed(problem, at=self.url, fix=f"wait, and ask again{wait}" if wait else _LOG)


WRONG_ADDRESS = "check that this is the address of a model server"
_LOG = "look at the server's log"
# What helps if the server refuses a request in which nothing is wrong; asking for less does not.
_NOT_THE_REQUEST = {
    402: "pay, or choose another server",
    408: "ask again",
    413: "say less: /clear begins a new conversation",
    429: "wait, and ask again",
}


class ServerRefused(InputError):
    """The server found something wrong with the request itself.

    Args:
        problem: what it says.
        at: the server.
        fix: what to do.
        status: of its answer.
    """

    def __init__(
        self, problem: str, *, at: str | Path | None = None, fix: str | None = None, status: int = 0
    ) -> None:
        self.status = status
        super().__init__(problem, at=at, fix=fix)


class Failed(SystemFault):
    """The server could not do what was asked."""


class _Cancelled(Exception):
    """The user did not wait for the connection."""


def _shut(connected: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
