"""Calls that servers send: whole, in parts, within the text; and what they are sent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from model_servers import answered, server, streamed
from tool_chats import ARGUMENTS, WEATHER, call, tool_chat

from lorafold.chat.dialogue import Dialogue
from lorafold.serve.config import Sampling
from lorafold.serve.engines.servers import ollama, openai
from lorafold.serve.engines.servers.answer import ServerAnswer
from lorafold.serve.engines.servers.events import ServerEvent
from lorafold.serve.protocol import Cancel, Finished

TEXT = json.dumps(ARGUMENTS, ensure_ascii=False)
HERMES = f'<tool_call>\n{{"name": "get_weather", "arguments": {TEXT}}}\n</tool_call>'


def delta(*calls: dict[str, Any], content: str | None = None, end: str | None = None) -> ServerEvent:
    message = {"content": content, **({"tool_calls": list(calls)} if calls else {})}
    return ServerEvent("", {"choices": [{"index": 0, "delta": message, "finish_reason": end}]})


def part(
    index: int | None, arguments: str, name: str | None = None, identifier: str | None = None
) -> dict[str, Any]:
    head = {"id": identifier, "type": "function"} if identifier else {}
    return {"index": index, **head, "function": {"name": name, "arguments": arguments}}


def finished(module: Any, *events: ServerEvent, tools: bool = True) -> Finished:
    answer = ServerAnswer("http://s", Sampling(), Cancel(), tools=tools)
    *_, last = module.read_answer(iter(events), answer)
    assert isinstance(last, Finished)
    return last


STREAMS = {
    "whole": (openai, [delta(part(0, TEXT, "get_weather", "a")), delta(end="tool_calls")]),
    "in parts": (
        openai,
        [
            delta(part(0, "", "get_weather", "a")),
            *(delta(part(0, TEXT[at : at + 5])) for at in range(0, len(TEXT), 5)),
            delta(end="tool_calls"),
        ],
    ),
    "without index": (openai, [delta(part(None, TEXT, "get_weather", "a")), delta(end="tool_calls")]),
    "not streamed": (
        openai,
        [
            ServerEvent("", {"choices": [
                {"index": 0, "message": {"content": None, "tool_calls": [call("a", text=True)]},
                 "finish_reason": "tool_calls"}
            ]}),
        ],
    ),
    "arguments as an object": (
        openai,
        [delta({"index": 0, "function": {"name": "get_weather", "arguments": ARGUMENTS}}), delta(end="stop")],
    ),
    "Ollama": (
        ollama,
        [
            ServerEvent("", {"message": {"content": "", "tool_calls": [
                {"function": {"name": "get_weather", "arguments": ARGUMENTS}}
            ]}}),
            ServerEvent("", {"message": {"content": ""}, "done": True, "done_reason": "stop"}),
        ],
    ),
    "left in the text": (openai, [delta(content=HERMES[:20]), delta(content=HERMES[20:]), delta(end="stop")]),
}  # fmt: skip


@pytest.mark.parametrize("name", STREAMS)
def test_calls_are_kept_however_they_come(name: str) -> None:
    module, events = STREAMS[name]
    (found,) = finished(module, *events).calls
    arguments = found["function"]["arguments"]
    assert found["function"]["name"] == "get_weather"
    assert (json.loads(arguments) if isinstance(arguments, str) else arguments) == ARGUMENTS


def test_several_calls_are_told_apart_by_their_index() -> None:
    events = [
        delta(part(0, "{", "f", "a"), part(1, "{", "g", "b")),
        delta(part(1, "}"), part(0, "}")),
        delta(end="tool_calls"),
    ]
    calls = finished(openai, *events).calls
    assert [(row["id"], row["function"]) for row in calls] == [
        ("a", {"name": "f", "arguments": "{}"}),
        ("b", {"name": "g", "arguments": "{}"}),
    ]


def test_a_text_that_looks_like_a_call_is_none_if_there_are_no_tools() -> None:
    assert not finished(openai, delta(content=HERMES), delta(end="stop"), tools=False).calls


@pytest.mark.parametrize(
    "junk", [None, 3, "x", {"function": 3}, [None], [{"function": {"name": 5}}], [{"index": -1}]]
)
def test_junk_in_the_place_of_calls_is_no_call(junk: Any) -> None:
    event = ServerEvent("", {"choices": [{"index": 0, "delta": {"content": "hi", "tool_calls": junk}}]})
    found = finished(openai, event, delta(end="stop"))
    assert not found.calls


def test_servers_get_the_tools_and_the_calls_in_their_own_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenAI's arguments are JSON text, Ollama's an object; Ollama calls a result's tool `tool_name`."""
    said = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}
    posts = {
        "/v1/chat/completions": streamed([said, b"[DONE]"], sse=True),
        "/api/chat": streamed([{"message": {"content": "hi"}, "done": True, "done_reason": "stop"}]),
    }
    rows = {"/v1/models": {"data": [{"id": "m"}]}, "/api/tags": {"models": [{"name": "m"}]}}
    with server(rows, posts) as (address, bodies):
        monkeypatch.setenv("OLLAMA_HOST", address)
        asked = openai.OpenAIEngine(address)
        for chat in (Dialogue(tool_chat()[:4], [WEATHER]), tool_chat()[:2]):
            assert answered(asked, messages=chat).text == "hi"
        named = Dialogue(tool_chat(text=True)[:4], [WEATHER])
        assert answered(ollama.OllamaEngine("ollama:m"), messages=named).text == "hi"
    first, plain, third = bodies
    assert first["tools"] == third["tools"] == [WEATHER] and "tools" not in plain
    assert first["messages"][2]["tool_calls"][0]["function"]["arguments"] == TEXT
    assert first["messages"][3]["tool_call_id"] == "call00000"
    assert third["messages"][2]["tool_calls"][0]["function"]["arguments"] == ARGUMENTS
    assert third["messages"][3]["tool_name"] == "get_weather"
