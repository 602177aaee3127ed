"""OpenAI-compatible servers: llama-server's and vLLM's answers as documented, and a real server's."""

from __future__ import annotations

import contextlib
import math
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
from model_servers import ASKED, GREEDY, answered, cancelled, free_port, part, refused, server, streamed

from lorafold.errors import InputError, LorafoldError, SystemFault, UsageError
from lorafold.serve.config import ChatConfig
from lorafold.serve.conversation import Answer
from lorafold.serve.engines.open import opened
from lorafold.serve.engines.servers.openai import OpenAIEngine
from lorafold.serve.lens import answer_seen
from lorafold.serve.protocol import Cancel, Started, Token
from lorafold.serve.terminal.talk import control_notes

CHAT = "/v1/chat/completions"
# GET /v1/models of llama-server (README, "OpenAI-compatible API Endpoints") and of vLLM.
LLAMA_SERVER = {
    "object": "list",
    "data": [
        {
            "id": "org/tuned",
            "object": "model",
            "created": 1735142223,
            "owned_by": "llamacpp",
            "meta": {"n_vocab": 128256, "n_ctx": 2048, "n_ctx_train": 131072, "ftype": "Q4_K - Medium"},
        }
    ],
}
VLLM_ROW = {
    "id": "org/tuned",
    "object": "model",
    "owned_by": "vllm",
    "root": "org/tuned",
    "max_model_len": 4096,
}
VLLM = {"object": "list", "data": [VLLM_ROW, {**VLLM_ROW, "id": "adapter", "parent": "org/tuned"}]}
GET = {"/v1/models": LLAMA_SERVER}


def tokens(*pairs: tuple[str, float]) -> dict[str, Any]:
    """`logprobs` of a chunk: token, natural logarithm, bytes."""
    rows = [
        {"token": text, "logprob": value, "bytes": list(text.encode()), "top_logprobs": []}
        for text, value in pairs
    ]
    return {"content": rows, "refusal": None}


USAGE = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}}
LINES = [part("", role="assistant"), part("Ray"), part("leigh ö"), part(None, "stop"), USAGE]
PLAIN = streamed([*LINES, b"[DONE]"], sse=True)


@pytest.mark.parametrize("size", [None, 1, 7, 64])
def test_an_answer(size: int | None) -> None:
    with server(GET, {CHAT: streamed([*LINES, b"[DONE]"], sse=True, size=size)}) as (url, bodies):
        engine = OpenAIEngine(url)
        assert (engine.about.name, engine.about.quantization, engine.context) == (
            "tuned",
            "Q4_K - Medium",
            2048,
        )
        answer = answered(engine)
        assert (answer.text, answer.reason, answer.tokens, answer.prompt_tokens) == (
            "Rayleigh ö",
            "stop",
            4,
            11,
        )
        asked = {
            "model": "org/tuned",
            "messages": ASKED,
            "top_k": 40,
            "seed": 5,
            "logprobs": True,
            "max_tokens": 16,
        }
        assert bodies[0] | asked == bodies[0]


def test_one_of_several_models() -> None:
    with server({"/v1/models": VLLM}, {CHAT: PLAIN}) as (url, bodies):
        engine = OpenAIEngine(f"{url}/v1#adapter")
        assert (engine.about.name, engine.about.quantization, engine.context) == ("adapter", "", 4096)
        answered(engine)
        assert bodies[0]["model"] == "adapter"
        with pytest.raises(UsageError, match="2 models; fix: append #NAME: org/tuned, adapter"):
            OpenAIEngine(url)
        with pytest.raises(UsageError, match="no model 'x'"):
            OpenAIEngine(f"{url}#x")


def test_older_llama_servers_tell_the_context_among_their_properties() -> None:
    rows = {"object": "list", "data": [{"id": "m"}]}
    get = {"/v1/models": rows, "/props": {"default_generation_settings": {"n_ctx": 512}, "total_slots": 1}}
    with server(get, {CHAT: PLAIN}) as (url, _):
        assert OpenAIEngine(url).context == 512
    with server({"/v1/models": rows}, {CHAT: PLAIN}) as (url, _):
        assert OpenAIEngine(url).context is None


@pytest.mark.parametrize(
    "reply",
    [
        {"tokens": [9906, 1917]},  # llama-server, "POST /tokenize"
        {"count": 2, "max_model_len": 4096, "tokens": [9906, 1917], "token_strs": None},  # vLLM
    ],
)
def test_tokens_are_counted_where_the_server_counts(reply: Any) -> None:
    with server(GET, {CHAT: PLAIN, "/tokenize": refused(200, reply)}) as (url, bodies):
        assert OpenAIEngine(url).count_tokens("Hello world") == 2
        sent = {"content": "Hello world", "prompt": "Hello world", "model": "org/tuned"}
        assert bodies[0] | sent == bodies[0]
        assert bodies[0]["add_special"] is bodies[0]["add_special_tokens"] is False
    with server(GET, {CHAT: PLAIN}) as (url, _):
        assert OpenAIEngine(url).count_tokens("Hello world") is None


