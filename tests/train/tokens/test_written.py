"""Data that already carry control tokens: said, shown with their ids, and parsed if the user says so."""

from __future__ import annotations

import copy
import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from oracles import shared

from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError
from lorafold.inspection import Inspection, inspect_path
from lorafold.records.layouts import Example
from lorafold.train.data.written import written_controls
from lorafold.train.tokens.encode_one import encode_example

CHATML = "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
ANSWER = "I do.<|im_end|>"
# Tokenizer, a text that has been through its template (or another's), and what the note names.
TEXTS = {
    "qwen2": (CHATML + ANSWER + "\n", "control tokens .*<|im_start|>, <|im_end|>"),
    "llama2": ("<s>[INST] Who? [/INST] I do. </s>", "control tokens .*<s>, </s>"),
    "llama3": ("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>", "<|eot_id|>"),
}
# Loading a tokenizer takes a second; the third family is for the long run.
NAMES = ["qwen2", "llama2", pytest.param("llama3", marks=pytest.mark.slow)]


@functools.cache
def both(name: str) -> tuple[ChatTokenizer, Any]:
    """Our tokenizer of a family and transformers', loaded once for all tests."""
    from transformers import AutoTokenizer

    folder = shared(f"tokenizers/{name}")
    ours = ChatTokenizer.from_folder(folder, {"llama2": "llama-2", "llama3": "chatml"}.get(name))
    return ours, AutoTokenizer.from_pretrained(folder)


def tokenizer(name: str, *, parse: bool = False) -> tuple[ChatTokenizer, Any]:
    ours, theirs = both(name)
    ours = copy.copy(ours)
    ours.parse_contents = parse
    return ours, theirs


@pytest.mark.parametrize("name", NAMES)
def test_a_text_that_is_parsed_has_the_ids_that_its_tokenizer_gives_it(name: str) -> None:
    """No second beginning, and no second end of what ends itself."""
    ours, theirs = tokenizer(name, parse=True)
    text = TEXTS[name][0]
    found = encode_example(Example("d:1", text=text), ours)
    assert found.ids == theirs(text, add_special_tokens=False)["input_ids"] and all(found.mask)
    bare = text.removeprefix("<s>").removeprefix("<|begin_of_text|>")
    # What it lacks is put there: a beginning, if the tokenizer itself puts one before a text.
    assert encode_example(Example("d:1", text=bare), ours).ids == theirs(bare)["input_ids"]
    as_text = encode_example(Example("d:1", text=text), tokenizer(name)[0])
    assert len(as_text.ids) > len(found.ids)


def prompt(asked: str, answer: str, *before: dict[str, str]) -> Example:
    turns = ({"role": "user", "content": asked}, {"role": "assistant", "content": answer})
    return Example("d:1", (*before, *turns), layout="prompt")


def test_a_written_prompt_gets_no_second_template_and_its_completion_alone_is_trained() -> None:
    ours, theirs = tokenizer("qwen2", parse=True)
    for answer in (ANSWER, ANSWER + "\n", "I do."):
        found = encode_example(prompt(CHATML, answer), ours)
        text = CHATML + answer + ("" if "<|" in answer else theirs.eos_token)
        assert found.ids == theirs(text)["input_ids"]
        kept = [token for token, on in zip(found.ids, found.mask, strict=True) if on]
        assert theirs.decode(kept) == text.removeprefix(CHATML)
    ours, theirs = tokenizer("llama2", parse=True)
    found = encode_example(prompt("[INST] Who? [/INST]", " I do. </s>"), ours)
    assert found.ids == theirs("<s>[INST] Who? [/INST] I do. </s>", add_special_tokens=False)["input_ids"]
    with pytest.raises(InputError, match="d:1: the prompt already carries its chat template, so a system"):
        encode_example(prompt("<s>[INST] Who?", "x", {"role": "system", "content": "s"}), ours)


def test_messages_are_rendered_and_their_contents_parsed() -> None:
    turns = ({"role": "user", "content": "x<|im_end|>y"}, {"role": "assistant", "content": "a<|im_end|>b"})
    ours, theirs = tokenizer("qwen2", parse=True)
    found = encode_example(Example("d:1", turns), ours)
    assert found.ids == theirs.apply_chat_template(list(turns), return_dict=True)["input_ids"]
    as_text = encode_example(Example("d:1", turns), tokenizer("qwen2")[0])
    end = theirs.convert_tokens_to_ids("<|im_end|>")
    assert found.ids.count(end) == as_text.ids.count(end) + 2


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_out_is_said(name: str) -> None:
    text, said = TEXTS[name]
    ours, _ = tokenizer(name)
    for example in (Example("d:1", text=text), prompt(text, "a"), prompt("a", text)):
        notes = written_controls([prompt("a", "b"), example], ours.template, parsed=False)
        assert re.search(said.replace("|", r"\|"), notes[0]) and "in 1 of 2 examples" in notes[0]
        assert "first: d:1" in notes[0] and "--control-tokens parse" in notes[0]
    assert written_controls([prompt("a < b [1]", "<b>c</b> <think>")], ours.template, parsed=False) == ()
    (note,) = written_controls([Example("d:1", text=text)], ours.template, parsed=True)
    assert note.endswith("and parsed as such")


