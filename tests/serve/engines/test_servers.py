"""What servers send, in the forms of many programs: answers and errors, each with the server named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_terminal import plain, terminal
from model_servers import CHAT, END, GREEDY, MODELS, answered, delta, events, part, refused, server

from lorafold.errors import LorafoldError, SystemFault, UsageError
from lorafold.serve.conversation import Answer, Conversation, Turn
from lorafold.serve.engines.servers.openai import OpenAIEngine
from lorafold.serve.protocol import Cancel

WHOLE = {
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"completion_tokens": 1},
}


def call(index: int | None, name: str | None, arguments: Any, **more: Any) -> dict[str, Any]:
    row = {"function": {"name": name, "arguments": arguments}, **more}
    return row if index is None else {"index": index, **row}


# The body of an answer -> text, reasoning, why it ended.
ANSWERS: dict[str, tuple[bytes, str, str, str]] = {
    "parts (Mistral)": (
        events(
            part([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]),
            part([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]),
            END,
        ),
        "Hello",
        "hm",
        "stop",
    ),
    "a part with a value (assistants)": (
        events(part([{"type": "text", "text": {"value": "Hello", "annotations": []}}]), END),
        "Hello",
        "",
        "stop",
    ),
    "parts that are texts": (events(part(["Hel", "lo"]), END), "Hello", "", "stop"),
    "one part": (events(part({"type": "text", "text": "Hello"}), END), "Hello", "", "stop"),
    "details alone (MiniMax)": (
        events(
            {"choices": [{"delta": {"reasoning_details": [{"type": "reasoning.text", "text": "hm"}]}}]},
            {"choices": [{"delta": {"content": "Hello"}}]},
            {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        ),
        "Hello",
        "hm",
        "stop",
    ),
    "a number": (events(part(4), END), "4", "", "stop"),
    "null choices": (
        events(part("Hello"), {"choices": [None]}, {"choices": None}, {"choices": []}, END),
        "Hello",
        "",
        "stop",
    ),
    "another choice between": (
        events(part("Hel"), {"choices": [{"index": 1, "delta": {"content": "no"}}]}, part("lo"), END),
        "Hello",
        "",
        "stop",
    ),
    "halves of an emoji": (events(part("Hi \ud83d"), part("\ude00!"), END), "Hi 😀!", "", "stop"),
    "a half without the other": (
        events(part("a\ud83d"), part("b\udc00c"), END),
        "a\ufffdb\ufffdc",
        "",
        "stop",
    ),
    "a half at the end": (events(part("a\ud83d"), END), "a\ufffd", "", "stop"),
    "halves in the reasoning": (
        events(part(None, reasoning="\ud83d"), part(None, reasoning="\ude00"), part("x"), END),
        "x",
        "😀",
        "stop",
    ),
    "a whole body": (json.dumps(WHOLE).encode(), "Hello", "", "stop"),
    "a whole body on many lines": (json.dumps(WHOLE, indent=2).encode(), "Hello", "", "stop"),
    "a whole body as an event": (events(WHOLE), "Hello", "", "stop"),
    "whole messages behind the deltas": (
        events(
            part("Hello"),
            {"choices": [{"index": 0, "message": {"content": "Hello"}, "finish_reason": "stop"}]},
        ),
        "Hello",
        "",
        "stop",
    ),
    "an event on two lines": (
        b'data: {"choices":[{"index":0,\ndata: "delta":{"content":"Hello"},"finish_reason":"stop"}]}\n\n',
        "Hello",
        "",
        "stop",
    ),
    "no blank lines between": (
        events(part("Hel"), part("lo"), END).replace(b"\n\n", b"\n"),
        "Hello",
        "",
        "stop",
    ),
    "carriage returns alone": (events(part("Hello"), END).replace(b"\n", b"\r"), "Hello", "", "stop"),
    "a byte order mark": (b"\xef\xbb\xbf" + events(part("Hello"), END), "Hello", "", "stop"),
    "names and comments": (
        b": ping\n\nevent: message\nid: 3\nretry: 10\n" + events(part("Hello"), END),
        "Hello",
        "",
        "stop",
    ),
    "no reason but the end": (events(part("Hello"), b"[DONE]"), "Hello", "", "stop"),
    "completions": (
        events({"choices": [{"text": "Hello"}]}, {"choices": [{"text": "", "finish_reason": "stop"}]}),
        "Hello",
        "",
        "stop",
    ),
    "content_filter": (
        events(part("Hel"), part("", "content_filter"), b"[DONE]"),
        "Hel",
        "",
        "content_filter",
    ),
    "a reason in an object": (events(part("Hel"), part(None, {"type": "max_time"})), "Hel", "", "max_time"),
    "a refusal": (events({"choices": [{"delta": {"refusal": "No."}}]}, END), "No.", "", "refusal"),
    "tool calls": (events({"choices": [{"delta": {"tool_calls": [{"id": 1}]}}]}, END), "", "", "tool_calls"),
    "a word of ours": (events(part("Hel", "failed")), "Hel", "", "failed (the server's word)"),
    "odd log-probabilities": (
        events(
            part("Hel", logprobs=[]),
            part(
                "lo",
                logprobs={
                    "content": [
                        None,
                        {"token": None, "logprob": "x"},
                        {"logprob": 1e999},
                        {"logprob": 10**400},
                    ]
                },
            ),
            END,
        ),
        "Hello",
        "",
        "stop",
    ),
    "calls in parts": (
        events(
            delta(role="assistant", content=None, tool_calls=[call(0, "weather", "", id="1")]),
            delta(tool_calls=[call(0, None, '{"city": ')]),
            delta(tool_calls=[call(0, None, '"Bern"}')]),
            delta(tool_calls=[call(1, "time", None, id="2")]),
            part(None, "tool_calls"),
        ),
        '[calls weather({"city": "Bern"})]\n[calls time()]',
        "",
        "tool_calls",
    ),
    "a call behind a text": (
        events(part("I look."), delta(tool_calls=[call(0, "f", "{}")]), part(None, "tool_calls")),
        "I look.\n[calls f({})]",
        "",
        "tool_calls",
    ),
    "calls at once, no index": (
        events(
            {
                "choices": [
                    {
                        "message": {
                            "content": None,
                            "tool_calls": [call(None, "f", "{}"), call(None, "g", {"é": 1})],
                        },
                        "finish_reason": "stop",
                    }
                ]
            }
        ),
        '[calls f({})]\n[calls g({"é": 1})]',
        "",
        "tool_calls",
    ),
    "an old call": (
        events(
            delta(function_call={"name": "f", "arguments": "{"}), delta(function_call={"arguments": "}"}), END
        ),
        "[calls f({})]",
        "",
        "tool_calls",
    ),
    "a thought in the text": (
        events(part("<think>\nhm"), part("</think>\n\nHel"), part("lo"), END),
        "Hello",
        "hm",
        "stop",
    ),
    "a thought that never ends": (events(part("<think>hm"), part(" hm", "length")), "", "hm hm", "length"),
    "a thought in the middle is text": (
        events(part("Write <think>"), part("x</think>"), END),
        "Write <think>x</think>",
        "",
        "stop",
    ),
    "an answer that begins like a tag": (events(part(" <th"), part("ree>"), END), " <three>", "", "stop"),
    "a role alone": (events(delta(role="assistant"), part("Hello"), END), "Hello", "", "stop"),
    "the usage behind the end": (
        events(part("Hello"), END, {"choices": [], "usage": {"completion_tokens": 1}}),
        "Hello",
        "",
        "stop",
    ),
    "bytes that are no UTF-8": (
        events(part("Hel@lo"), END).replace(b"@", b"\xff"),
        "Hel\ufffdlo",
        "",
        "stop",
    ),
    "comments that keep it alive": (
        b": OPENROUTER PROCESSING\n\n:\n\n" + events(part("Hello")) + b": ping\n\n" + events(END),
        "Hello",
        "",
        "stop",
    ),
}


def body(raw: bytes) -> Callable[[Any, Any], None]:
    """A reply of these bytes."""
    return refused(200, raw, "text/event-stream")


@pytest.mark.parametrize("name", ANSWERS)
def test_what_servers_send(name: str) -> None:
    raw, text, reasoning, reason = ANSWERS[name]
    with server(MODELS, {CHAT: body(raw)}) as (url, _):
        answer = answered(OpenAIEngine(url))
    assert (answer.text, answer.reasoning, answer.reason) == (text, reasoning, reason)


FAULTS: dict[str, tuple[bytes, str]] = {
    "an object error": (
        events(part("Hel"), {"object": "error", "message": "context length exceeded", "code": 400}),
        "the server failed: context length exceeded",
    ),
    "an event error": (
        events(part("Hel")) + b'event: error\ndata: {"message":"upstream timeout"}\n\n',
        "the server failed: upstream timeout",
    ),
    "an event error with a text": (b'event: error\ndata: "dead"\n\n', "the server failed: dead"),
    "an event error without anything": (b"event: error\ndata: {}\n\n", "the server failed: no reason given"),
    "an error field": (
        events(part("Hel")) + b'error: {"code":500,"message":"slot unavailable"}\n\n',
        "the server failed: slot unavailable",
    ),
    "an error in a choice": (
        events({"choices": [{"error": {"code": 502, "message": "provider down"}, "finish_reason": "error"}]}),
        "the server failed: provider down",
    ),
    "the reason error": (events(part("Hel"), part("", "error")), "ended with an error that it does not"),
    "an error line behind events": (
        events(part("Hel")) + b'{"error": {"message": "gateway timeout"}}\n',
        "the server failed: gateway timeout",
    ),
    "nothing of an answer": (b'{"code": 401, "msg": "no such user"}', "sent no answer, but .*no such user"),
    "a page": (b"<html>\n<body>hello</body>\n</html>", "not JSON: b'<html>"),
    "half a body": (json.dumps(WHOLE, indent=2).encode()[:-20], "not JSON"),
    "too deep": (b"data: " + b"[" * 100_000 + b"]" * 100_000 + b"\n\n", "not JSON"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_errors_that_servers_send(name: str) -> None:
    raw, said = FAULTS[name]
    with (
        server(MODELS, {CHAT: body(raw)}) as (url, _),
        pytest.raises(SystemFault, match=said) as caught,
    ):
        answered(OpenAIEngine(url))
    assert caught.value.fix and url in str(caught.value)


def test_a_named_model_needs_no_list() -> None:
    """Gateways that do not list their models, or list them in other ways, are used by name."""
    for get in (
        {},
        {"/v1/models": "hello"},
        {"/v1/models": {"data": []}},
        {"/v1/models": {"data": [None, 3]}},
    ):
        with server(get, {CHAT: body(events(part("Hello"), END))}) as (url, bodies):
            engine = OpenAIEngine(f"{url}#org/m")
            assert answered(engine).text == "Hello" and engine.about.name == "m"
            assert bodies[0]["model"] == "org/m"
    with (
        server({}, {}) as (url, _),
        pytest.raises(UsageError, match=r"does not list .*404.*fix: append #NAME"),
    ):
        OpenAIEngine(url)
    for listed in ({"models": [{"name": "m"}]}, [{"id": "m"}], {"data": ["m"]}):
        with server({"/v1/models": listed}, {}) as (url, _):
            assert OpenAIEngine(url).about.name == "m"


@pytest.mark.parametrize(
    ("status", "headers", "fix"),
    [
        (429, {"Retry-After": "7"}, "wait, and ask again (in 7 s, it says)"),
        (429, {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, "wait, and ask again"),
        (413, {}, "say less: /clear begins a new conversation"),
        (402, {}, "pay, or choose another server"),
        (200, {"Content-Encoding": "gzip"}, "turn compression off in the server, or in the proxy before it"),
        (404, {}, "check the model's name and the settings"),
    ],
)
def test_what_helps_against_a_refusal(status: int, headers: dict[str, str], fix: str) -> None:
    """A model's name that is right is not to be checked again."""

    def reply(handler: Any, _: Any) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", "25")
        handler.end_headers()
        handler.wfile.write(b'{"error":"not this time"}')

    with server(MODELS, {CHAT: reply}) as (url, bodies), pytest.raises(LorafoldError) as caught:
        answered(OpenAIEngine(url))
    assert caught.value.fix == fix
    assert len(bodies) == 1 or status in (404, 200)  # the extras are not to blame


