"""Vocabularies: layout over the rows, special tokens, metadata, texts with a known difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFValueType, TokenType
from oracles import shared
from small_vocab import CHAT, by_hand, read
from tiny_tokenizers import BYTE_LEVEL, added, byte_level, sequence, split, write_folder

from lorafold.export.vocab.pre_tokenizers import LLAMA3_WORDS, QWEN2_WORDS
from lorafold.export.vocab.probe import EDGE_CASES, probe_texts
from lorafold.export.vocab.vocab import read_vocab


def test_a_vocabulary_by_hand(tmp_path: Path) -> None:
    vocab = read(tmp_path, by_hand())
    entries = {entry.key: entry for entry in vocab.metadata()}
    assert {key.removeprefix("tokenizer.ggml."): entry.value for key, entry in entries.items()} == {
        "model": "gpt2",
        "pre": "qwen2",
        "tokens": ["a", "b", "ab", "<|im_end|>", "[PAD4]", "[PAD5]"],
        "token_type": pytest.approx([1, 1, 1, 3, 5, 5]),
        "merges": ["a b"],
        "bos_token_id": 3,
        "eos_token_id": 3,
        "add_bos_token": False,
        "add_eos_token": False,
    }
    types = {key: (entry.type, entry.subtype) for key, entry in entries.items()}
    assert types["tokenizer.ggml.token_type"] == (GGUFValueType.ARRAY, GGUFValueType.INT32)
    assert types["tokenizer.ggml.eos_token_id"] == (GGUFValueType.UINT32, None)
    assert types["tokenizer.ggml.add_bos_token"] == (GGUFValueType.BOOL, None)


def test_token_types(tmp_path: Path) -> None:
    """CONTROL where marked, named in the settings or of a telling form; USER_DEFINED otherwise."""
    tokenizer = by_hand(
        model={"vocab": {"a": 0, "b": 1, "ab": 2, "<eod>": 9}},
        added_tokens=[
            added(3, "<|im_end|>", special=False),
            added(4, "<｜User｜>", special=False),
            added(5, "<think>", special=False),
            added(6, "<tool>"),
            added(7, "<unused7>", special=False),
            added(8, "<extra>", special=False),
        ],
    )
    vocab = read(tmp_path, tokenizer, 10, pad_token="<eod>", additional_special_tokens=["<extra>"])
    names = [TokenType(number).name for number in vocab.types]
    assert names == [*["NORMAL"] * 3, *["CONTROL"] * 2, "USER_DEFINED", *["CONTROL"] * 4]
    assert vocab.special["pad"] == 9


def test_the_end_of_turn_is_control_and_ends_generation(tmp_path: Path) -> None:
    tokenizer = by_hand(added_tokens=[added(3, "<|im_end|>"), added(4, "</turn>", special=False)])
    vocab = read(tmp_path, tokenizer, options={"end_of_turn": "</turn>\n"})
    assert vocab.special["eot"] == 4
    assert vocab.types[4] == TokenType.CONTROL
    # One that llama.cpp knows by its text needs no entry.
    known = read(tmp_path, by_hand(added_tokens=[added(3, "<|im_end|>"), added(4, "<end_of_turn>")]),
                  options={"end_of_turn": "<end_of_turn>"})  # fmt: skip
    assert "eot" not in known.special


def test_further_ends_from_lists(tmp_path: Path) -> None:
    """GLM-4: three ends of generation, of which llama.cpp knows one by its text."""
    tokens = ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|observation|>", "<|more|>")
    tokenizer = by_hand(
        added_tokens=[added(3 + index, text) for index, text in enumerate(tokens)],
        pre_tokenizer=sequence(split(LLAMA3_WORDS), BYTE_LEVEL),
        post_processor={
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[gMASK]", "type_id": 0}},
                {"SpecialToken": {"id": "<sop>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
        },
    )
    config = {"eos_token_id": [3, 6, 7, 8], "model_type": "glm4"}
    vocab = read(tmp_path, tokenizer, 9, eos_token="<|endoftext|>", config=config)
    assert dict(vocab.special) == {"bos": 4, "eos": 3, "eot": 6, "eom": 7}
    assert (vocab.pre, vocab.add_bos) == ("glm4", True)
    assert any("[gMASK] <sop>" in note for note in vocab.notes)
    assert any("'<|more|>'" in note for note in vocab.notes)


@pytest.mark.parametrize(
    ("settings", "template", "expected"),
    [
        ({}, None, (False, False)),
        ({}, "bos", (True, False)),
        ({}, "both", (True, True)),
        ({"add_bos_token": True}, None, (True, False)),
        ({"add_eos_token": True}, "bos", (True, True)),
        ({"add_bos_token": False}, "both", (False, True)),
    ],
)
def test_who_adds_bos_and_eos(
    settings: dict[str, bool], template: str | None, expected: tuple[bool, bool], tmp_path: Path
) -> None:
    """The settings' word, else what the post-processor does."""
    tokenizer = by_hand(
        added_tokens=[added(3, "<|im_end|>"), added(4, "<|endoftext|>")],
        post_processor=_template(template, 4, 3),
    )
    vocab = read(tmp_path, tokenizer, **CHAT, **settings)
    assert (vocab.add_bos, vocab.add_eos) == expected
    assert read(tmp_path, tokenizer, **CHAT, options={"add_bos": not expected[0]}).add_bos is not expected[0]