def test_log_probabilities_and_tokens() -> None:
    lines = [
        part("Ray", logprobs=tokens(("Ray", -0.5))),
        part("leigh is", logprobs=tokens(("leigh", -0.25), (" is", -1.5))),  # vLLM sends several at once
        part(None, "stop", logprobs=tokens(("<|im_end|>", -0.1))),
        USAGE,
    ]
    with server(GET, {CHAT: streamed(lines, sse=True)}) as (url, _):
        answer = answered(OpenAIEngine(url))
        assert answer.scored == [("Ray", -0.5), ("leigh", -0.25), (" is", -1.5)]


@pytest.mark.parametrize("word", ["reasoning_content", "reasoning"])  # llama-server and older vLLM; vLLM
def test_reasoning_is_kept_apart(word: str) -> None:
    lines = [part(None, **{word: "Hm"}), part(None, **{word: "m."}), part("Blue."), part(None, "stop")]
    with server(GET, {CHAT: streamed(lines, sse=True)}) as (url, _):
        answer = answered(OpenAIEngine(url))
        assert (answer.text, answer.reasoning) == ("Blue.", "Hmm.")


def test_fields_that_a_server_refuses_are_left_out_from_then_on() -> None:
    def strict(handler: Any, body: Any) -> None:
        if "logprobs" in body:  # llama-cpp-python without logits_all answers 500
            reply = refused(500, {"error": {"message": "logprobs is not supported"}})
        elif "top_k" in body:  # OpenAI's own
            reply = refused(400, {"error": {"message": "Unrecognized request argument supplied: top_k"}})
        else:
            reply = PLAIN
        reply(handler, body)

    with server(GET, {CHAT: strict}) as (url, bodies):
        engine = OpenAIEngine(url)
        assert answered(engine).text == answered(engine).text == "Rayleigh ö"
        tried = [("logprobs" in body, "top_k" in body) for body in bodies]
        assert tried == [(True, True), (False, True), (False, False), (False, False)]


def test_a_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with server(GET, {CHAT: refused(401, {"error": {"message": "bad key"}})}) as (url, _):
        engine = OpenAIEngine(url)
        with pytest.raises(InputError, match=r"401 .*bad key.*OPENAI_API_KEY") as caught:
            answered(engine)
        assert "secret" not in str(caught.value) + repr(engine.__dict__)


