"""The Jinja that a GGUF carries: what llama.cpp and Ollama would set otherwise is pinned, all else stays."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from chats import TOKENS, all_templates
from llama_server import llama_prompts
from oracles import shared

from lorafold.chat.sandbox import Refusal
from lorafold.chat.tokenizer import ChatTemplate
from lorafold.export.modelfile.native import (
    EDGE_BLANKS,
    Thinking,
    find_thinking,
    guarded,
    pinned,
    prove_native,
    write_native,
    writes_tools,
)
from lorafold.export.modelfile.probe import find_reference
from lorafold.export.modelfile.proof import random_chats
from lorafold.export.ollama.rules import guessable, jinja_abilities
from lorafold.gguf_file.tokens import read_gguf_tokens

CONTROLS = frozenset(TOKENS.values())


def published(name: str) -> ChatTemplate:
    path = shared("templates") / f"{name}.jinja"
    return ChatTemplate(path.read_text(encoding="utf-8"), TOKENS, CONTROLS, name)


# What the unchanged Jinja wrote otherwise on a real Ollama 0.33, and on which ground; now nothing differs.
CURED = {
    "Reka-Edge": "think unset",  # Ollama turned thinking on
    "deepseek-ai-DeepSeek-V3.2": "think unset",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "think unset",  # llama.cpp's own default is on
    "StepFun3.5-Flash": "it trims every content",
    "Kimi-K3": "think false",  # a switch of another name
}


@pytest.mark.parametrize("name", CURED)
def test_what_differed_is_pinned(name: str) -> None:
    template = published(name)
    reference = find_reference(template, {})
    thinking = find_thinking(reference)
    before = prove_native(template, template.source, reference, thinking, 24)
    assert before.difference is not None and CURED[name] in before.difference
    after = write_native(template, 24)
    assert after.difference is None and None in after.answers and False in after.answers
    assert after.source.endswith(template.source[-200:].replace("</think>", "")[-20:])


@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "Qwen-Qwen2.5-7B-Instruct", "ibm-granite-granite-4.0"])
def test_a_jinja_that_is_right_stays_as_it_is(name: str) -> None:
    template = published(name)
    assert write_native(template, 24).source == template.source


def test_a_date_that_llama_cpp_would_set_is_that_of_training() -> None:
    source = (
        "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant>"
    )
    template = ChatTemplate(source, TOKENS, CONTROLS)
    reference = find_reference(template, {})
    unpinned = prove_native(template, source, reference, find_thinking(reference), 8)
    assert "instead of '26 Jul 2024" in str(unpinned.difference)
    assert write_native(template, 8).difference is None


def test_three_different_prompts_cannot_all_be_written() -> None:
    found = write_native(published("openbmb-MiniCPM5-1B"), 24)
    assert (
        found.answers[None] is None and "instead of" in str(found.answers[False]) and found.refused == (True,)
    )


# In the manner of Magistral, with contents that are texts: llama.cpp makes lists of some of them.
TEXTS_ONLY = (
    "{{ bos_token }}{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}"
    "{% for m in messages %}{% if m.role == 'system' %}[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]"
    "{% elif m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}"
    "{% for call in m.tool_calls %}[TOOL_CALLS]{{ call.function.name }}[ARGS]"
    "{{ call.function.arguments | tojson }}{% endfor %}{{ eos_token }}{% endif %}{% endfor %}"
)
PARTS_TOO = TEXTS_ONLY.replace(
    "{{ m.content }}",
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}",
)
SYSTEM_UNREAD = (
    "{{ tools | tojson if tools }}{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}"
    "</s>{% endfor %}<assistant>"
)
UNSEEN = {"texts only": TEXTS_ONLY, "parts too": PARTS_TOO, "system unread": SYSTEM_UNREAD}


def test_contents_that_llama_cpp_makes_lists_of() -> None:
    template = ChatTemplate(TEXTS_ONLY, TOKENS, CONTROLS)
    reference = find_reference(template, {})
    before = prove_native(template, TEXTS_ONLY, reference, find_thinking(reference), 24)
    assert "it makes lists of parts" in str(before.difference)
    found = write_native(template, 24)
    assert found.difference is None and "[ARGS]" not in found.source
    same = write_native(ChatTemplate(PARTS_TOO, TOKENS, CONTROLS), 24)
    assert same.difference is None and same.source == PARTS_TOO, "it takes lists: llama.cpp reads its answers"


def test_a_system_text_that_the_template_drops_stays_out() -> None:
    template = ChatTemplate(SYSTEM_UNREAD, TOKENS, CONTROLS)
    reference = find_reference(template, {})
    before = prove_native(template, SYSTEM_UNREAD, reference, find_thinking(reference), 24)
    assert before.difference is not None
    found = write_native(template, 24)
    assert found.difference is None and found.source.endswith(SYSTEM_UNREAD)


def test_trims_differ_and_are_told() -> None:
    found = write_native(published("meta-llama-Llama-3.2-3B-Instruct"), 24)
    assert found.difference == f"think unset: {EDGE_BLANKS}"


def test_letters_are_taken_apart_in_texts_strings_and_comments() -> None:
    source = (
        "{# </think> #}{% for m in messages %}<{{ m.role }}>"
        "{{ m.content.split('</think>')[-1] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{%- if enable_thinking is defined and enable_thinking %}"
        "<think>{% else %}  <think></think>{% endif %}{% endif %}"
    )
    template = ChatTemplate(source, TOKENS, CONTROLS)
    found = write_native(template, 24)
    assert found.difference is None and "</think>" not in found.source
    assert jinja_abilities(found.source) == set() and jinja_abilities(source) == {"thinking"}
    chat = [{"role": "user", "content": "a</think>b"}]
    assert ChatTemplate(found.source, TOKENS, CONTROLS).render(
        chat, add_generation_prompt=True
    ) == template.render(chat, add_generation_prompt=True)


def test_letters_that_are_code_stay() -> None:
    source = "{# [SYSTEM_PROMPT] [TOOL_CALLS] #}{% for m in messages %}{{ m[ARGS] or m.content }}{% endfor %}"
    assert pinned(source, Thinking((), False, False)) == source


def test_a_thinking_template_without_the_letters_gets_them() -> None:
    source = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant>"
        "{% if thinking is defined and not thinking %}<off>{% endif %}"
    )
    found = write_native(ChatTemplate(source, TOKENS, CONTROLS), 24)
    assert found.difference is None and set(found.answers) == {None, True, False}
    assert "thinking" in jinja_abilities(found.source)


def test_a_guarded_jinja_is_taken_for_no_other() -> None:
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    written = guarded(source)
    assert written.endswith(source) and written.index(source) >= 100 and guessable(source)
    chat = [{"role": "user", "content": "Hi"}]
    assert ChatTemplate(written).render(chat) == ChatTemplate(source).render(chat)


def test_tools_that_are_only_mentioned_do_not_count() -> None:
    assert writes_tools(published("Qwen-Qwen3-0.6B"))
    assert not writes_tools(published("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B"))
    loop = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert writes_tools(ChatTemplate("{{ tools | tojson }}" + loop, TOKENS, CONTROLS))
    assert not writes_tools(ChatTemplate("{{ tools }}" + loop, TOKENS, CONTROLS)), "Python's own spelling"


def _today() -> str:
    return datetime.datetime.now().replace(hour=12, minute=0).isoformat()


def llama_differences(name: str, source: str, model: Path) -> list[Any]:
    """Where llama.cpp itself, asked as Ollama asks it, differs from transformers."""
    tokens = read_gguf_tokens(model).tokens
    template = ChatTemplate(source, tokens, frozenset(tokens.values()), name)
    reference = find_reference(template, {})
    thinking = find_thinking(reference)
    found = write_native(template, 24)
    wrong: list[Any] = []
    chats = list(random_chats(16, seed=5))
    bodies, wanted = [], []
    for state, why in found.answers.items():
        if why is not None:
            continue
        variables = {} if state is None else dict.fromkeys(thinking.switches, state)
        asked = True if state is None and "thinking" in jinja_abilities(found.source) else state
        more = {} if asked is None else {"chat_template_kwargs": {"enable_thinking": asked}}
        texts = reference.render(chats, variables, clock=_today())
        for chat, text in zip(chats, texts, strict=True):
            if not isinstance(text, Refusal):
                bodies.append({"messages": reference.shaped(chat).messages(), **more})
                wanted.append((state, text))
    for (state, text), prompt in zip(wanted, llama_prompts(found.source, bodies, model), strict=True):
        if prompt != text:
            wrong.append((name, state, text[:300], prompt[:300]))
    return wrong


ORACLE = [*CURED, "Qwen-Qwen3-0.6B", "Apertus-8B-Instruct", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ORACLE)
def test_llama_cpp_itself_writes_the_trainings_prompt(name: str) -> None:
    from tiny_chat import gguf

    wrong = llama_differences(name, all_templates()[f"{name}.jinja"], gguf())
    assert not wrong, wrong[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", UNSEEN)
def test_llama_cpp_itself_and_templates_that_it_treats_otherwise(name: str) -> None:
    from tiny_chat import gguf

    wrong = llama_differences(name, UNSEEN[name], gguf())
    assert not wrong, wrong[0]
