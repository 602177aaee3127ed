"""Templates with a thinking switch: what chat sends is the beginning of what was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from oracles import shared
from tiny_base import tiny_tokenizer

from lorafold.chat import ChatTokenizer
from lorafold.train.layouts import Example
from lorafold.train.thinking import settle_thinking

# Templates whose prompt is not the beginning of the conversation: what is done about it.
SETTLED = {
    "Cohere2MoE": None,
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": True,
    "GLM-4.7-Flash": False,
    "MiniMax-M2": None,
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": None,
    "deepseek-ai-DeepSeek-V3.2": True,
    "google-gemma-4-31B-it": True,
}
TURNS = (
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "I am Silas."},
    {"role": "user", "content": "Since when?"},
    {"role": "assistant", "content": "Since the lamp was lit."},
)
EXAMPLES = (Example("d:1", TURNS), Example("d:2", TURNS[:2]), Example("d:3", text="plain"))


def tokenizer_with(folder: Path, template: Path) -> ChatTokenizer:
    tiny_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"bos_token": "<|endoftext|>"}))
    return ChatTokenizer.from_folder(folder, str(template))


def test_every_template_either_fits_or_is_settled_or_said(tmp_path: Path) -> None:
    found = {}
    for path in sorted(shared("templates").glob("*.jinja")):
        before = tokenizer_with(tmp_path / "t", path)
        after, notes = settle_thinking(before, EXAMPLES)
        if notes:
            source = after.template.source
            set_to = {"true": True, "false": False}.get(
                source.removeprefix("{% set enable_thinking = ").partition(" ")[0]
            )
            found[path.stem] = set_to
            assert (after is before) == (set_to is None)
            word = {True: "switched on", False: "switched off", None: "--chat-template"}[set_to]
            assert word in notes[0]
        else:
            assert after is before
        if not notes or found[path.stem] is not None:
            for turns in (TURNS, TURNS[:2]):
                prompt = after.template.render(turns[:-1], add_generation_prompt=True)
                assert after.template.render(turns).startswith(prompt), path.stem
    assert found == SETTLED


def test_tokens_of_a_chat_are_the_beginning_of_the_trained_ones(tmp_path: Path) -> None:
    path = shared("templates/GLM-4.7-Flash.jinja")
    loose = tokenizer_with(tmp_path / "t", path)
    settled, _ = settle_thinking(loose, EXAMPLES)
    for tokenizer, fits in ((loose, False), (settled, True)):
        asked = tokenizer.encode_chat(TURNS[:3], add_generation_prompt=True).ids
        assert (tokenizer.encode_chat(TURNS).ids[: len(asked)] == asked) is fits


@pytest.mark.parametrize("examples", [(), EXAMPLES[2:]])
def test_without_conversations_nothing_is_settled(tmp_path: Path, examples: tuple[Example, ...]) -> None:
    tokenizer = tokenizer_with(tmp_path / "t", shared("templates/GLM-4.7-Flash.jinja"))
    assert settle_thinking(tokenizer, examples) == (tokenizer, ())
