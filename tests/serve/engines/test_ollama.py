"""Ollama's protocol: answers as its documentation shows them, and every way in which they break."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_terminal import terminal
from model_servers import ASKED, GREEDY, answered, cancelled, free_port, refused, server, streamed
from model_servers import part as openai_part

from lorafold.errors import InputError, LorafoldError, SystemFault, UsageError
from lorafold.serve.engines.servers import http as http_stream
from lorafold.serve.engines.servers.ollama import OllamaEngine
from lorafold.serve.protocol import Cancel

# https://docs.ollama.com/api/tags, the example; the digest is the whole one of 64 digits.
DIGEST = "a2af6cc3eb7fa8be8504abaf9b04e88f17a119ec3f04a3addf55f92841195f5a"
DETAILS = {
    "format": "gguf",
    "family": "gemma",
    "families": ["gemma"],
    "parameter_size": "4.3B",
    "quantization_level": "Q4_K_M",
}
ROW = {
    "name": "tuned:latest",
    "model": "tuned:latest",
    "modified_at": "2025-10-03T23:34:03.409490317-07:00",
    "size": 3338801804,
    "digest": DIGEST,
    "details": DETAILS,
}
# https://docs.ollama.com/api/ps
LOADED = {
    **ROW,
    "expires_at": "2025-10-17T16:47:07.93355-07:00",
    "size_vram": 5333539264,
    "context_length": 4096,
}
GET = {"/api/tags": {"models": [ROW, {**ROW, "name": "other:7b"}]}, "/api/ps": {"models": [LOADED]}}


def part(content: str, **more: Any) -> dict[str, Any]:
    """A part of a streamed chat, https://docs.ollama.com/api/chat (ChatStreamEvent)."""
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    made = {"model": "tuned", "created_at": "2025-10-17T23:14:07.414671Z", "message": message, "done": False}
    return {**made, **more}


# The last part: statistics with durations in nanoseconds (docs/api.md, "Chat request (Streaming)").
END = {
    **part(""),
    "done": True,
    "done_reason": "stop",
    "total_duration": 4883583458,
    "load_duration": 1334875,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 342546000,
    "eval_count": 4,
    "eval_duration": 4535599000,
}


def logprob(token: str, value: float) -> list[dict[str, Any]]:
    """https://docs.ollama.com/openapi.yaml, Logprob: token, its bytes, natural logarithm."""
    return [{"token": token, "logprob": value, "bytes": list(token.encode()), "top_logprobs": []}]


PLAIN = [part("Ray"), part("leigh ö"), END]


