"""Tools in chat and compare: definitions are passed, calls are kept and shown, results are given."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_chat
from chat_terminal import terminal
from model_servers import server, streamed
from reciting import reciting
from tool_chats import ARGUMENTS, WEATHER, call, tool_chat

from lorafold.chat.dialogue import tools_of
from lorafold.errors import InputError, UsageError
from lorafold.records.tools import tools_in
from lorafold.serve.comparison.compare import compare
from lorafold.serve.comparison.report import as_html, as_markdown
from lorafold.serve.config import ChatConfig, CompareConfig, Sampling
from lorafold.serve.conversation import Answer, Conversation, Turn
from lorafold.serve.engines.open import opened
from lorafold.serve.protocol import Cancel
from lorafold.serve.terminal.chat import chat

TOLD = 'get_weather(city="Köln", days=2)'
MODELS = {"/v1/models": {"object": "list", "data": [{"id": "served"}]}}
COMPLETIONS = "/v1/chat/completions"


def event(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def end(reason: str) -> list[Any]:
    return [{"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}, b"[DONE]"]


CALLS = streamed([event(tool_calls=[{"index": 0, **call("a", text=True)}]), *end("tool_calls")], sse=True)
SAYS = streamed([event(content="Seven degrees."), *end("stop")], sse=True)


@pytest.fixture
def served() -> Iterator[tuple[str, list[Any]]]:
    """A server that calls a tool if nothing was answered by one yet, and speaks then."""

    def reply(handler: Any, body: Any) -> None:
        (SAYS if body["messages"][-1]["role"] == "tool" else CALLS)(handler, body)

    with server(MODELS, {COMPLETIONS: reply}) as found:
        yield found


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([WEATHER]))
    return path


def test_a_call_is_in_the_json_of_a_scripted_question(
    served: tuple[str, list[Any]], tools: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address, bodies = served
    assert chat(ChatConfig((address,), prompt=("Weather?",), json=True, tools=tools)) == 0
    said = capsys.readouterr()
    (answer,) = json.loads(said.out)["answers"]
    assert answer["tool_calls"] == [call("a", text=True)] and answer["reason"] == "tool_calls"
    assert bodies[0]["tools"] == [WEATHER] and "empty" not in said.err
    assert chat(ChatConfig((address,), prompt=("Weather?",), tools=tools)) == 0
    assert f"→ {TOLD}" in capsys.readouterr().out


def test_the_user_gives_the_result_at_the_terminal(
    served: tuple[str, list[Any]], tools: Path, tmp_path: Path
) -> None:
    address, bodies = served
    with terminal(tmp_path, address, "--tools", str(tools)) as talk:
        talk.type("/tool 7", "waits for a result")
        talk.type("Weather?", f"→ {TOLD}")
        talk.type("/tool", f"A waits: {TOLD}")
        talk.type('/tool {"degrees": 7}', "Seven degrees.")
        talk.type("/save s.json", "saved 2 turns")
    sent = bodies[-1]["messages"]
    assert [row["role"] for row in sent] == ["user", "assistant", "tool"]
    assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"] == "a"
    assert sent[2]["content"] == '{"degrees": 7}'
    again = Conversation.load(tmp_path / "s.json", ["served"])
    assert again.tools == (WEATHER,) and again.turns[1].results == ('{"degrees": 7}',)
    assert [dict(message) for message in again.messages(0)] == sent
    assert tools_of(again.messages(0)) == (WEATHER,)


def test_a_local_model_gets_the_tools_and_its_calls_are_read(tools: Path, tmp_path: Path) -> None:
    """The prompt has the definitions; a call is read from the text that llama.cpp streams."""
    config = ChatConfig((str(tiny_chat.gguf()),), chat_template=str(template()), tools=tools)
    asked = Conversation(["m"], Sampling(), tools=tools_in(tools))
    asked.turns.append(Turn("Weather?", {}, [0]))
    with opened(config) as (engine,):
        prompt = engine.prompt(asked.messages(0))
        assert prompt is not None and '"name": "get_weather"' in prompt and "How many days." in prompt
    call = f'{{"name": "get_weather", "arguments": {json.dumps(ARGUMENTS)}}}'
    model = reciting(tmp_path / "m", prompt, f"I look.\n<tool_call>\n{call}\n</tool_call>")
    with opened(dataclasses.replace(config, models=(str(model),))) as (engine,):
        answer = Answer()
        for event in engine.stream(asked.messages(0), Sampling(max_tokens=400, temperature=0), Cancel()):
            answer.take(event)
    assert answer.reason == "stop" and answer.text.startswith("I look.")
    assert [row["function"] for row in answer.calls] == [{"name": "get_weather", "arguments": ARGUMENTS}]


def template() -> Path:
    from oracles import shared

    return shared("templates") / "Qwen-Qwen2.5-7B-Instruct.jinja"


def test_calls_without_a_result_stand_in_the_history_as_text() -> None:
    text = f'<tool_call>{{"name": "get_weather", "arguments": {json.dumps(ARGUMENTS)}}}</tool_call>'
    talk = Conversation(["m"], Sampling(), tools=(WEATHER,))
    talk.turns = [Turn("q", {0: Answer(text, reason="stop", calls=[call()])}, [0]), Turn("and?", {}, [0])]
    assert talk.messages(0)[1] == {"role": "assistant", "content": text}
    talk.turns[1] = Turn("7", {}, [0], results=("7",))
    turn, result = talk.messages(0)[1:]
    assert turn == {"role": "assistant", "content": "", "tool_calls": [call()]}
    assert result == {"role": "tool", "content": "7", "name": "get_weather", "tool_call_id": "call00000"}


def test_compare_asks_with_tools_and_keeps_the_calls(
    served: tuple[str, list[Any]], tools: Path, tmp_path: Path
) -> None:
    """The questions are conversations with calls and results, and one that only asks."""
    address, bodies = served
    data, out = tmp_path / "q.jsonl", tmp_path / "r.jsonl"
    rows = [{"messages": tool_chat(text=True)[:5]}, {"messages": tool_chat()[:3], "tools": [WEATHER]}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = compare(CompareConfig((address,), prompts=data, out=(out,), tools=tools))
    assert all(body["tools"] == [WEATHER] for body in bodies)
    assert bodies[0]["messages"][-1]["role"] == "tool" and bodies[0]["messages"][2]["tool_calls"]
    first, second = result.rows
    assert first.answers[0].text == first.expected == "Seven degrees."
    assert second.expected == f"→ {TOLD}" == second.answers[0].cell
    _, *written = map(json.loads, out.read_text().splitlines())
    assert written[1]["answers"][0]["calls"] == [call("a", text=True)] and written[1]["tools"] == [WEATHER]
    assert "get\\_weather" in as_markdown(result) and "get_weather" in as_html(result)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[", "tools.json: not JSON"),
        ("[]", "tools.json: there is no definition of a function in it; fix: write"),
        ('[{"type": "function"}]', "there is no definition of a function"),
        (json.dumps([WEATHER, {}]), r"tools\[1\]: expected a function with a name"),
    ],
)
def test_a_wrong_file_of_tools_is_named(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(text)
    with pytest.raises(InputError, match=problem):
        tools_in(path)
    with pytest.raises(InputError, match="cannot be read"):
        tools_in(tmp_path / "none.json")
    path.write_text(json.dumps({"tools": [WEATHER["function"]]}))
    assert tools_in(path) == (WEATHER,)


def test_results_must_be_as_many_as_the_calls() -> None:
    from lorafold.serve.engines.digests import Digests
    from lorafold.serve.terminal.commands import results_of
    from lorafold.serve.terminal.talk import Talk
    from lorafold.serve.terminal.views import PlainView

    talk = Talk([object()], Conversation(["m"], Sampling()), PlainView(), Digests([]))  # type: ignore[list-item]
    with pytest.raises(UsageError, match="waits for a result"):
        results_of(talk, "x")
    talk.conversation.turns.append(Turn("q", {0: Answer(reason="stop", calls=[call("a"), call("b")])}, [0]))
    with pytest.raises(UsageError, match="2 calls wait, so the results are a JSON list of as many"):
        results_of(talk, "x")
    assert results_of(talk, '["x", {"y": 1}]') == ("x", '{"y": 1}')