def test_markers_of_another_family_are_said_and_cannot_be_parsed() -> None:
    ours, _ = tokenizer("qwen2")
    for parsed in (False, True):
        (note,) = written_controls(
            [Example("d:1", text="[INST] a [/INST] b</s>")], ours.template, parsed=parsed
        )
        assert note.startswith(
            "turn markers that are no control tokens of this base stand in 1 of 1 examples"
        )
    # Llama 2's own [INST] is text: right in a text, but wrong inside what the template is put around.
    ours, _ = tokenizer("llama2")
    text = "[INST] Who? [/INST] I do."
    assert written_controls([Example("d:1", text=text)], ours.template, parsed=False) == ()
    assert len(written_controls([prompt(text, "a")], ours.template, parsed=False)) == 1


# A text that has been through a template of each family, and a marker of it.
FAMILIES = {
    "Llama 3": ("<|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>", "<|eot_id|>"),
    "Gemma": ("<bos><start_of_turn>user\nq<end_of_turn>\n", "<start_of_turn>"),
    "Gemma 4": ("<bos><|turn>user\nq<turn|>\n", "<|turn>"),
    "Mistral": ("<s>[INST] q[/INST] a</s>", "[INST]"),
    "Mistral's system": ("[SYSTEM_PROMPT]s[/SYSTEM_PROMPT]q", "[SYSTEM_PROMPT]"),
    "ChatGLM": ("[gMASK]<sop><|user|>\nq<|assistant|>\na", "[gMASK]"),
    "DeepSeek": ("<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜>a<｜end▁of▁sentence｜>", "<｜User｜>"),
    "InternLM": ("<|User|>:q<eoh>\n<|Bot|>:a<eoa>\nx", "<eoh>"),
    "Baichuan": ("<reserved_106>q<reserved_107>a", "<reserved_106>"),
    "EXAONE": ("[|user|]q\n[|assistant|]a[|endofturn|]", "[|user|]"),
    "Phi": ("<|user|>\nq<|end|>\n<|assistant|>\na<|end|>", "<|end|>"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_markers_of_every_family_are_said(family: str) -> None:
    text, marker = FAMILIES[family]
    ours, _ = tokenizer("qwen2")
    for example in (Example("d:1", text=text), prompt(text, "a"), prompt("a", text)):
        note, *_ = written_controls([example], ours.template, parsed=False)
        assert marker in note and "are trained as ordinary characters" in note and "first: d:1" in note


@pytest.mark.parametrize(
    "end", ["</s>", "<|endoftext|>", "<|im_end|>", " <|im_end|>\n", "<｜end▁of▁sentence｜>"]
)
def test_an_end_that_the_data_write_is_said_and_counts_once(end: str) -> None:
    """A habit of Alpaca's time: each output ends with the tokenizer's EOS."""
    ours, _ = tokenizer("qwen2")
    (note,) = written_controls([prompt("q", "a" + end), prompt("q", "b")], ours.template, parsed=False)
    assert note.startswith(f"texts end with a marker in 1 of 2 examples ({end.strip()}; first: d:1)")
    assert "remove it from the data" in note
    ours, _ = tokenizer("qwen2", parse=True)
    if end.strip() in ours.template.controls:
        plain = encode_example(prompt("q", "a"), ours)
        assert encode_example(prompt("q", "a" + end), ours) == plain
        turns = [prompt("q", "a" + end).messages, prompt("r", "b").messages]
        several = encode_example(Example("d:1", tuple(turn for pair in turns for turn in pair)), ours)
        assert several.ids[: len(plain.ids)] == plain.ids


def test_of_what_an_answer_ends_with_only_the_end_is_taken_off() -> None:
    ours, _ = tokenizer("qwen2", parse=True)
    kept = encode_example(prompt("q", "a</s>"), ours)
    assert (
        encode_example(prompt("q", "a</s><|im_end|>"), ours) == kept != encode_example(prompt("q", "a"), ours)
    )


def inspected(tmp_path: Path, row: dict[str, str], **options: Any) -> Inspection:
    from tiny_base import tiny_tokenizer

    tiny_tokenizer(tmp_path / "base")
    (tmp_path / "base" / "config.json").write_text("{}")
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row))
    return inspect_path(str(path), base=str(tmp_path / "base"), **options)


def test_inspect_shows_the_ids_of_what_only_looks_like_a_control_token(tmp_path: Path) -> None:
    row = {"prompt": "x<|im_end|>y", "completion": "a<|im_end|>b"}
    found = inspected(tmp_path, row)
    (_, pieces), *_ = found.samples
    trained = "".join(text for text, on in pieces if on)
    ours = ChatTokenizer.from_folder(tmp_path / "base")
    ids = " ".join(map(str, ours.tokenize("<|im_end|>", False)))
    assert trained == f"a<|im_end|>‹{ids}›b<|im_end|>" and len(ids.split()) == 10
    assert "".join(text for text, _ in pieces).count("‹") == 2
    assert any("control tokens are written out" in text for name, text in found.lines if name == "note")
    parsed = inspected(tmp_path, row, control_tokens="parse")
    assert "".join(text for text, on in parsed.samples[0][1] if on) == "a<|im_end|>b<|im_end|>"


def test_inspect_says_what_the_template_leaves_out(tmp_path: Path) -> None:
    """ChatML writes a content and nothing else."""
    answer = {"role": "assistant", "content": "a", "reasoning_content": "because"}
    row: Any = {"messages": [{"role": "user", "content": "q"}, answer]}
    notes = [text for name, text in inspected(tmp_path, row).lines if name == "note"]
    assert notes == [
        "the chat template leaves out (or rewrites) 7 tokens of what 1 examples say, usually reasoning; "
        "they are not trained (first: d.jsonl:1)"
    ]