def _template(kind: str | None, bos: int, eos: int) -> dict[str, Any]:
    """A post-processor that adds nothing, BOS, or both."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    first = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    last = {"SpecialToken": {"id": "<|im_end|>", "type_id": 0}}
    single = {None: [text], "bos": [first, text], "both": [first, text, last]}[kind]
    ids = {"<|endoftext|>": bos, "<|im_end|>": eos}
    specials = {name: {"id": name, "ids": [number], "tokens": [name]} for name, number in ids.items()}
    template = {"type": "TemplateProcessing", "single": single, "pair": [text], "special_tokens": specials}
    return {"type": "Sequence", "processors": [BYTE_LEVEL, template]}


def test_transformers_agrees_who_adds_bos_and_eos(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level(sequence(split(QWEN2_WORDS), BYTE_LEVEL))
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    for kind in (None, "bos", "both"):
        tokenizer["post_processor"] = _template(kind, ids["<|endoftext|>"], ids["<|im_end|>"])
        folder = write_folder(
            tmp_path / str(kind), tokenizer, **CHAT, tokenizer_class="PreTrainedTokenizerFast"
        )
        vocab = read_vocab(folder, {}, 2000)
        theirs = PreTrainedTokenizerFast.from_pretrained(folder)("x")["input_ids"]
        x = vocab.texts.index("x")
        assert theirs == [vocab.special["bos"]] * vocab.add_bos + [x] + [vocab.special["eos"]] * vocab.add_eos
        assert len(theirs) == {None: 1, "bos": 2, "both": 3}[kind]


def test_ids_come_from_the_first_file_that_names_them(tmp_path: Path) -> None:
    tokenizer = by_hand(added_tokens=[added(3, "<|im_end|>"), added(4, "<|endoftext|>")])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "generation_config.json").write_text(
        json.dumps({"pad_token_id": 4, "eos_token_id": 4})
    )
    named = {"bos_token": {"content": "<|endoftext|>"}}
    (tmp_path / "model" / "special_tokens_map.json").write_text(json.dumps(named))
    vocab = read(tmp_path, tokenizer, config={"text_config": {"pad_token_id": 2, "eos_token_id": [4, 3]}})
    assert dict(vocab.special) == {"bos": 4, "eos": 3, "pad": 2}


def test_padding_never_repeats_a_token(tmp_path: Path) -> None:
    vocab = read(tmp_path, by_hand(added_tokens=[added(3, "<|im_end|>"), added(5, "[PAD4]")]))
    assert vocab.texts[3:] == ["<|im_end|>", "[[PAD4]]", "[PAD4]"]


def test_a_token_with_nul_is_replaced(tmp_path: Path) -> None:
    vocab = read(tmp_path, by_hand(model={"vocab": {"a": 0, "b": 1, "ab": 2, "a\0": 4}}))
    assert (vocab.texts[4], vocab.types[4]) == ("[NUL4]", TokenType.UNUSED)
    assert vocab.known_difference("\0") and not vocab.known_difference("a")


def test_probe_texts_are_the_same_each_time() -> None:
    assert probe_texts(50, seed=3) == probe_texts(50, seed=3)
    assert probe_texts(50, seed=3) != probe_texts(50, seed=4)
    assert len(probe_texts(50)) == len(EDGE_CASES) + 50
    assert all(probe_texts(500))
    "".join(probe_texts(2000)).encode()  # valid Unicode


def test_texts_with_a_known_difference_are_set_aside(tmp_path: Path) -> None:
    vocab = read(
        tmp_path, by_hand(normalizer={"type": "NFC"}, model={"vocab": {"a": 0, "b": 1, "ab": 2, "</s>": 4}})
    )
    texts, aside = vocab.comparable(["plain", "e\u0301", "x</s>y"])
    assert texts == ["plain"]
    assert sorted(aside.values()) == [1, 1]
    assert set(aside) <= set(vocab.notes)
    # A token that llama.cpp takes for a control token is parsed only where special tokens are.
    assert vocab.comparable(["x</s>y"], parse_special=False)[0] == ["x</s>y"]


MARKERS = {
    "llama2": (32_000, "<s>"),
    "deepseek-llm": (102_400, "<｜end▁of▁sentence｜>"),
    "qwen2": (151_936, "<|im_start|>"),
    "llama3": (128_256, "<|eot_id|>"),
}
BIG = ("qwen2", "llama3")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in BIG else ()) for name in MARKERS]
)
def test_turn_markers_of_real_tokenizers_are_control(name: str) -> None:
    rows, marker = MARKERS[name]
    vocab = read_vocab(shared(f"tokenizers/{name}"), {}, rows)
    assert len(vocab.texts) == len(vocab.types) == rows
    assert vocab.types[vocab.texts.index(marker)] == TokenType.CONTROL
