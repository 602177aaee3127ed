"""Model servers: recorded streams of OpenAI and Ollama at the HTTP edge, and llama-cpp-python's server."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import tiny_chat

from lorafold.errors import InputError, LorafoldError, SystemFault, UsageError
from lorafold.serve.config import ChatConfig, Sampling
from lorafold.serve.engine import Cancel, Engine, Finished, Started, Token
from lorafold.serve.engine_ollama import OllamaEngine
from lorafold.serve.engine_openai import OpenAIEngine
from lorafold.serve.engines import opened
from lorafold.serve.session import Answer

GREEDY = Sampling(temperature=0, seed=5, max_tokens=16)
ASKED = [{"role": "user", "content": "hi"}]

TAGS = {
    "models": [
        {"name": "tuned:latest", "digest": "abcd1234", "details": {"quantization_level": "Q4_K_M"}},
        {"name": "other:7b", "digest": "ef", "details": {}},
    ]
}
# As Ollama 0.33 writes them.
OLLAMA_LINES = [
    {"model": "tuned", "created_at": "t", "message": {"role": "assistant", "content": "Hel"}, "done": False},
    {"model": "tuned", "created_at": "t", "message": {"role": "assistant", "content": "lo ö"}, "done": False},
    {
        "model": "tuned",
        "created_at": "t",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "done_reason": "length",
        "prompt_eval_count": 11,
        "eval_count": 4,
    },
]
OPENAI_MODELS = {"object": "list", "data": [{"id": "org/tuned", "object": "model"}]}
OPENAI_LINES = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": "Hel"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {"content": "lo ö"}, "finish_reason": None}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 4}},
]
Reply = Callable[[BaseHTTPRequestHandler, Any], None]


@contextlib.contextmanager
def server(get: Any, post: Reply) -> Iterator[tuple[str, list[Any]]]:
    """A server that answers GET with JSON and POST by a function; yields its address and the bodies."""
    bodies: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, json.dumps(get).encode())

        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            with contextlib.suppress(OSError):
                post(self, bodies[-1])

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=served.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_address[1]}", bodies
    finally:
        served.shutdown()
        served.server_close()


def streamed(lines: list[Any], prefix: bytes = b"", pause: float = 0.0, end: bytes = b"") -> Reply:
    def reply(handler: BaseHTTPRequestHandler, body: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        for line in lines:
            raw = line if isinstance(line, bytes) else json.dumps(line, ensure_ascii=False).encode()
            handler.wfile.write(prefix + raw + b"\n\n")
            handler.wfile.flush()
            time.sleep(pause)
        handler.wfile.write(end)

    return reply


def refused(status: int, body: bytes) -> Reply:
    return lambda handler, _: handler.reply(status, body)  # type: ignore[attr-defined, no-any-return]


def answered(engine: Engine) -> Answer:
    answer = Answer()
    for event in engine.stream(ASKED, GREEDY, Cancel()):
        answer.take(event)
    return answer


OPENAI = streamed(OPENAI_LINES, b"data: ", end=b": a comment\n\ndata: [DONE]\n\n")


def test_ollamas_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(TAGS, streamed(OLLAMA_LINES)) as (url, bodies):
        monkeypatch.setenv("OLLAMA_HOST", url.removeprefix("http://"))
        engine = OllamaEngine("ollama:tuned", context=512)
        assert (engine.about.name, engine.about.digest(), engine.about.quantization) == (
            "tuned:latest",
            "abcd1234",
            "Q4_K_M",
        )
        answer = answered(engine)
        assert (answer.text, answer.reason, answer.tokens, answer.prompt_tokens) == (
            "Hello ö",
            "length",
            4,
            11,
        )
        assert bodies[0]["options"] | {"seed": 5, "num_ctx": 512, "num_predict": 16} == bodies[0]["options"]
        assert bodies[0]["messages"] == ASKED and bodies[0]["stream"] is True


def test_openais_stream() -> None:
    with server(OPENAI_MODELS, OPENAI) as (url, bodies):
        answer = answered(OpenAIEngine(url))
        assert (answer.text, answer.reason, answer.tokens, answer.prompt_tokens) == ("Hello ö", "stop", 4, 11)
        assert bodies[0]["model"] == "org/tuned" and bodies[0]["top_k"] == 40 and bodies[0]["seed"] == 5


def test_a_server_that_knows_only_openais_fields_is_asked_again() -> None:
    def strict(handler: BaseHTTPRequestHandler, body: Any) -> None:
        unknown = refused(400, b'{"error": {"message": "unknown field top_k"}}')
        (unknown if "top_k" in body else OPENAI)(handler, body)

    with server(OPENAI_MODELS, strict) as (url, bodies):
        engine = OpenAIEngine(url)
        assert answered(engine).text == answered(engine).text == "Hello ö"
        assert ["top_k" in body for body in bodies] == [True, False, False]  # it remembers


def test_a_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with server(OPENAI_MODELS, refused(401, b'{"error": {"message": "bad key"}}')) as (url, _):
        engine = OpenAIEngine(url)
        with pytest.raises(InputError, match=r"401 .*bad key.*OPENAI_API_KEY") as caught:
            answered(engine)
        assert "secret" not in str(caught.value) + repr(engine.__dict__)


FAILURES: dict[str, tuple[Reply, type[LorafoldError]]] = {
    "broke off in the middle": (streamed(OPENAI_LINES[:2], b"data: "), SystemFault),
    "not JSON": (streamed([b"{nonsense"], b"data: "), SystemFault),
    "out of memory": (streamed([{"error": {"message": "out of memory"}}], b"data: "), SystemFault),
    "answered 500": (refused(500, b"<html>oops</html>"), SystemFault),
    "answered 404": (refused(404, b'{"detail": "no such path"}'), InputError),
}


@pytest.mark.parametrize("said", FAILURES)
def test_openai_failures_are_named(said: str) -> None:
    reply, kind = FAILURES[said]
    with server(OPENAI_MODELS, reply) as (url, _), pytest.raises(kind, match=said):
        answered(OpenAIEngine(url))


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"error": "model runner has unexpectedly stopped"}], "unexpectedly stopped"),
        (OLLAMA_LINES[:1], "broke off"),
        ([b"?"], "not JSON"),
    ],
)
def test_ollama_failures_are_named(lines: list[Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(TAGS, streamed(lines)) as (url, _):
        monkeypatch.setenv("OLLAMA_HOST", url)
        with pytest.raises(SystemFault, match=said):
            answered(OllamaEngine("ollama:tuned"))


def test_models_and_addresses_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(TAGS, OPENAI) as (url, _):
        monkeypatch.setenv("OLLAMA_HOST", url)
        with pytest.raises(UsageError, match=r"no model 'x'.*tuned:latest, other:7b"):
            OllamaEngine("ollama:x")
    with server(OPENAI_MODELS, OPENAI) as (url, _), pytest.raises(UsageError, match="#NAME: org/tuned"):
        OpenAIEngine(f"{url}#x")
    with pytest.raises(SystemFault, match="does not answer"):
        OpenAIEngine(f"http://127.0.0.1:{_free_port()}")
    for wrong in ("http://", "http://host:notaport"):
        with pytest.raises(UsageError, match="not the address"):
            OpenAIEngine(wrong)


def test_a_stream_can_be_cancelled_while_the_server_is_silent() -> None:
    with server(OPENAI_MODELS, streamed(OPENAI_LINES, b"data: ", pause=20)) as (url, _):
        cancel = Cancel()
        stream = OpenAIEngine(url).stream(ASKED, GREEDY, cancel)
        assert isinstance(next(stream), Started)
        threading.Timer(0.2, cancel.set).start()
        begin = time.monotonic()
        last = list(stream)[-1]
        assert isinstance(last, Finished) and last.reason == "cancelled"
        assert time.monotonic() - begin < 5


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_llama_cpp_pythons_own_server() -> None:
    """A real OpenAI-compatible server and our own engine say the same, greedily."""
    pytest.importorskip("fastapi", reason="llama-cpp-python's server needs fastapi")
    pytest.importorskip("uvicorn")
    port, path = _free_port(), str(tiny_chat.gguf())
    command = [sys.executable, "-m", "llama_cpp.server", "--model", path, "--port", str(port)]
    command += ["--n_ctx", "512", "--n_threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        config = ChatConfig(models=(f"http://127.0.0.1:{port}", path), threads=1, context=512)
        with opened(config) as engines:
            theirs, ours = map(answered, engines)
        assert theirs.text and theirs.reason in ("stop", "length")
        assert theirs.text.replace("\ufffd", "")[:4] == ours.text.replace("\ufffd", "")[:4]
    finally:
        process.terminate()
        process.wait(20)


def test_tokens_arrive_one_by_one() -> None:
    with server(OPENAI_MODELS, streamed(OPENAI_LINES, b"data: ", pause=0.1)) as (url, _):
        times = [
            event.elapsed
            for event in OpenAIEngine(url).stream(ASKED, GREEDY, Cancel())
            if isinstance(event, Token)
        ]
        assert len(times) == 2 and times[1] - times[0] > 0.05
