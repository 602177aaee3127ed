"""Tools in the proof of a prompt: what the GGUF's Jinja writes of them, and what llama.cpp itself does."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from chats import TOKENS, all_templates
from llama_server import llama_prompts
from oracles import shared

from lorafold.chat.calls import TOOL_PARTS
from lorafold.chat.sandbox import Refusal
from lorafold.chat.template import ChatTemplate
from lorafold.export.modelfile.native import write_native
from lorafold.export.modelfile.plan import plan_modelfile
from lorafold.export.modelfile.tools import prove_tools, random_tool_chats
from lorafold.gguf_file.tokens import read_gguf_tokens

CONTROLS = frozenset(TOKENS.values())


def published(name: str) -> ChatTemplate:
    path = shared("templates") / f"{name}.jinja"
    return ChatTemplate(path.read_text(encoding="utf-8"), TOKENS, CONTROLS, name)


@pytest.mark.parametrize(
    "name", ["Qwen-Qwen3-0.6B", "Reka-Edge", "GLM-4.7-Flash", "meetkai-functionary-medium-v3.2"]
)
def test_a_template_with_tools_is_proven_on_them(name: str) -> None:
    template = published(name)
    found = prove_tools(template, write_native(template, 8))
    assert (found.lost, found.difference, found.refused) == ((), None, 0) and found.conversations == 48
    assert found.says.startswith(
        "48 conversations with definitions, calls and results are written by the GGUF's"
    )


def test_what_a_template_refuses_or_loses_is_said() -> None:
    llama = published("meta-llama-Llama-3.2-3B-Instruct")
    assert "(7 more are refused by the template)" in prove_tools(llama, None).says
    distilled = prove_tools(published("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"), None)
    assert distilled.says == "the chat template does not write the definitions of tools"
    assert prove_tools(published("google-gemma-2-2b-it"), None).lost == TOOL_PARTS


def test_a_jinja_that_treats_tools_otherwise_is_caught() -> None:
    """The proof has to see a changed definition, a changed call and a changed result."""
    template = published("Qwen-Qwen2.5-7B-Instruct")
    native = write_native(template, 8)
    for old, new in (
        ("{{- tool | tojson }}", "{{- tool.function | tojson }}"),
        ("tool_call.arguments | tojson", "tool_call.arguments | tojson | trim('}')"),
        ("<tool_response>", "<response>"),
    ):
        assert old in native.source
        damaged = write_native(ChatTemplate(native.source.replace(old, new), TOKENS, CONTROLS), 8)
        found = prove_tools(template, damaged)
        assert found.difference is not None and "instead of" in found.says, old


def test_objects_that_are_printed_as_python_does_are_named() -> None:
    found = prove_tools(published("openbmb-MiniCPM5-1B"), None)
    assert "it prints objects and lists among the arguments as Python does" in found.says


def test_the_plan_says_it_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))

    def told(name: str) -> tuple[dict[str, str], str]:
        plan = plan_modelfile(tmp_path, chat_template=published(name), conversations=24, writable=True)
        return dict(plan.paths()), " ".join(plan.notes)

    assert "Ollama orders the keys of a definition anew and leaves out" in told("Qwen-Qwen3-0.6B")[0]["tools"]
    functionary = told("meetkai-functionary-medium-v3.2")[0]["tools"]
    assert functionary.endswith("and hands on the arguments of calls without blanks")
    for name, words in (
        (
            "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B",
            "tools: the chat template does not write the def",
        ),
        ("openbmb-MiniCPM5-1B", "tools: the GGUF's Jinja writes another prompt: it prints objects"),
    ):
        paths, notes = told(name)
        assert "tools" not in paths and words in notes
    paths, notes = told("google-gemma-2-2b-it")
    assert "tools" not in paths and "tools" not in notes


def llama_tool_differences(name: str, model: Path) -> list[Any]:
    """Where llama.cpp itself writes other prompts with tools than training does."""
    tokens = read_gguf_tokens(model).tokens
    clock = datetime.datetime.now().replace(hour=12, minute=0).isoformat()
    template = ChatTemplate(all_templates()[f"{name}.jinja"], tokens, frozenset(tokens.values()), name, clock)
    found = write_native(template, 8)
    if prove_tools(template, found, 24).difference or prove_tools(template, found, 2).lost:
        return []
    chats = list(random_tool_chats(24, seed=7))
    wanted = template.render_all(chats, add_generation_prompt=True)
    bodies = [{"messages": list(chat), "tools": list(chat.tools)} for chat in chats]
    pairs = zip(wanted, llama_prompts(found.source, bodies, model), strict=True)
    return [
        (name, text[-300:], prompt[-300:])
        for text, prompt in pairs
        if not isinstance(text, Refusal) and text != prompt
    ]


@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B"])
def test_llama_cpp_itself_writes_tools_as_in_training(name: str) -> None:
    from tiny_chat import gguf

    assert not llama_tool_differences(name, gguf())


@pytest.mark.slow
def test_llama_cpp_writes_the_tools_of_every_published_template() -> None:
    from tiny_chat import gguf

    names = sorted(path.stem for path in shared("templates").glob("*.jinja"))
    assert not [row for name in names for row in llama_tool_differences(name, gguf())]
