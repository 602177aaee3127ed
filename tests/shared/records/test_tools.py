"""Tools, calls and results in data: every spelling becomes one, and what is wrong is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tool_chats import WEATHER, call, tool_chat

from lorafold.chat.dialogue import tools_of
from lorafold.errors import InputError
from lorafold.records.layouts import Example, build_example, recognise, unread

CHAT = tool_chat(text=True)
FLAT = WEATHER["function"]
CALL = json.dumps({"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}, ensure_ascii=False)
RESULT = CHAT[3]["content"]


def build(record: dict[str, Any]) -> Example:
    return build_example(record, "d:1", recognise(record, "d:1"))


def without(message: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in names}


def talk(*turns: tuple[str, Any]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": value} for role, value in turns]}


SHAREGPT = [
    ("system", "Be kind."),
    ("human", "Weather in Köln?"),
    ("function_call", CALL),
    ("observation", RESULT),
    ("gpt", "Seven degrees."),
    ("human", "Thanks"),
    ("gpt", "Welcome!"),
]
SPELLINGS = {
    "OpenAI": {"messages": CHAT, "tools": [WEATHER]},
    "arguments as objects": {"messages": tool_chat(), "tools": [WEATHER]},
    "null content": {"messages": tool_chat(text=True, content=None), "tools": [WEATHER]},
    "no content": {
        "messages": [without(message, *["content"] * ("tool_calls" in message)) for message in CHAT],
        "tools": [WEATHER],
    },
    "content parts": {
        "messages": [
            {**m, "content": [{"type": "text", "text": m["content"]}] if m["content"] else ""} for m in CHAT
        ],
        "tools": [WEATHER],
    },
    "no identifiers": {
        "messages": [
            {**without(m, "tool_call_id", "name"), "tool_calls": [without(call(text=True), "id")]}
            if "tool_calls" in m
            else without(m, "tool_call_id", "name")
            for m in CHAT
        ],
        "tools": [WEATHER],
    },
    "functions": {
        "messages": [
            {**without(m, "tool_calls"), "function_call": call(text=True)["function"]}
            if "tool_calls" in m
            else {**without(m, "tool_call_id"), "role": "function"}
            if m["role"] == "tool"
            else m
            for m in CHAT
        ],
        "functions": [FLAT],
    },
    "sharegpt": {**talk(*SHAREGPT), "tools": json.dumps([FLAT])},
    "sharegpt, other words": {
        **talk(*SHAREGPT[:2], ("tool_call", CALL), ("tool_response", RESULT), *SHAREGPT[4:]),
        "tools": [FLAT],
    },
    "a table's columns": {
        "messages": json.dumps([{**m, "tool_calls": m.get("tool_calls")} for m in CHAT]),
        "tools": json.dumps([WEATHER]),
    },
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_the_same_conversation(name: str) -> None:
    example = build(SPELLINGS[name])
    assert tools_of(example.messages) == (WEATHER,)
    assert example.marks == (False, False, True, False, True, False, True)
    wanted = [json.loads(json.dumps(message)) for message in CHAT]
    found = [json.loads(json.dumps(message)) for message in example.messages]
    for message in (*wanted, *found):
        for row in message.get("tool_calls", ()):
            arguments = row["function"]["arguments"]
            row["function"]["arguments"] = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert found == wanted
    assert not list(unread(SPELLINGS[name], recognise(SPELLINGS[name], "d:1")))


def test_calls_in_turns_of_their_own_join_the_answer_before_them() -> None:
    second = CALL.replace("get_weather", "get_time")
    example = build(
        talk(
            ("human", "q"), ("gpt", "I look."), ("function_call", CALL), ("function_call", second),
            ("observation", "1"), ("observation", "2"), ("gpt", "done"),
        )
    )  # fmt: skip
    said = example.messages[1]
    assert said["content"] == "I look."
    assert [row["function"]["name"] for row in said["tool_calls"]] == ["get_weather", "get_time"]
    assert [m["name"] for m in example.messages[2:4]] == ["get_weather", "get_time"]
    several = talk(("human", "q"), ("function_call", f"[{CALL}, {second}]"))
    assert len(build(several).messages[1]["tool_calls"]) == 2, "a conversation may end with calls"


def test_results_find_their_calls() -> None:
    two = [call("a"), call("b", name="get_time")]
    results = [{"role": "tool", "content": x, "tool_call_id": x} for x in "ba"]
    turns = [CHAT[1], {"role": "assistant", "content": "", "tool_calls": two}, *results, CHAT[4]]
    assert [m["name"] for m in build({"messages": turns}).messages[2:4]] == ["get_time", "get_weather"]


USER, ANSWER = CHAT[1], CHAT[4]


@pytest.mark.parametrize(
    ("turns", "problem"),
    [
        ([{"tool_calls": [{"id": "1"}]}], r"messages\[1\].tool_calls: expected a call with a name; fix"),
        ([{"tool_calls": "{"}], r"messages\[1\].tool_calls: not JSON"),
        ([{"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}], r"arguments: not JSON"),
        ([{"tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}], r"JSON, but not an object"),
        ([{"tool_calls": [{"function": {"name": "f", "arguments": 3}}]}], r"expected an object or its"),
        ([{"tool_calls": [call()]}, ANSWER], r"messages\[2\]: wrong order: expected tool, got assistant"),
        ([{"tool_calls": [call(), call("x")]}, CHAT[3], ANSWER], r"\[3\]: no result of the call of 'get"),
        ([{"tool_calls": [call("x")]}, CHAT[3]], r"tool_call_id: no call 'call00000' waits .*'x'"),
        ([{"tool_calls": [call()]}, CHAT[3], USER], r"messages\[3\]: wrong order: expected tool, got user"),
        ([{}, CHAT[3]], r"messages\[2\]: wrong order: expected user, got tool"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_calls_is_named(turns: list[dict[str, Any]], problem: str) -> None:
    first = {"role": "assistant", "content": "", **turns[0]}
    with pytest.raises(InputError, match=problem):
        build({"messages": [USER, first, *turns[1:]]})


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"messages": [USER, ANSWER], "tools": "[{"}, r"d:1: tools: not JSON"),
        ({"messages": [USER, ANSWER], "tools": [WEATHER, {}]}, r"\[1\]: expected a function with a name"),
        ({"messages": [{**USER, "tool_calls": [call()]}, ANSWER]}, r"\[0\]: tool_calls in a turn of 'user'"),
        (talk(("human", "q"), ("function_call", "look it up")), r"conversations\[1\].value: not JSON"),
        (talk(("human", "q"), ("function_call", "[]")), r"conversations\[1\].value: there is no call in it"),
        (talk(("human", "q"), ("observation", "r"), ("gpt", "a")), "expected assistant, got tool"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_tools_is_named(record: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        build(record)


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "q", "output": "a", "tools": [WEATHER]},
        {"messages": [USER, ANSWER], "tools": ["hammer", "saw"]},
        {"messages": [USER, ANSWER], "tools": "a hammer"},
        {"messages": [USER, ANSWER], "tools": [{}]},
    ],
)
def test_tools_that_are_not_read_are_named(record: dict[str, Any]) -> None:
    assert list(unread(record, recognise(record, "d:1"))) == ["tools"]
    assert not tools_of(build(record).messages)
