"""What servers refuse with, in the words of each, and answers that break off."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_servers import CHAT, MODELS, answered, events, part, refused, server, streamed

from lorafold.errors import InputError, LorafoldError, SystemFault, UsageError
from lorafold.serve.engines.servers.ollama import OllamaEngine
from lorafold.serve.engines.servers.openai import OpenAIEngine
from lorafold.serve.engines.servers.thinking import Divider

TAGS = {"/api/tags": {"models": [{"name": "m:latest"}]}, "/api/ps": {"models": []}}
OLLAMA = "/api/chat"


def error(message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"message": message, **more}}


# Server -> status and body of a prompt that is too long.
TOO_LONG: dict[str, tuple[int, Any]] = {
    "llama-server": (
        400,
        error(
            "request (5000 tokens) exceeds the available context size (2048 tokens), try increasing it",
            code=400,
            type="exceed_context_size_error",
        ),
    ),
    "llama-server of 2024": (
        400,
        error("the request exceeds the available context size. try increasing the context size"),
    ),
    "vLLM": (
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 "
            "tokens (4000 in the messages, 1000 in the completion). Please reduce the length.",
            "code": 400,
        },
    ),
    "vLLM, max_tokens": (
        400,
        error(
            "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context length "
            "is 2048 tokens and your request has 30 input tokens (4096 > 2048 - 30)."
        ),
    ),
    "OpenAI": (
        400,
        error("Your input is wrong.", type="invalid_request_error", code="context_length_exceeded"),
    ),
    "OpenAI, in words": (
        400,
        error("This model's maximum context length is 8192 tokens. However, your messages resulted in 9000."),
    ),
    "LM Studio": (
        400,
        error(
            "Trying to keep the first 4213 tokens when context the overflows. However, the model is loaded "
            "with context length of only 4096 tokens, which is not enough."
        ),
    ),
    "LM Studio, another": (
        400,
        {
            "error": "The number of tokens to keep from the initial prompt is greater than the context "
            "length. Try to load the model with a larger context length, or provide a shorter input"
        },
    ),
    "SGLang": (
        400,
        {
            "object": "error",
            "message": "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        },
    ),
    "SGLang, both": (
        400,
        error("Requested token count exceeds the model's maximum context length of 4096 tokens."),
    ),
    "text-generation-inference": (
        422,
        {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000"},
    ),
    "llama-cpp-python": (500, error("Requested tokens (5000) exceed context window of 2048")),
    "Mistral": (
        400,
        {
            "message": "Prompt contains 5000 tokens and 0 draft tokens, too large for model with 4096 "
            "maximum context length"
        },
    ),
    "Gemini": (
        400,
        error("The input token count (5000) exceeds the maximum number of tokens allowed (4096)."),
    ),
    "Anthropic": (400, error("prompt is too long: 5000 tokens > 4096 maximum")),
}


@pytest.mark.parametrize("name", TOO_LONG)
def test_a_full_context_is_one_message_with_its_cure(name: str) -> None:
    status, body = TOO_LONG[name]
    with (
        server(MODELS, {CHAT: refused(status, body)}) as (url, bodies),
        pytest.raises(LorafoldError) as caught,
    ):
        answered(OpenAIEngine(url))
    assert caught.value.problem.startswith("the conversation does not fit into the server's context (")
    assert f"({status} " in caught.value.problem and "\n" not in str(caught.value)
    assert caught.value.fix is not None and "/reset, lower --max-tokens" in caught.value.fix
    assert isinstance(caught.value, InputError) and len(bodies) == 1, "fewer fields cannot help"


@pytest.mark.parametrize(
    "told",
    ["the input length exceeds the context length", "prompt too long; exceeded max context length by 9"],
)
def test_a_full_context_of_ollama(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with server(TAGS, {OLLAMA: refused(400, {"error": told})}) as (url, _):
        monkeypatch.setenv("OLLAMA_HOST", url)
        with pytest.raises(InputError, match=r"does not fit into the server's context \(400 .*/reset"):
            answered(OllamaEngine("ollama:m"))


def test_a_full_context_within_a_stream() -> None:
    reply = streamed([part("Hel"), error("This model's maximum context length is 64 tokens.")], sse=True)
    with (
        server(MODELS, {CHAT: reply}) as (url, _),
        pytest.raises(SystemFault, match=r"the server failed: .*64 tokens\.; fix: say less, start over"),
    ):
        answered(OpenAIEngine(url))


def test_other_refusals_are_not_taken_for_a_full_context() -> None:
    for told in ("max_tokens must be at least 1", "unknown field `context`", "prompt must not be empty"):
        with (
            server(MODELS, {CHAT: refused(400, error(told))}) as (url, _),
            pytest.raises(InputError) as caught,
        ):
            answered(OpenAIEngine(url))
        assert caught.value.problem == f"the server answered 400 Bad Request: {told}"


LOADING = refused(503, error("Loading model", type="unavailable_error", code=503))


def test_a_model_that_is_being_loaded() -> None:
    """llama-server answers everything so, its list of models too."""
    message = r"the server is still loading its model \(503 .*: Loading model\); fix: wait until it is loaded"
    with server(MODELS, {CHAT: LOADING}) as (url, bodies):
        with pytest.raises(SystemFault, match=message):
            answered(OpenAIEngine(url))
        assert len(bodies) == 1

    with server({"/v1/models": LOADING}, {}) as (url, _), pytest.raises(SystemFault, match=message):
        OpenAIEngine(url)


def test_a_model_that_is_not_there_is_told_with_those_that_are() -> None:
    """The list was not to be had when the address was read, or the model has gone since."""
    listed: dict[str, Any] = {}
    told = {"object": "error", "message": "The model `gone` does not exist.", "code": 404}
    with server(listed, {CHAT: refused(404, told)}) as (url, _):
        engine = OpenAIEngine(f"{url}#gone")
        with pytest.raises(InputError, match=r"404 .*`gone` does not exist.*; fix: check the model's name"):
            answered(engine)
        listed["/v1/models"] = {"data": [{"id": "a"}, {"id": "org/b"}]}
        with pytest.raises(InputError, match=r"`gone` does not exist.*models to the address: #a, #org/b$"):
            answered(engine)


def test_a_model_that_ollama_has_lost_is_told_with_those_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = dict(TAGS)
    with server(tags, {OLLAMA: refused(404, {"error": "model 'm:latest' not found"})}) as (url, _):
        monkeypatch.setenv("OLLAMA_HOST", url)
        engine = OllamaEngine("ollama:m")
        with pytest.raises(InputError, match=r"404 Not Found: model 'm:latest' not found"):
            answered(engine)
        tags["/api/tags"] = {"models": [{"name": "a:7b"}, {"name": "b:latest"}]}
        with pytest.raises(UsageError, match=r"no model 'm:latest'; fix: choose one of a:7b, b:latest"):
            answered(engine)


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (404, "No models loaded. Please load a model in the developer page or use the `lms load` command."),
        (400, "Model has unloaded or crashed.."),
        (503, "The model m is not loaded"),
    ],
)
def test_a_server_without_a_model(status: int, told: str) -> None:
    with (
        server(MODELS, {CHAT: refused(status, error(told))}) as (url, _),
        pytest.raises(SystemFault, match=rf"the server has no model loaded \({status} .*; fix: load one"),
    ):
        answered(OpenAIEngine(url))


def test_a_list_of_faults_is_told_in_words() -> None:
    """FastAPI's, which is under many servers."""
    body = {"detail": [{"loc": ["body"], "msg": "Field required", "type": "missing"}, {"msg": "Too long"}]}
    with (
        server(MODELS, {CHAT: refused(422, body)}) as (url, _),
        pytest.raises(InputError, match=r"answered 422 .*: Field required; Too long; fix:"),
    ):
        answered(OpenAIEngine(url))