def test_a_redirect_is_named() -> None:
    def elsewhere(handler: Any, _: Any) -> None:
        handler.send_response(308)
        handler.send_header("Location", "https://example.org/v1")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with (
        server(MODELS, {CHAT: elsewhere}) as (url, _),
        pytest.raises(
            LorafoldError, match=r"308 and points to https://example\.org/v1; fix: pass the address"
        ),
    ):
        answered(OpenAIEngine(url))


def test_addresses_and_keys_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("http://[", "http://host/a b", "http://host/ü", "http://ü\ud800"):
        with pytest.raises(UsageError, match="not the address of a server"):
            OpenAIEngine(wrong)
    for key in ("sk-\nsecret", "sk-sécret"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(UsageError, match="OPENAI_API_KEY: the key has characters") as caught:
            OpenAIEngine("http://127.0.0.1:1")
        assert "cret" not in str(caught.value)


def test_reasoning_is_no_part_of_the_history() -> None:
    replies = [events(part(None, reasoning_content="two"), part("4"), END), events(part("5"), END)]
    with server(MODELS, {CHAT: lambda handler, _: body(replies.pop(0))(handler, _)}) as (url, bodies):
        engine = OpenAIEngine(url)
        talk = Conversation(["m"], GREEDY)
        for question in ("2 + 2?", "and 1?"):
            talk.turns.append(Turn(question, {0: Answer()}, columns=[0]))
            for event in engine.stream(talk.messages(0), GREEDY, Cancel()):
                talk.turns[-1].answers[0].take(event)
    assert [answer.reasoning for turn in talk.turns for answer in turn.answers.values()] == ["two", ""]
    assert bodies[1]["messages"] == [
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4"},
        {"role": "user", "content": "and 1?"},
    ]
    assert talk.turns[0].answers[0].scored is None


REASONED = events(part(None, reasoning="two and two"), part("It is 4."), part("", "content_filter"))


def test_a_server_at_a_terminal(tmp_path: Path) -> None:
    """Reasoning is shown and told apart; `/show prompt` shows what was sent; endings are named."""
    with server(MODELS, {CHAT: body(REASONED)}) as (url, bodies), terminal(tmp_path, url) as talk:
        shown = talk.type("2 + 2?", "ended by the server: content_filter")
        assert "(reasoning) two and two It is 4." in re.sub(r"\s+", " ", plain(shown))
        talk.type("sure?", "content_filter")
        shown = re.sub(r"\s+", " ", talk.type("/show prompt", "the server builds the prompt)"))
    assert "[user] 2 + 2? [assistant] It is 4. [user] sure? (these messages were sent;" in shown
    assert [m["content"] for m in bodies[1]["messages"]] == ["2 + 2?", "It is 4.", "sure?"]


@pytest.mark.parametrize(
    ("raw", "out", "notes"),
    [
        (REASONED, "It is 4.\n", ["ended by the server: content_filter"]),
        (
            events(part(None, reasoning="hmm"), part(None, "length")),
            "",
            ["the answer is empty after 3 characters of reasoning (cut at max_tokens)"],
        ),
    ],
)
def test_a_pipe_gets_the_answer_alone(raw: bytes, out: str, notes: list[str]) -> None:
    with server(MODELS, {CHAT: body(raw)}) as (url, _):
        command = [sys.executable, "-m", "lorafold", "chat", url, "--prompt", "hi"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
        told = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120)
    assert ended.stdout == out and all(note in ended.stderr for note in notes)
    assert json.loads(told.stdout)["answers"][0]["reasoning"] in ("two and two", "hmm")
