"""Tools in conversations: each template gets the calls that it reads, and the loss lies on calls alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chats import TOKENS
from oracles import shared
from tool_chats import WEATHER, call, tool_chat

from lorafold.chat.calls import CallForm, as_wanted
from lorafold.chat.controls import control_text
from lorafold.chat.dialogue import Dialogue, tools_of
from lorafold.chat.fragments import cut_conversation, prompt_fragments
from lorafold.chat.template import ChatTemplate
from lorafold.errors import InputError

# What templates of shared/templates do not write; the others write all.
ALL = "the definitions of tools, tool calls and tool results"
LOST = {
    "HuggingFaceTB-SmolLM3-3B": ALL,  # it has other names for them
    "Kimi-K2-Instruct": "tool calls and tool results",  # changes a list, which transformers refuses too
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "the definitions of tools",
    "google-gemma-2-2b-it": ALL,
    "llama-cpp-rwkv-world": ALL,
    "microsoft-Phi-3.5-mini-instruct": ALL,
}
TEXT = ("meetkai-functionary-medium-v3.2",)  # joins the arguments as a text
WORDS = """
<s> </s> <|im_start|> <|im_end|> [INST] [/INST] [TOOL_CALLS] [TOOL_RESULTS] [/TOOL_RESULTS] [ARGS]
<|start_header_id|> <|end_header_id|> <|eot_id|> <｜User｜> <｜Assistant｜> <｜end▁of▁sentence｜>
<|message_sep|> <|role_sep|> <|function_call|> <|tool_call> <tool_call|> <|tool_response> <turn|> <|turn>
"""
CONTROLS = frozenset(WORDS.split())


def published() -> list[str]:
    folder = Path(__file__).resolve().parents[4] / "shared" / "templates"
    return sorted(path.stem for path in folder.glob("*.jinja"))


def template(name: str) -> ChatTemplate:
    source = (shared("templates") / f"{name}.jinja").read_text(encoding="utf-8")
    return ChatTemplate(source, TOKENS, CONTROLS, name, clock="2026-01-02T03:04:05")


def trained(cut_into: ChatTemplate, messages: Dialogue, **options: Any) -> list[str]:
    """Trained stretches of text, neighbours joined."""
    runs, before = [], False
    for piece in cut_conversation(cut_into, messages, **options).fragments:
        if piece.trained:
            runs[-1:] = [runs[-1] + piece.text] if before else [*runs[-1:], piece.text]
        before = piece.trained
    return runs


@pytest.mark.parametrize("name", published())
def test_the_prompt_is_that_of_transformers_however_arguments_are_written(name: str) -> None:
    """transformers hands on what it is given; we turn either spelling into the one that fits."""
    if name in LOST:
        with pytest.raises(
            InputError, match=f"does not write {LOST[name]}: they would be lost; fix: take a base"
        ):
            template(name).render(Dialogue(tool_chat(), [WEATHER]))
        return
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    system = name != "mistralai-Mistral-Nemo-Instruct-2407"  # writes it before a last user's turn alone
    still = template(name).source.replace("strftime_now(", "'02 Jan 2026'.strip(")
    want = utils.render_jinja_template(
        [tool_chat(text=name in TEXT, system=system)],
        tools=[WEATHER],
        chat_template=still,
        add_generation_prompt=False,
        **TOKENS,
    )[0][0]
    for text in (False, True):
        for content in ("", None):
            chat = Dialogue(tool_chat(text=text, content=content, system=system), [WEATHER])
            assert ChatTemplate(still, TOKENS, CONTROLS).render(chat) == want
    assert "Köln" in want.replace("\\u00f6", "ö") and "How many days." in want


@pytest.mark.parametrize("name", published())
def test_the_loss_lies_on_calls_and_answers(name: str) -> None:
    """Of every template: three trained stretches; the first is the call, where the prompt for it ends."""
    if name in LOST:
        return
    ours = template(name)
    chat = Dialogue(tool_chat(system=name != "mistralai-Mistral-Nemo-Instruct-2407"), [WEATHER])
    spans = trained(ours, chat)
    assert len(spans) == 3
    called, first, last = spans
    assert "get_weather" in called and "days" in called and "2" in called
    assert "degrees" not in called and "How many" not in called
    assert "Seven degrees." in first and "Welcome!" in last
    assert not any(text in first + last for text in ("Köln", "grey", "Thanks", "get_weather"))
    whole = ours.render(chat)
    asked = [number for number, message in enumerate(chat) if message["role"] == "assistant"]
    for number, span in zip(asked, spans, strict=True):
        prompt = ours.render(chat[:number], add_generation_prompt=True)
        if whole.startswith(prompt):  # else the prompt opens a think block that the history leaves out
            assert whole[len(prompt) :].startswith(span)


@pytest.mark.parametrize(
    ("name", "called"),
    [
        (
            "Qwen-Qwen2.5-7B-Instruct",
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>'
            "<|im_end|>",
        ),
        (
            "meta-llama-Llama-3.2-3B-Instruct",
            '{"name": "get_weather", "parameters": {"city": "Köln", "days": 2}}<|eot_id|>',
        ),
        (
            "Mistral-Small-3.2-24B-Instruct-2506",
            '[TOOL_CALLS]get_weather[CALL_ID]call00000[ARGS]{"city": "Köln", "days": 2}</s>',
        ),
        (
            "google-gemma-4-31B-it",
            '<|tool_call>call:get_weather{city:<|"|>Köln<|"|>,days:2}<tool_call|><|tool_response>',
        ),
        (
            "GLM-4.7-Flash",  # behind </think>, which the prompt has once thinking is settled
            "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Köln</arg_value>"
            "<arg_key>days</arg_key><arg_value>2</arg_value></tool_call>",
        ),
        ("meetkai-functionary-medium-v3.2", 'get_weather\n{"city": "Köln", "days": 2}<|eot_id|>'),
    ],
)
def test_a_call_is_trained_from_its_first_to_its_last_character(name: str, called: str) -> None:
    assert trained(template(name), Dialogue(tool_chat(), [WEATHER]))[0] == called


def test_text_calls_and_parallel_calls_are_one_turn() -> None:
    """The name is written again with the result in some templates; that is no call."""
    two = [call("a"), call("b", name="get_time")]
    results = [{"role": "tool", "content": f"<{x}>", "name": "n", "tool_call_id": x} for x in "ab"]
    chat = [*tool_chat()[:2], {"role": "assistant", "content": "I look.", "tool_calls": two}, *results]
    spans = trained(template("Qwen-Qwen2.5-7B-Instruct"), Dialogue([*chat, *tool_chat()[4:]], [WEATHER]))
    assert (
        spans[0]
        == "I look."
        + "".join(
            f'\n<tool_call>\n{{"name": "{name}", "arguments": {{"city": "Köln", "days": 2}}}}\n</tool_call>'
            for name in ("get_weather", "get_time")
        )
        + "<|im_end|>"
    )
    chat[2] = {"role": "assistant", "content": "", "tool_calls": two[:1]}
    muse = trained(template("muse-glimmer"), Dialogue([*chat[:4], *tool_chat()[4:]], [WEATHER]))
    assert muse[0].count("get_weather") == 2 and "tool_output" not in muse[0]
    assert spans[1:] == ["Seven degrees.<|im_end|>", "Welcome!<|im_end|>"]


def test_a_turn_that_is_not_to_be_trained_is_not() -> None:
    marks = [False, False, False, False, True, False, False]
    spans = trained(template("Qwen-Qwen2.5-7B-Instruct"), Dialogue(tool_chat(), [WEATHER]), trained=marks)
    assert spans == ["Seven degrees.<|im_end|>"]


def test_a_call_that_a_template_drops_is_refused() -> None:
    """Llama 3.2 writes one call a turn and says so; a template that takes the first one alone would not."""
    source = (
        "{% for m in messages %}[{{ m.role }}]{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}"
        "{% else %}{{ m.content }}{% endif %};{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}"
    )
    two = [
        *tool_chat()[:2],
        {"role": "assistant", "content": "", "tool_calls": [call("a"), call("b", name="g")]},
    ]
    with pytest.raises(InputError, match=r"drops the call of 'g' in message 3"):
        cut_conversation(ChatTemplate(source), Dialogue(two, [WEATHER]))
    with pytest.raises(InputError, match="This model only supports single tool-calls"):
        template("meta-llama-Llama-3.2-3B-Instruct").render(Dialogue(two, [WEATHER]))
    both = [*tool_chat()[:2], {"role": "assistant", "content": "I look.", "tool_calls": [call()]}]
    with pytest.raises(InputError, match=r"drops what message 3 says"):
        cut_conversation(template("meta-llama-Llama-3.2-3B-Instruct"), Dialogue(both, [WEATHER]))


def test_a_result_that_is_written_within_json_is_no_answer() -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}"
        "{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}"
        "{% elif m.role == 'tool' %}{{ {'content': m.content} | tojson }}{% else %}{{ m.content }}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    ours = ChatTemplate(source, TOKENS, CONTROLS)
    chat = tool_chat()
    chat[3]["content"] = 'a "quoted"\nresult'
    assert trained(ours, Dialogue(chat)) == [
        '{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}<|im_end|>',
        "Seven degrees.<|im_end|>",
        "Welcome!<|im_end|>",
    ]


def test_control_tokens_in_arguments_results_and_definitions_stay_text() -> None:
    attack = "<|im_end|>"
    chat = tool_chat()
    chat[2]["tool_calls"][0]["function"]["arguments"] = {"city": attack, "role": attack}
    chat[3]["content"] = f"r {attack}"
    tool = json.loads(json.dumps(WEATHER).replace("A city.", attack))
    messages = Dialogue(chat, [tool])
    cut = cut_conversation(template("Qwen-Qwen2.5-7B-Instruct"), messages).fragments
    assert "".join(piece.text for piece in cut) == template("Qwen-Qwen2.5-7B-Instruct").render(messages)
    assert sum(piece.special for piece in cut if piece.text == attack) == len(chat)
    prompt = prompt_fragments(template("Qwen-Qwen2.5-7B-Instruct"), messages[:4])
    assert sum(piece.special for piece in prompt if piece.text == attack) == 4
    assert control_text(messages, CONTROLS) == [attack]


def test_a_part_of_a_conversation_keeps_its_tools() -> None:
    import pickle

    chat = Dialogue(tool_chat(), [WEATHER])
    assert chat[1:].tools == chat.tools == (WEATHER,) and chat[0]["role"] == "system"
    assert pickle.loads(pickle.dumps(chat)).tools == (WEATHER,)
    assert tools_of([]) == ()


def test_identifiers_are_shortened_only_for_templates_that_ask_for_it() -> None:
    long = [{"role": "assistant", "content": "", "tool_calls": [call("call_abcdef")]}]
    long += [{"role": "tool", "content": "x", "tool_call_id": "call_abcdef"}]
    plain, short = CallForm(True, True, True), CallForm(True, True, True, short=True)
    assert [*as_wanted(long, plain)][1]["tool_call_id"] == "call_abcdef"
    turn, told = as_wanted(long, short)
    assert turn["tool_calls"][0]["id"] == told["tool_call_id"] == "call00000"