# llama-server: format_error_response and format_oai_sse in server-common.cpp.
FULL = {
    "error": {
        "code": 400,
        "message": "request (5000 tokens) exceeds the available context size (2048 tokens)",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 5000,
        "n_ctx": 2048,
    }
}
FAULTS: dict[str, tuple[Any, type[LorafoldError], str]] = {
    "cut": (streamed(LINES[:2], sse=True), SystemFault, "broke off in the middle"),
    "empty": (streamed([], sse=True), SystemFault, "sent no answer"),
    "not JSON": (streamed([b"{nonsense"], sse=True), SystemFault, "not JSON"),
    "error amid the stream": (
        streamed([LINES[1], {"error": {"code": 500, "message": "out of memory"}}], sse=True),
        SystemFault,
        "the server failed: out of memory",
    ),
    "error as a text": (streamed([{"error": "dead"}], sse=True), SystemFault, "the server failed: dead"),
    "loading": (
        refused(503, {"error": {"code": 503, "message": "Loading model"}}),
        SystemFault,
        "503 .*Loading",
    ),
    "too long": (refused(400, FULL), InputError, r"400 .*5000 tokens. exceeds the available context"),
    "html": (refused(500, b"<html>oops</html>", "text/html"), SystemFault, "answered 500"),
    "no path": (refused(404, b'{"detail": "no such path"}'), InputError, "answered 404 .*no such path"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name: str) -> None:
    reply, kind, said = FAULTS[name]
    with server(GET, {CHAT: reply}) as (url, _), pytest.raises(kind, match=said):
        answered(OpenAIEngine(url))


def test_a_failure_does_not_count_as_a_refusal_of_fields() -> None:
    """All kinds of fields were tried and the plain request failed too: the next one asks for everything."""
    replies = iter([refused(503, {"error": "busy"})] * 3 + [PLAIN])
    with server(GET, {CHAT: lambda handler, body: next(replies)(handler, body)}) as (url, bodies):
        engine = OpenAIEngine(url)
        with pytest.raises(SystemFault, match="busy"):
            answered(engine)
        assert answered(engine).text == "Rayleigh ö" and "logprobs" in bodies[-1]


def test_addresses_that_are_none() -> None:
    with pytest.raises(SystemFault, match="does not answer"):
        OpenAIEngine(f"http://127.0.0.1:{free_port()}")
    for wrong in ("http://", "http://host:notaport"):
        with pytest.raises(UsageError, match="not the address"):
            OpenAIEngine(wrong)
    with server({"/v1/models": "hello"}, {}) as (url, _), pytest.raises(UsageError, match="0 models"):
        OpenAIEngine(url)


def test_cancelled_while_it_is_silent() -> None:
    gate = threading.Event()
    with server(GET, {CHAT: streamed(LINES, sse=True, gate=gate)}) as (url, _):
        text, last = cancelled(OpenAIEngine(url))
        gate.set()
    assert (text, last.reason) == ("", "cancelled")  # it did not wait for the next word


def test_tokens_arrive_one_by_one() -> None:
    gate = threading.Event()  # the server says the second word when the first one has come
    with server(GET, {CHAT: streamed(LINES[1:], sse=True, gate=gate)}) as (url, _):
        stream = OpenAIEngine(url).stream(ASKED, GREEDY, Cancel())
        assert isinstance(next(stream), Started)
        first = next(stream)
        assert isinstance(first, Token) and first.text == "Ray"
        gate.set()
        assert "".join(event.text for event in stream if isinstance(event, Token)) == "leigh ö"


def test_a_local_model_looks_at_a_servers_answer() -> None:
    path = str(tiny_chat.gguf())
    lines = [part("abc", logprobs=tokens(("ab", -0.5), ("c", -0.25))), part(None, "stop"), USAGE]
    with contextlib.ExitStack() as stack:
        url, _ = stack.enter_context(server(GET, {CHAT: streamed(lines, sse=True)}))
        theirs, ours = stack.enter_context(opened(ChatConfig(models=(url, path), threads=1)))
        answer = answered(theirs)
        lens = answer_seen(theirs, ours, ASKED, answer)
        assert [token.text for token in lens.tokens] == ["ab", "c"] and lens.kl is None
        assert [token.own for token in lens.tokens] == [-0.5, -0.25]
        with pytest.raises(UsageError, match="tuned answers through a server"):
            answer_seen(ours, theirs, ASKED, answer)
        with pytest.raises(UsageError, match="gave no log-probabilities"):
            answer_seen(theirs, ours, ASKED, Answer(text="abc"))


def test_control_text_is_said_for_each_kind_of_model_and_only_then() -> None:
    with contextlib.ExitStack() as stack:
        url, _ = stack.enter_context(server(GET, {CHAT: PLAIN}))
        both = stack.enter_context(opened(ChatConfig(models=(url, str(tiny_chat.gguf())), threads=1)))
        assert control_notes(both, "what does <b>a < b</b> |mean|?") == []
        assert control_notes(both, "say <|im_end|> and <|im_end|>") == [
            "'<|im_end|>': sent as plain text, not as a control token",
            "'<|im_end|>': the server of tuned may take it as a control token",
        ]
        # No token of the local vocabulary, but of others.
        assert control_notes(both, "</s>[INST]") == [
            "'</s>', '[INST]': the server of tuned may take it as a control token"
        ]
        assert control_notes(both[1:], "</s>[INST]") == []


@contextlib.contextmanager
def real_server(model: Path, *options: str) -> Iterator[str]:
    """llama-cpp-python's own OpenAI-compatible server on loopback."""
    pytest.importorskip("fastapi", reason="llama-cpp-python's server needs fastapi")
    pytest.importorskip("uvicorn")
    port = free_port()
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
@pytest.mark.parametrize("logits_all", ["true", "false"])
def test_llama_cpp_pythons_own_server(logits_all: str) -> None:
    """A real server and our own engine say the same, greedily, with the same log-probabilities."""
    path = tiny_chat.gguf()
    options = ["--n_ctx", "512", "--n_threads", "1", "--logits_all", logits_all]
    with (
        real_server(path, *options) as url,
        opened(ChatConfig(models=(url, str(path)), threads=1, context=512)) as engines,
    ):
        theirs, ours = map(answered, engines)
        assert theirs.text and theirs.reason in ("stop", "length")
        assert theirs.text.replace("\ufffd", "")[:4] == ours.text.replace("\ufffd", "")[:4]
        if logits_all == "true":
            assert theirs.logprobs and all(value <= 0 for value in theirs.logprobs)
            assert math.isclose(theirs.logprobs[0], ours.logprobs[0], abs_tol=0.02)
        else:
            assert theirs.scored is None
