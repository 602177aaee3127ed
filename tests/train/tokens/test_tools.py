"""Conversations with tools -> ids and masks, equal to transformers', and counted where a user looks first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from oracles import shared
from tiny_base import tiny_base
from tool_chats import WEATHER, tool_chat

from lorafold.chat.dialogue import Dialogue
from lorafold.chat.template import ChatTemplate
from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError
from lorafold.inspection import inspect_path
from lorafold.records.chats import read_chats
from lorafold.records.layouts import build_example, recognise
from lorafold.train.data.held_out import write_held_out
from lorafold.train.data.load import load_data
from lorafold.train.data.split import content_key
from lorafold.train.data.thinking import settle_thinking
from lorafold.train.tokens.tokenize import tokenize

QWEN = "Qwen-Qwen2.5-7B-Instruct.jinja"


def data(path: Path, count: int = 1) -> Path:
    rows = [{"messages": tool_chat(text=True), "tools": json.dumps([WEATHER])}] * count
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_ids_equal_transformers_and_calls_are_trained(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = shared("tokenizers/qwen2")
    template = shared("templates") / QWEN
    ours = ChatTokenizer.from_folder(folder, str(template))
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs.chat_template = template.read_text()
    loaded = load_data([str(data(tmp_path / "d.jsonl"))])
    (whole,) = tokenize(loaded.examples, ours, 4096).sequences
    want = theirs.apply_chat_template(tool_chat(), tools=[WEATHER], return_dict=True)["input_ids"]
    assert whole.ids == want
    trained = [token for token, on in zip(whole.ids, whole.mask, strict=True) if on]
    assert theirs.decode(trained) == (
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>'
        "<|im_end|>Seven degrees.<|im_end|>Welcome!<|im_end|>"
    )


def test_counts_stand_where_a_user_looks_first(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    (base / "chat_template.jinja").write_text((shared("templates") / QWEN).read_text())
    lines = inspect_path(str(data(tmp_path / "d.jsonl", 2)), base=str(base)).lines
    told = "tools: 2 of 2 examples use some (1 are defined); 2 calls are trained, 2 results are not"
    assert ("note", told) in lines
    assert "⟦" not in dict(lines)["layout"] and dict(lines)["examples"] == "2 with 6 assistant turns"


def test_a_base_whose_template_loses_tools_is_refused_with_the_place(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    (base / "chat_template.jinja").unlink(missing_ok=True)
    loaded = load_data([str(data(tmp_path / "d.jsonl"))])
    ours = ChatTokenizer.from_folder(base, "chatml")
    with pytest.raises(InputError, match=r"d.jsonl:1: the chat template does not write the definitions"):
        tokenize(loaded.examples, ours, 4096)


def test_tools_go_along_into_the_held_out_file(tmp_path: Path) -> None:
    """And make a difference: the same words with other tools are another data set."""
    loaded = load_data([str(data(tmp_path / "d.jsonl"))])
    assert write_held_out(tmp_path, loaded.examples) == 1
    (read,) = read_chats(tmp_path / "heldout.jsonl")
    assert read.messages == loaded.examples[0].messages
    assert isinstance(read.messages, Dialogue) and read.messages.tools == (WEATHER,)
    plain = tmp_path / "plain.jsonl"
    plain.write_text(json.dumps({"messages": tool_chat(text=True)}) + "\n")
    assert load_data([str(plain)]).sha256 != loaded.sha256


def test_examples_that_differ_in_a_call_are_different() -> None:
    """A split keeps copies on one side; two calls are no copies."""
    other = tool_chat()
    other[2]["tool_calls"] = [{"function": {"name": "get_weather", "arguments": {"city": "Bonn"}}}]
    keys = [
        content_key(build_example(record, "d", recognise(record, "d")))
        for record in ({"messages": tool_chat(text=True)}, {"messages": tool_chat(text=True)})
    ]
    record = {"messages": [*other[:3], {"role": "tool", "content": tool_chat()[3]["content"]}, *other[4:]]}
    assert keys[0] == keys[1] != content_key(build_example(record, "d", recognise(record, "d")))


def test_the_thinking_switch_is_settled_with_tools(tmp_path: Path) -> None:
    """GLM's prompt opens a think block, and the answers of the data have none."""
    folder = shared("tokenizers/qwen2")
    ours = ChatTokenizer.from_folder(folder, str(shared("templates") / "GLM-4.7-Flash.jinja"))
    loaded = load_data([str(data(tmp_path / "d.jsonl"))])
    settled, notes = settle_thinking(ours, loaded.examples)
    assert notes and "switched off" in notes[0]
    (whole,) = tokenize(loaded.examples, settled, 4096).sequences
    trained = ours.decode([token for token, on in zip(whole.ids, whole.mask, strict=True) if on], False)
    assert "<tool_call>get_weather<arg_key>city</arg_key>" in trained and "How many" not in trained


def two_templates(folder: Path) -> Path:
    """A tokenizer folder with a plain template and another one for tools, as Hermes 3 has."""
    shutil.copytree(shared("tokenizers/qwen2"), folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    plain = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    rows = {"default": plain, "tool_use": (shared("templates") / QWEN).read_text()}
    config["chat_template"] = [{"name": name, "template": text} for name, text in rows.items()]
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_a_template_for_tools_is_taken_where_transformers_takes_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = two_templates(tmp_path / "base")
    ours = ChatTokenizer.from_folder(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    (example,) = load_data([str(data(tmp_path / "d.jsonl"))]).examples
    for chat, tools in ((example.messages, [WEATHER]), (tool_chat()[:2], None)):
        plain = tool_chat() if tools else chat
        want = theirs.apply_chat_template(list(plain), tools=tools, tokenize=False)
        assert ours.template.render(chat) == want
    assert "# Tools" not in ours.template.render(tool_chat()[:2])
    (whole,) = tokenize([example], ours, 4096).sequences
    assert "get_weather" in ours.decode(
        [token for token, on in zip(whole.ids, whole.mask, strict=True) if on]
    )


def test_the_template_for_tools_goes_along(tmp_path: Path) -> None:
    """With a switch that is set for good, through an adapter's folder, and through a GGUF."""
    folder = two_templates(tmp_path / "base")
    template = ChatTokenizer.from_folder(folder).template
    assert template.fixed(enable_thinking=False).tool_use.startswith("{% set enable_thinking = false %}")
    (tmp_path / "adapter" / "additional_chat_templates").mkdir(parents=True)
    (tmp_path / "adapter" / "chat_template.jinja").write_text(template.source)
    (tmp_path / "adapter" / "additional_chat_templates" / "tool_use.jinja").write_text(template.tool_use)
    for chosen in (tmp_path / "adapter", tmp_path / "adapter" / "chat_template.jinja"):
        assert ChatTemplate.chosen(str(chosen)).tool_use == template.tool_use
    assert ChatTemplate.chosen("chatml").tool_use == ""
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_token_list(["a"])
    rows = {"default": template.source, "tool_use": template.tool_use}
    writer.add_chat_template([{"name": name, "template": text} for name, text in rows.items()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = ChatTemplate.from_gguf(tmp_path / "m.gguf")
    assert (found.source, found.tool_use) == (template.source, template.tool_use)
