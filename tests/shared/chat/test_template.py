"""Chat templates: where they come from, and renderings equal to transformers'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from chats import CHAT, TOKENS, all_templates
from classic_templates import EXPRESSIBLE

from lorafold.chat.named import NAMED
from lorafold.chat.template import ChatTemplate
from lorafold.errors import InputError


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_renderings_equal_transformers(every: int) -> None:
    """Every template, with and without system and generation prompt, and where tools are given."""
    chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    tool = {
        "type": "function",
        "function": {"name": "f", "description": "d<e>", "parameters": {"type": "object"}},
    }
    compared = 0
    for name, source in list(all_templates().items())[::every]:
        template = ChatTemplate(source, TOKENS, origin=name)
        for messages in (CHAT, CHAT[1:], CHAT[1:4], CHAT[:2]):
            for extra in ({}, {"tools": [tool], "enable_thinking": False}):
                prompt = messages[-1]["role"] == "user"
                try:
                    want = chat_template_utils.render_jinja_template(
                        [messages], chat_template=source, add_generation_prompt=prompt, **TOKENS, **extra
                    )[0][0]
                except Exception:
                    continue  # a template that refuses this conversation, or wants its content in parts
                got = template.render(messages, add_generation_prompt=prompt, **extra)
                if "strftime_now" not in source or got == want:
                    assert got == want or name == "content parts only", name
                    compared += 1
    assert compared > 500 // every


def test_generation_prompt_and_reasoning_names() -> None:
    template = ChatTemplate("{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}")
    assert template.render([{"role": "assistant", "content": "", "thinking": "hm"}]) == "hm|hm"
    assert template.render([{"role": "assistant", "content": "", "reasoning": "hm"}]) == "hm|hm"


def test_templates_that_want_parts_get_them() -> None:
    template = ChatTemplate(EXPRESSIBLE["content parts only"], TOKENS)
    assert "<|im_start|>user Hi<end_of_utterance>" in template.render(CHAT)


@pytest.mark.parametrize(
    "source", ["\n  x{{ on }}", "  {% if on %}y{% endif %}", "{%- if on %}\n a{% endif %}\n", "{{ on }}\n\n"]
)
def test_a_fixed_switch_changes_nothing_else(source: str) -> None:
    for value in (True, False):
        template = ChatTemplate(source)
        assert template.fixed(on=value).render(CHAT) == template.render(CHAT, on=value)


def test_no_template_says_how_to_give_one(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputError, match="no chat template; fix: give one with --chat-template"):
        ChatTemplate.from_folder(tmp_path)
    with pytest.raises(InputError, match="neither a file nor the name"):
        ChatTemplate.chosen("chatmm")
    with pytest.raises(InputError, match="choose one of chatml"):
        ChatTemplate.named("nope")


def test_sources_of_a_folder_in_order(tmp_path: Path) -> None:
    settings_file = tmp_path / "tokenizer_config.json"
    listed = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    settings_file.write_text(
        json.dumps({"chat_template": listed, "eos_token": {"content": "</s>"}, "bos_token": None})
    )
    template = ChatTemplate.from_folder(tmp_path)
    assert (template.source, template.tokens) == ("D", {"eos_token": "</s>"})
    (tmp_path / "chat_template.jinja").write_text("J")
    assert ChatTemplate.from_folder(tmp_path).source == "J"
    assert ChatTemplate.from_folder(tmp_path, "chatml").source == NAMED["chatml"].source
    (tmp_path / "own.jinja").write_text("{{ eos_token }}")
    assert ChatTemplate.from_folder(tmp_path, str(tmp_path / "own.jinja")).render([]) == "</s>"
    settings_file.write_text('{"a": ')
    with pytest.raises(InputError, match="truncated or invalid JSON"):
        ChatTemplate.from_folder(tmp_path)


def test_template_of_a_gguf(tmp_path: Path) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "<s>", "<|im_end|>"])
    writer.add_token_types([1, 3, 3])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_context_length(77)
    writer.add_chat_template("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    template = ChatTemplate.from_gguf(tmp_path / "m.gguf")
    assert template.render([{"role": "user", "content": "x"}]) == "<s>x<|im_end|>"
    assert template.controls == {"<s>", "<|im_end|>"}
    assert (
        ChatTemplate.from_gguf(tmp_path / "m.gguf", "alpaca")
        .render(CHAT[1:3])
        .endswith("there<|im_end|>\n\n")
    )