@pytest.fixture
def ollama(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that starts an Ollama answering /api/chat so, and gives its engine and what it was asked."""
    with contextlib.ExitStack() as stack:

        def start(reply: Any, get: Any = None, **options: Any) -> tuple[OllamaEngine, list[Any]]:
            url, bodies = stack.enter_context(server(GET if get is None else get, {"/api/chat": reply}))
            monkeypatch.setenv("OLLAMA_HOST", url.removeprefix("http://"))
            return OllamaEngine("ollama:tuned", **options), bodies

        yield start


@pytest.mark.parametrize("size", [None, 1, 7, 64])
def test_an_answer(ollama: Any, size: int | None) -> None:
    engine, bodies = ollama(streamed(PLAIN, size=size), context=512)
    about = engine.about
    assert (about.name, about.digest(), about.quantization) == ("tuned:latest", DIGEST, "Q4_K_M")
    answer = answered(engine)
    assert (answer.text, answer.reason, answer.tokens, answer.prompt_tokens) == ("Rayleigh ö", "stop", 4, 26)
    assert answer.logprobs == [] and answer.scored is None  # an Ollama before 0.12.11
    (body,) = bodies
    assert (
        body["options"] | {"seed": 5, "num_ctx": 512, "num_predict": 16, "temperature": 0} == body["options"]
    )
    assert body["truncate"] is False
    assert (body["model"], body["messages"], body["stream"], body["logprobs"]) == (
        "tuned:latest",
        ASKED,
        True,
        True,
    )


def test_log_probabilities_where_it_tells_them(ollama: Any) -> None:
    lines = [
        part("Ray", logprobs=logprob("Ray", -0.5)),
        part("leigh", logprobs=logprob("leigh", -0.25)),
        part("", logprobs=[{"token": "\ufffd", "logprob": -1.0, "bytes": [0xC3]}]),  # half an ö
        part("ö", logprobs=[{"token": "\ufffd", "logprob": -2.0, "bytes": [0xB6]}]),
        END,
    ]
    answer = answered(ollama(streamed(lines))[0])
    assert answer.text == "Rayleighö" and answer.logprobs == [-0.5, -0.25, -1.0, -2.0]
    assert answer.scored == [("Ray", -0.5), ("leigh", -0.25), ("", -1.0), ("ö", -2.0)]


def test_log_probabilities_that_do_not_fit_the_text_are_left_out(ollama: Any) -> None:
    lines = [part("Ray", logprobs=logprob("Ray", -0.5)), part("leigh", logprobs=logprob("Other", -1)), END]
    answer = answered(ollama(streamed(lines))[0])
    assert answer.text == "Rayleigh" and answer.scored is None


def test_reasoning_is_kept_apart(ollama: Any) -> None:
    """https://docs.ollama.com/capabilities/thinking: `thinking` comes before, and apart from, `content`."""
    lines = [part("", message={"thinking": "Hm"}), part("", message={"thinking": "m."}), part("Blue."), END]
    answer = answered(ollama(streamed(lines))[0])
    assert (answer.text, answer.reasoning) == ("Blue.", "Hmm.")


@pytest.mark.parametrize(
    ("reason", "count", "said"), [("stop", 4, "stop"), ("length", 16, "length"), ("length", 7, "context")]
)
def test_why_an_answer_ends(ollama: Any, reason: str, count: int, said: str) -> None:
    """A length below the number asked for: Ollama's context is full."""
    lines = [part("Ray"), {**END, "done_reason": reason, "eval_count": count}]
    assert answered(ollama(streamed(lines))[0]).reason == said


def test_the_context_is_known_after_the_first_answer(ollama: Any) -> None:
    engine, bodies = ollama(streamed(PLAIN))
    assert engine.context is None
    answered(engine)
    assert engine.context == 4096
    answered(engine)
    assert not any("num_ctx" in body["options"] for body in bodies)  # its own setting is not overridden


def test_another_context_while_it_runs(ollama: Any) -> None:
    engine, bodies = ollama(streamed(PLAIN))
    answered(engine)
    engine.resize(2048)
    answered(engine)
    assert "num_ctx" not in bodies[0]["options"] and bodies[-1]["options"]["num_ctx"] == 2048
    assert engine.context == 2048


ERROR = {"error": "an error was encountered while running the model"}  # https://docs.ollama.com/api/errors
FAULTS: dict[str, tuple[Any, type[LorafoldError], str, str]] = {
    "error amid the stream": (
        streamed([*PLAIN[:2], ERROR]),
        SystemFault,
        "the server failed: an error was",
        "Ray",
    ),
    "end without done": (streamed(PLAIN[:1]), SystemFault, "broke off in the middle", "Ray"),
    "nothing at all": (streamed([]), SystemFault, "sent no answer", ""),
    "connection lost within a line": (streamed(PLAIN, cut=180), SystemFault, "broke off|not JSON", ""),
    "not JSON": (streamed([b"<html>"]), SystemFault, "not JSON: b'<html>'", ""),
    "not an object": (streamed([b"[1]"]), SystemFault, r"sent no answer, but \[1\]", ""),
    # server/routes.go and docs/api/errors.mdx in ollama/ollama
    "model removed meanwhile": (
        refused(404, {"error": "model 'tuned:latest' not found"}),
        InputError,
        "404 Not Found: model 'tuned:latest' not found",
        "",
    ),
    "bad request": (refused(400, {"error": "invalid options"}), InputError, "400 .*invalid options", ""),
    "not signed in": (refused(401, {"error": "unauthorized"}), InputError, "401 .*fix: sign in with", ""),
    "no memory": (
        refused(500, {"error": "model requires more system memory (5.6 GiB) than is available (3.2 GiB)"}),
        SystemFault,
        "500 .*5.6 GiB",
        "",
    ),
    "busy": (refused(503, {"error": "server busy, please try again."}), SystemFault, "503 .*busy", ""),
    "a proxy's page": (
        refused(502, b"<h1>Bad Gateway</h1>", "text/html"),
        SystemFault,
        "502 .*Bad Gateway",
        "",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named_and_what_was_said_stands(ollama: Any, name: str) -> None:
    reply, kind, said, text = FAULTS[name]
    engine, _ = ollama(reply)
    begun = ""
    with pytest.raises(kind, match=said):
        for event in engine.stream(ASKED, GREEDY, Cancel()):
            begun += getattr(event, "text", "")
    assert begun.startswith(text)


def test_a_silent_server_is_given_up(ollama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_stream, "ANSWER_SECONDS", 1.0)
    gate = threading.Event()
    engine, _ = ollama(streamed(PLAIN, gate=gate))
    with pytest.raises(SystemFault, match=r"was silent for 1 s in the middle of an answer"):
        answered(engine)
    gate.set()


def test_a_restarted_server_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{port}")
    with server(GET, {"/api/chat": streamed(PLAIN)}, port):
        engine = OllamaEngine("ollama:tuned")
        assert answered(engine).text == "Rayleigh ö"
    with pytest.raises(SystemFault, match="does not answer"):
        answered(engine)
    with server(GET, {"/api/chat": streamed(PLAIN)}, port):
        assert answered(engine).text == "Rayleigh ö"


def test_cancelled_while_it_is_silent(ollama: Any) -> None:
    gate = threading.Event()
    engine, _ = ollama(streamed(PLAIN, gate=gate))
    text, last = cancelled(engine)
    gate.set()
    assert (text, last.reason) == ("Ray", "cancelled")  # it did not wait for the next word


def test_models_that_are_not_there(ollama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ollama(streamed(PLAIN))
    with pytest.raises(UsageError, match=r"no model 'x'.*tuned:latest, other:7b"):
        OllamaEngine("ollama:x")
    with pytest.raises(UsageError, match="no model named"):
        OllamaEngine("ollama:")
    with pytest.raises(UsageError, match="ollama create tuned -f Modelfile"):
        ollama(streamed(PLAIN), get={"/api/tags": {"models": None}})  # as Go writes an empty list
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{free_port()}")
    with pytest.raises(SystemFault, match=r"does not answer .*refused"):
        OllamaEngine("ollama:tuned")


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("", "http://127.0.0.1:11434"),
        ("box", "http://box:11434"),
        ("box:1234", "http://box:1234"),
        ("https://box/path/", "https://box/path"),
        ("http://box:80", "http://box:80"),
    ],
)
def test_ollama_host(given: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorafold.libraries.ollama import ollama_url

    monkeypatch.setenv("OLLAMA_HOST", given)
    assert ollama_url() == url


def test_ollama_beside_another_server_at_a_terminal(tmp_path: Path) -> None:
    listed = {"/v1/models": {"object": "list", "data": [{"id": "served"}]}}
    lines = [openai_part("Mie"), openai_part(None, "stop"), b"[DONE]"]
    with (
        server(GET, {"/api/chat": streamed(PLAIN)}) as (ollama, asked),
        server(listed, {"/v1/chat/completions": streamed(lines, sse=True)}) as (url, bodies),
        terminal(tmp_path, "ollama:tuned", url, OLLAMA_HOST=ollama.removeprefix("http://")) as talk,
    ):
        shown = talk.ask("why <|im_end|>?")
        assert "'<|im_end|>': the server of tuned:latest, served may take it as a control token" in shown
        assert (
            "Rayleigh ö" in shown and "Mie" in shown and "4 tokens" in shown and "a2af6cc3 · Q4_K_M" in shown
        )
        said = talk.ask("/set context 2048")
        assert (
            "context 2,048 from the next answer on; 1 of 2 models keep the one that they were loaded" in said
        )
        assert "fix: /set context NUMBER" in talk.ask("/set context " + "9" * 4301)  # more than int() reads
        assert "context takes a whole number above 0, got '0'; fix: /set context NUMBER" in talk.ask(
            "/set context 0"
        )
        talk.ask("and now?")
    assert asked[-1]["options"]["num_ctx"] == 2048 and "num_ctx" not in asked[0]["options"]
    assert bodies[0]["messages"][-1]["content"] == "why <|im_end|>?"
