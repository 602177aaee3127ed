"""Calls in what a model wrote: every spelling is read as its own template writes it."""

from __future__ import annotations

import pytest
from chats import TOKENS
from oracles import shared
from tool_chats import ARGUMENTS, WEATHER, call, tool_chat

from lorafold.chat.call_spellings import split_calls, told, told_message
from lorafold.chat.dialogue import Dialogue
from lorafold.chat.fragments import cut_conversation
from lorafold.chat.template import ChatTemplate

READ = (
    "Qwen-Qwen2.5-7B-Instruct",
    "Qwen-Qwen3-0.6B",
    "Qwen3-Coder",
    "GLM-4.7-Flash",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
    "ibm-granite-granite-4.0",
    "meta-llama-Llama-3.2-3B-Instruct",
    "Mistral-Small-3.2-24B-Instruct-2506",
    "unsloth-mistral-Devstral-Small-2507",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "google-gemma-4-31B-it",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
    "Bielik-11B-v3.0-Instruct",
    "MiMo-VL",
    "StepFun3.5-Flash",
    "inclusionai-ling-3.0-flash",
    "poolside-Laguna-XS-2.1",
)


def written(name: str, chat: list[dict[str, object]]) -> str:
    """What a template makes of a call: what a model that was trained with it writes."""
    source = (shared("templates") / f"{name}.jinja").read_text(encoding="utf-8")
    tools = [] if "R1-Distill" in name else [WEATHER]
    pieces = cut_conversation(
        ChatTemplate(source, TOKENS, frozenset(TOKENS.values()), name), Dialogue(chat, tools)
    ).fragments
    start = next(index for index, piece in enumerate(pieces) if piece.trained)
    untrained = (index for index, piece in enumerate(pieces[start:], start) if not piece.trained)
    end = next(untrained, len(pieces))
    return "".join(piece.text for piece in pieces[start:end])


@pytest.mark.parametrize("name", READ)
def test_a_call_is_read_as_its_template_writes_it(name: str) -> None:
    system = "Nemo" not in name
    said, calls = split_calls(written(name, tool_chat(system=system)))
    assert [row["function"] for row in calls] == [{"name": "get_weather", "arguments": ARGUMENTS}]
    assert "get_weather" not in said


def test_several_calls_and_the_text_beside_them() -> None:
    chat = tool_chat()[:3]
    chat[2] = {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [call("a"), call("b", name="get_time")],
    }
    said, calls = split_calls(written("Qwen-Qwen2.5-7B-Instruct", chat))
    assert said == "I look." and [row["function"]["name"] for row in calls] == ["get_weather", "get_time"]
    assert [row["id"] for row in calls] == ["call00000", "call00001"]
    _, two = split_calls(
        '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"a": "1"}}'
    )
    assert [row["function"] for row in two] == [
        {"name": "f", "arguments": {}},
        {"name": "g", "arguments": {"a": "1"}},
    ]


def test_values_of_every_kind() -> None:
    arguments = {"text": 'a "b", {c}: d', "list": [1, "x"], "on": True, "none": None, "deep": {"k": "v"}}
    for name in ("google-gemma-4-31B-it", "Qwen-Qwen3-0.6B", "Mistral-Small-3.2-24B-Instruct-2506"):
        chat = tool_chat()
        chat[2]["tool_calls"] = [{**call(), "function": {"name": "get_weather", "arguments": arguments}}]
        assert split_calls(written(name, chat))[1][0]["function"]["arguments"] == arguments, name


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Seven degrees.",
        '<tool_call>{"name": "f", "arguments": {}',
        "<tool_call>I would call f</tool_call>",
        '<tool_call>{"name": "f", "arguments": "no object"}</tool_call>',
        '{"name": "Kim", "age": 7}',
        '{"name": "f", "arguments": {}} is what I would write',
        "[TOOL_CALLS]f[ARGS]{",
        "[1, 2]",
        "```json\n{}\n```",
    ],
)
def test_what_is_no_call_stays_text(text: str) -> None:
    assert split_calls(text) == (text, [])


def test_a_call_is_told_readably() -> None:
    assert told(call()) == 'get_weather(city="Köln", days=2)' == told(call(text=True))
    assert told_message({"content": "I look.", "tool_calls": [call()]}).startswith("I look.\n→ get_weather(")
    assert told({"function": {"name": "f", "arguments": "{"}}) == "f({)"
