"""Ollama's rules, held against what a real server chose and wrote (0.33.0-rc2, commit fb307609)."""

from __future__ import annotations

import json

import pytest
from chats import TOKENS, all_templates

from lorafold.chat.tokenizer import ChatTemplate
from lorafold.errors import InputError
from lorafold.export.modelfile.chat_format import derive
from lorafold.export.modelfile.template import to_go
from lorafold.export.ollama.rules import (
    NEWEST,
    VERSIONS,
    Refused,
    guessable,
    jinja_abilities,
    llama_thinking,
    rules_of,
    select,
    template_abilities,
    think_of,
    tool_as_read,
)

# `template selection` in the server's log said "go_template" for these shared templates with our TEMPLATE
# beside them, and "gguf_chat_template" for the other 35.
TOOK_TEMPLATE = {"google-gemma-2-2b-it.jinja", "microsoft-Phi-3.5-mini-instruct.jinja"}
# It said "gguf_chat_template" for these classic ones, and "go_template" for the other 38.
TOOK_JINJA = {
    "deepseek r1: thoughts in the history dropped",
    "last answer and last turns special",
    "thinking switch",
}


@pytest.mark.slow
def test_the_way_that_a_real_server_took() -> None:
    looked = 0
    for name, source in all_templates().items():
        try:
            written = to_go(derive(ChatTemplate(source, TOKENS, frozenset(TOKENS.values()), name)))
        except InputError:
            continue
        looked += 1
        took_jinja = name not in TOOK_TEMPLATE if name.endswith(".jinja") else name in TOOK_JINJA
        assert select(source, written) == ("jinja" if took_jinja else "template"), name
    assert looked > 75


PLAIN = "{{ range $.Messages }}{{ .Content }}{{ end }}"
THINKS = "{{ range .Messages }}{{ if false }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}{{ end }}"
TOOLS = '{{ .Tools }}{{ range .Messages }}{{ .ToolCalls }}{{ if eq .Role "tool" }}r{{ end }}{{ end }}'
ROUND = "tools tool_calls tool_response"


@pytest.mark.parametrize(
    ("source", "abilities"),
    [
        (PLAIN, set()),
        (THINKS, {"thinking"}),
        (THINKS.replace(".Messages", "$.Messages"), set()),  # the loop must be over `.Messages`
        (THINKS.replace("<think>{{", "{{"), set()),  # a text must begin the list
        (TOOLS, {"tools"}),
        ("{{ .Prompt }}{{ .Suffix }}", {"insert"}),
        ("{{ no such thing", set()),
    ],
)
def test_abilities_of_a_template(source: str, abilities: set[str]) -> None:
    assert template_abilities(source) == abilities


@pytest.mark.parametrize(
    ("source", "abilities"),
    [
        ("{{ messages }}", set()),
        ("{{ tools }}", {"tools"}),
        ("message.tool_call", {"tools"}),
        ("<think>\n</think>", {"thinking"}),
        ("<think>", set()),
        ("content.split('</think>')", {"thinking"}),
        ('content.split("</think>") reasoning_content', set()),
    ],
)
def test_abilities_of_a_jinja(source: str, abilities: set[str]) -> None:
    assert jinja_abilities(source) == abilities


@pytest.mark.parametrize(
    ("jinja", "template", "more", "way"),
    [
        ("plain", PLAIN, {}, "template"),
        ("tools", PLAIN, {}, "jinja"),
        ("tools", PLAIN, {"parser": "passthrough"}, "template"),
        ("tools", None, {"parser": "passthrough"}, "bare"),
        ("tools", None, {}, "jinja"),
        (None, None, {}, "bare"),
        ("tools", PLAIN, {"version": rules_of("0.29.1")}, "template"),
        ("tools", None, {"version": rules_of("0.29.1")}, "bare"),
        ("<think></think>", THINKS, {}, "template"),
        ("<think></think> tools", THINKS, {}, "jinja"),
        ("tools", THINKS, {}, "template"),  # as many abilities, and not the same
        (ROUND, TOOLS, {}, "template"),
        (ROUND, "{{ .Tools }}" + PLAIN, {}, "jinja"),  # both have tools, only one takes results
        ("<think></think> tools", TOOLS, {}, "template"),  # more, but the TEMPLATE has the way round
        (f"<think></think> {ROUND}", TOOLS, {}, "jinja"),
        ("plain", PLAIN, {"architecture": "gemma4"}, "renderer"),
        ("plain", PLAIN, {"renderer": "qwen3-coder"}, "renderer"),
        ("tools", "<|start|><|end|>" + PLAIN, {"architecture": "gptoss"}, "template"),
    ],
)
def test_selection(jinja: str | None, template: str | None, more: dict[str, object], way: str) -> None:
    assert select(jinja, template, **more) == way  # type: ignore[arg-type]


def test_versions() -> None:
    assert rules_of("0.33.0-rc2").jinja and rules_of("0.33.0-rc2").adapter
    assert not rules_of("0.11.8").parser and rules_of("0.12.0").parser and not rules_of("0.12.0").jinja
    assert not rules_of("0.34.1").adapter and rules_of("nightly") is NEWEST
    assert [row.since for row in VERSIONS] == sorted(row.since for row in VERSIONS)


def test_what_becomes_of_think() -> None:
    assert [think_of(True, asked) for asked in (None, True, False)] == [True, True, False]
    assert think_of(False, None) is None and think_of(False, False) is False
    assert isinstance(think_of(False, True), Refused)
    assert llama_thinking(None) == (True, False) and llama_thinking(False) == (False,)


def test_what_ollama_makes_of_a_tool() -> None:
    """The real server's `_debug_render_only` showed this one for a Jinja that writes `tool | tojson`."""
    schema = {"a": {"type": "integer", "description": "x", "default": 3, "minimum": 1, "enum": [1, 2]}}
    parameters = {
        "type": "object",
        "properties": schema,
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {"q": {"type": "string"}},
    }
    function = {"name": "f", "description": "d", "strict": True, "parameters": parameters}
    assert json.dumps(tool_as_read({"type": "function", "function": function})) == (
        '{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object", '
        '"$defs": {"q": {"type": "string"}}, "required": ["a"], "properties": {"a": {"type": "integer", '
        '"description": "x", "enum": [1, 2]}}}}}'
    )


def test_only_a_short_jinja_is_taken_for_another() -> None:
    assert guessable("x" * 4713) and not guessable("x" * 4714)
