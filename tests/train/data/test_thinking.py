"""Templates with a thinking switch: what chat sends is the beginning of what was trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from oracles import shared
from tiny_base import tiny_base, tiny_tokenizer

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.inspection import inspect_path
from lorafold.records.layouts import Example
from lorafold.train import TrainConfig, train
from lorafold.train.data.thinking import settle_thinking
from lorafold.train.tokens.encode_one import encode_example

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


def test_inspect_says_it_too(tmp_path: Path) -> None:
    tokenizer_with(tmp_path / "t", shared("templates/GLM-4.7-Flash.jinja"))
    (tmp_path / "t" / "config.json").write_text("{}")
    data = tmp_path / "d.json"
    data.write_text(json.dumps([{"messages": TURNS}]))
    template = str(shared("templates/GLM-4.7-Flash.jinja"))
    shown = inspect_path(str(data), base=str(tmp_path / "t"), chat_template=template)
    assert "switched off in the adapter" in dict(shown.lines)["note"]
    assert "</think>" in shown.samples[0][1][0][0]


@pytest.mark.parametrize("examples", [(), EXAMPLES[2:]])
def test_without_conversations_nothing_is_settled(tmp_path: Path, examples: tuple[Example, ...]) -> None:
    tokenizer = tokenizer_with(tmp_path / "t", shared("templates/GLM-4.7-Flash.jinja"))
    assert settle_thinking(tokenizer, examples) == (tokenizer, ())


# Control tokens of a template with a thinking switch, its end of sequence, and what settling says of it.
QWEN3 = (("<think>", "</think>"), "<|im_end|>", False)
GLM = (("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", *QWEN3[0]), "<|user|>", True)
TEXTS = ("Who are you?", "I am Silas.", "Since when?", "Since the lamp was lit.")
CHATS = [
    [{"role": TURNS[i]["role"], "content": f"{number} {text}"} for i, text in enumerate(TEXTS[:turns])]
    for number, turns in enumerate((2, 4, 2, 4))
]


def thinking_base(folder: Path, template: str, controls: tuple[str, ...], eos: str) -> None:
    """A tiny Qwen3 with a template of the wild; `<think>` is an ordinary added token, as Qwen3 has it."""
    from tokenizers import AddedToken, Tokenizer

    tiny_base(folder, family="Qwen3", head_dim=16, vocab_size=280)
    path = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_tokens(
        [AddedToken(text, special=text not in QWEN3[0], normalized=False) for text in controls]
    )
    tokenizer.save(str(path))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    shutil.copyfile(shared(f"templates/{template}.jinja"), folder / "chat_template.jinja")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "controls", "eos", "settled"),
    [("Qwen-Qwen3-0.6B", *QWEN3), ("GLM-4.7-Flash", *GLM)],
    ids=["qwen3", "glm"],
)
def test_chat_and_ollama_ask_with_the_tokens_of_training(
    tmp_path: Path, template: str, controls: tuple[str, ...], eos: str, settled: bool
) -> None:
    """From training to its exported GGUF and Modelfile: a prompt is the beginning of what the model saw."""
    import torch

    from lorafold.export import ExportConfig, export
    from lorafold.export.modelfile.go.evaluate import evaluate
    from lorafold.export.modelfile.parser import parse
    from lorafold.export.modelfile.probe import Chat, Variant
    from lorafold.export.modelfile.proof import ollama_data
    from lorafold.serve.engines.llama_model import LlamaModel

    thinking_base(tmp_path / "base", template, controls, eos)
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS))
    seen: list[list[int]] = []  # one example a batch, so nothing is padded

    def look(module: Any, inputs: Any) -> None:
        if isinstance(module, torch.nn.Embedding):
            seen.append(inputs[0][0].tolist())

    hook = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        source: dict[str, Any] = {"base": str(tmp_path / "base"), "data": (str(data),)}
        steps: dict[str, Any] = {"per_device_train_batch_size": 1, "max_steps": len(CHATS)}
        result = train(TrainConfig(**source, **steps, out=tmp_path / "adapter"))
    finally:
        hook.remove()
    assert any("thinking is switched off" in note for note in result.notes) is settled
    export(ExportConfig(str(tmp_path / "adapter"), out=tmp_path / "out", quant=("F32",), name="tuned"))

    modelfile = parse((tmp_path / "out" / "Modelfile").read_text())
    assert modelfile.template is not None
    model = LlamaModel(tmp_path / "out" / "tuned-F32.gguf")
    folder = ChatTokenizer.from_folder(tmp_path / "adapter")
    for chat in CHATS:
        whole = encode_example(Example("d", tuple(chat)), folder).ids
        assert whole in seen
        for asked in range(1, len(chat), 2):
            prompt = folder.encode_prompt(chat[:asked])
            assert whole[: len(prompt)] == prompt == model.encode(chat[:asked])
        for variant in (Variant(False, False, {}), Variant(True, False, {}), Variant(True, True, {})):
            turns = tuple(str(turn["content"]) for turn in chat[:-1])
            text = evaluate(modelfile.template, ollama_data(Chat(None, turns), variant))
            prompt = model.tokenize(text, special=True)
            assert whole[: len(prompt)] == prompt
