"""Model servers at the HTTP edge that answer as recorded or documented, and break as real ones do.

Ollama: https://docs.ollama.com/openapi.yaml and the examples of docs/api.md in ollama/ollama.
llama-server: tools/server/README.md and server-context.cpp in ggml-org/llama.cpp.
vLLM: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from loopback import running

from lorafold.serve.config import Sampling
from lorafold.serve.conversation import Answer
from lorafold.serve.protocol import Cancel, Engine, Finished, Started, Token

ASKED = [{"role": "user", "content": "why is the sky blue?"}]
MODELS = {"/v1/models": {"data": [{"id": "m"}]}}
CHAT = "/v1/chat/completions"
GREEDY = Sampling(temperature=0, seed=5, max_tokens=16)
Reply = Callable[[Any, Any], None]


class Handler(BaseHTTPRequestHandler):
    """Answers GET by path, POST by a function; streams in chunks, as Go's and Python's servers do."""

    protocol_version = "HTTP/1.1"
    get: Mapping[str, Any]
    post: Mapping[str, Reply]
    bodies: list[Any]

    def do_GET(self) -> None:
        if callable(found := self.get.get(self.path)):
            found(self, None)
        elif self.path in self.get:
            self.whole(200, json.dumps(self.get[self.path]).encode())
        else:
            self.whole(404, b"404 page not found", "text/plain")  # gin's, which Ollama is built on

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path not in self.post:
            self.whole(404, b"404 page not found", "text/plain")
            return
        self.bodies.append(body)
        with contextlib.suppress(OSError):
            self.post[self.path](self, body)

    def whole(self, status: int, body: bytes, kind: str = "application/json; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def chunk(self, raw: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(raw), raw))
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


class Quiet(ThreadingHTTPServer):
    """Says nothing when a client hangs up, which is what some tests are about."""

    daemon_threads = True

    def handle_error(self, *where: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(*where)


@contextlib.contextmanager
def server(
    get: Mapping[str, Any], post: Mapping[str, Reply], port: int = 0
) -> Iterator[tuple[str, list[Any]]]:
    """Yields a server's address and the bodies posted to it."""
    bodies: list[Any] = []
    kind = type("Bound", (Handler,), {"get": get, "post": post, "bodies": bodies})
    with running(Quiet(("127.0.0.1", port), kind)) as address:
        yield address, bodies


def streamed(
    lines: list[Any],
    *,
    sse: bool = False,
    gate: threading.Event | None = None,
    pause: float = 0.0,
    cut: int | None = None,
    size: int | None = None,
) -> Reply:
    """A streamed answer.

    Args:
        lines: objects, or bytes to be sent as they are.
        sse: as server-sent events instead of JSON lines.
        gate: what follows the first line waits for it, at most a minute.
        pause: seconds between the lines.
        cut: the connection breaks after so many bytes.
        size: of the chunks, which then end anywhere; a line each otherwise.
    """

    def reply(handler: Handler, body: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream" if sse else "application/x-ndjson")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        pieces = []
        for line in lines:
            raw = line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode()
            pieces.append(b"data: " + raw + b"\n\n" if sse else raw + b"\n")
        if cut is not None:
            handler.wfile.write(b"%x\r\n%s" % (cut + 50, b"".join(pieces)[:cut]))
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        if size is not None:
            text = b"".join(pieces)
            pieces = [text[at : at + size] for at in range(0, len(text), size)]
        for piece in pieces:
            handler.chunk(piece)
            time.sleep(pause)
            if gate is not None:
                gate.wait(60)
        handler.wfile.write(b"0\r\n\r\n")

    return reply


def part(content: Any, finish: Any = None, **more: Any) -> dict[str, Any]:
    """A chunk of an OpenAI-compatible answer, https://platform.openai.com/docs/api-reference/chat-streaming."""
    delta = {key: more.pop(key) for key in ("role", "reasoning_content", "reasoning") if key in more}
    delta |= {} if content is None else {"content": content}
    choice = {"index": 0, "delta": delta, "finish_reason": finish, **more}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "choices": [choice]}


def delta(**fields: Any) -> dict[str, Any]:
    """A chunk with any fields."""
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


END = part(None, "stop")


def events(*lines: Any) -> bytes:
    """Server-sent events; bytes are sent as they are."""
    return b"".join(
        b"data: " + (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n\n"
        for line in lines
    )


def refused(status: int, body: Any, kind: str = "application/json; charset=utf-8") -> Reply:
    """An error instead of an answer."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda handler, _: handler.whole(status, raw, kind)  # type: ignore[no-any-return]


def answered(
    engine: Engine, cancel: Cancel | None = None, messages: Sequence[dict[str, Any]] = ASKED
) -> Answer:
    """What an engine answers."""
    answer = Answer()
    for event in engine.stream(messages, GREEDY, cancel or Cancel()):
        answer.take(event)
    return answer


def cancelled(engine: Engine) -> tuple[str, Finished]:
    """What an engine says whose answer is cancelled while its server is silent, and how that ends."""
    cancel, text = Cancel(), ""
    stream = engine.stream(ASKED, GREEDY, cancel)
    assert isinstance(next(stream), Started)
    threading.Timer(0.2, cancel.set).start()
    for event in stream:
        text += event.text if isinstance(event, Token) else ""
    assert isinstance(event, Finished)
    return text, event


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