@pytest.mark.parametrize(("status", "fix"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY")])
def test_who_is_not_let_in(status: int, fix: str) -> None:
    with server(MODELS, {CHAT: refused(status, error("bad key"))}) as (url, bodies):
        with pytest.raises(InputError, match=rf"answered {status} .*bad key; fix: .*{fix}"):
            answered(OpenAIEngine(url))
        assert len(bodies) == 1


PAGE = b"<!DOCTYPE html>\n<html><head><title>Open WebUI</title><style>a{}</style></head> Sign\nin"


def test_a_page_where_a_model_server_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    page = refused(200, PAGE, "text/html")
    message = r"there is a web page at this address, not a model server \(Open WebUI Sign in\); fix: check"
    with server({"/v1/models": page, "/api/tags": page}, {}) as (url, _):
        with pytest.raises(SystemFault, match=message):
            OpenAIEngine(f"{url}#m")
        monkeypatch.setenv("OLLAMA_HOST", url)
        with pytest.raises(SystemFault, match=message):
            OllamaEngine("ollama:m")
    lost = refused(404, b"<html><body><h1>404 Not Found</h1><hr>nginx</body></html>", "text/html")
    with server({"/v1/models": lost}, {CHAT: lost}) as (url, _):
        with pytest.raises(UsageError, match=r"404 Not Found nginx.*; fix: check that this is the address"):
            OpenAIEngine(url)
        engine = OpenAIEngine(f"{url}#m")  # which may list no models
        with pytest.raises(InputError, match="404 Not Found nginx; fix: check that this is the address"):
            answered(engine)
    gateway = refused(502, b"<html>\r\n<head><title>502</title></head><h1>Bad</h1>", "text/html")
    with (
        server(MODELS, {CHAT: gateway}) as (url, _),
        pytest.raises(SystemFault, match=r"answered 502 Bad Gateway: 502 Bad; fix: look"),
    ):
        answered(OpenAIEngine(url))


def test_calls_and_thoughts_of_ollama(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        {"message": {"content": "<thi"}},
        {"message": {"content": "nk>hm</think>"}},
        {"message": {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}},
        {"message": {"content": ""}, "done": True, "done_reason": "stop"},
    ]
    with server(TAGS, {OLLAMA: streamed(lines)}) as (url, _):
        monkeypatch.setenv("OLLAMA_HOST", url)
        answer = answered(OllamaEngine("ollama:m"))
    assert (answer.text, answer.reasoning) == ('[calls f({"a": 1})]', "hm")


def test_a_stream_in_chunks_that_breaks_off() -> None:
    def broken(handler: Any, _: Any) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.chunk(events(part("Hel")))
        handler.wfile.write(b"ffff\r\ndata: {")
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)

    with (
        server(MODELS, {CHAT: broken}) as (url, _),
        pytest.raises(SystemFault, match=r"broke off|something that is not JSON"),
    ):
        answered(OpenAIEngine(url))


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<thi", "nk>", "</", "a", "\n", " ", "<"]), max_size=9
)


@given(PIECES, st.lists(st.integers(1, 5), max_size=12))
def test_a_thought_is_told_apart_wherever_the_text_is_cut(pieces: list[str], sizes: list[int]) -> None:
    text = "".join(pieces)

    def divided(parts: list[str]) -> tuple[str, str]:
        divider = Divider()
        found = [*map(divider.add, parts), divider.rest()]
        return "".join(answer for answer, _ in found), "".join(thought for _, thought in found)

    cuts = [sum(sizes[:count]) for count in range(len(sizes) + 1)]
    cut = [text[a:b] for a, b in zip(cuts, [*cuts[1:], None], strict=True)]
    answer, thought = divided(cut)
    assert (answer, thought) == divided([text])
    if not text.lstrip().startswith("<think>"):
        assert (answer, thought) == (text, "")
    elif "</think>" in text:
        assert thought == text.lstrip()[7:].partition("</think>")[0].lstrip("\n")
        assert answer == text.partition("</think>")[2].lstrip()
