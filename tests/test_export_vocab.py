"""Vocabularies: layout, special tokens, metadata, and every fault of a tokenizer's files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFValueType, TokenType
from oracles import shared
from tiny_tokenizers import (
    BYTE_LEVEL,
    LLAMA2_NORMALIZER,
    added,
    byte_level,
    json_of_sentencepiece,
    sentencepiece_model,
    sequence,
    split,
    write_folder,
)

from lorafold.errors import InputError, LorafoldError, UsageError
from lorafold.export.pre_tokenizers import GPT2, KNOWN_NAMES, LLAMA3, QWEN2, TABLE, recognise
from lorafold.export.vocab import Vocab, read_vocab
from lorafold.export.vocab_probe import AWKWARD, probe_texts

CHAT = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}


def _by_hand(**changes: Any) -> dict[str, Any]:
    """The smallest byte-level tokenizer.json: tokens a b ab, one merge, one added token."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]} | changes.pop("model", {})
    tokenizer = {
        "added_tokens": [added(3, "<|im_end|>")],
        "normalizer": None,
        "pre_tokenizer": sequence(split(QWEN2), BYTE_LEVEL),
        "post_processor": None,
        "model": model,
    }
    return tokenizer | changes


def _read(tmp_path: Path, tokenizer: dict[str, Any] | None, rows: int = 6, **settings: Any) -> Vocab:
    options = settings.pop("options", {})
    config = settings.pop("config", {})
    folder = write_folder(tmp_path / "model", tokenizer, **({"eos_token": "<|im_end|>"} | settings))
    return read_vocab(folder, config, rows, **options)


def _refuse(tmp_path: Path, tokenizer: dict[str, Any] | None, says: str, **settings: Any) -> LorafoldError:
    with pytest.raises(InputError, match=says) as caught:
        _read(tmp_path, tokenizer, **settings)
    assert caught.value.at
    assert caught.value.fix
    return caught.value


def test_a_vocabulary_by_hand(tmp_path: Path) -> None:
    vocab = _read(tmp_path, _by_hand())
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
    tokenizer = _by_hand(
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
    vocab = _read(tmp_path, tokenizer, 10, pad_token="<eod>", additional_special_tokens=["<extra>"])
    names = [TokenType(number).name for number in vocab.types]
    assert names == [*["NORMAL"] * 3, *["CONTROL"] * 2, "USER_DEFINED", *["CONTROL"] * 4]
    assert vocab.special["pad"] == 9


def test_the_end_of_turn_is_control_and_ends_generation(tmp_path: Path) -> None:
    tokenizer = _by_hand(added_tokens=[added(3, "<|im_end|>"), added(4, "</turn>", special=False)])
    vocab = _read(tmp_path, tokenizer, options={"end_of_turn": "</turn>\n"})
    assert vocab.special["eot"] == 4
    assert vocab.types[4] == TokenType.CONTROL
    # One that llama.cpp knows by its text needs no entry.
    known = _read(tmp_path, _by_hand(added_tokens=[added(3, "<|im_end|>"), added(4, "<end_of_turn>")]),
                  options={"end_of_turn": "<end_of_turn>"})  # fmt: skip
    assert "eot" not in known.special
    assert known.end_ids == (3, 4)


def test_further_ends_from_lists(tmp_path: Path) -> None:
    """GLM-4: three ends of generation, of which llama.cpp knows one by its text."""
    tokens = ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|observation|>", "<|more|>")
    tokenizer = _by_hand(
        added_tokens=[added(3 + index, text) for index, text in enumerate(tokens)],
        pre_tokenizer=sequence(split(LLAMA3), BYTE_LEVEL),
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
    vocab = _read(tmp_path, tokenizer, 9, eos_token="<|endoftext|>", config=config)
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
    tokenizer = _by_hand(
        added_tokens=[added(3, "<|im_end|>"), added(4, "<|endoftext|>")],
        post_processor=_template(template, 4, 3),
    )
    vocab = _read(tmp_path, tokenizer, **CHAT, **settings)
    assert (vocab.add_bos, vocab.add_eos) == expected
    assert _read(tmp_path, tokenizer, **CHAT, options={"add_bos": not expected[0]}).add_bos is not expected[0]


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

    tokenizer = byte_level(sequence(split(QWEN2), BYTE_LEVEL))
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
    tokenizer = _by_hand(added_tokens=[added(3, "<|im_end|>"), added(4, "<|endoftext|>")])
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "generation_config.json").write_text(
        json.dumps({"pad_token_id": 4, "eos_token_id": 4})
    )
    named = {"bos_token": {"content": "<|endoftext|>"}}
    (tmp_path / "model" / "special_tokens_map.json").write_text(json.dumps(named))
    vocab = _read(tmp_path, tokenizer, config={"text_config": {"pad_token_id": 2, "eos_token_id": [4, 3]}})
    assert dict(vocab.special) == {"bos": 4, "eos": 3, "pad": 2}


WITH_REGEX = {**BYTE_LEVEL, "use_regex": True}
# The expression of LLAMA3 as OpenAI's tiktoken spells it.
TIKTOKEN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (WITH_REGEX, False, "gpt-2"),
        (sequence({"type": "Digits", "individual_digits": True}, WITH_REGEX), False, "smollm"),
        (sequence(split(LLAMA3), BYTE_LEVEL), True, "llama-bpe"),
        (sequence(split(LLAMA3, "Removed", True), BYTE_LEVEL), False, "dbrx"),
        (sequence(split(TIKTOKEN), BYTE_LEVEL), False, "dbrx"),
        (sequence(sequence(split(QWEN2)), sequence(BYTE_LEVEL)), False, "qwen2"),
        (sequence(split(QWEN2.replace(r"\r\n", "\r\n")), BYTE_LEVEL), False, "qwen2"),
    ],
)
def test_spellings_of_the_same_pre_tokenizer(
    pre_tokenizer: dict[str, Any], ignore_merges: bool, name: str, tmp_path: Path
) -> None:
    tokenizer = _by_hand(pre_tokenizer=pre_tokenizer, model={"ignore_merges": ignore_merges})
    assert _read(tmp_path, tokenizer).pre == name


def test_names_that_mean_the_same_follow_the_family() -> None:
    tokenizer = _by_hand(
        pre_tokenizer=sequence({"type": "Digits", "individual_digits": True}, split(GPT2), BYTE_LEVEL)
    )
    names = {
        family: recognise(tokenizer, Path("t"), family).name for family in ("llama", "granite", "starcoder2")
    }
    assert names == {"llama": "smollm", "granite": "refact", "starcoder2": "starcoder"}


def test_every_name_of_the_table_is_one_of_llama_cpps() -> None:
    names = {row.name for row in TABLE} | {name for row in TABLE for _, name in row.synonyms}
    assert names <= KNOWN_NAMES
    assert len({(row.steps, row.whole_words) for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"pre_tokenizer": sequence(split(r"\w+"), BYTE_LEVEL)}, r"\\w\+"),
        ({"pre_tokenizer": sequence(split(QWEN2, "MergedWithNext"), BYTE_LEVEL)}, "MergedWithNext"),
        ({"pre_tokenizer": sequence(split(r"\p{N}", "Removed", True), BYTE_LEVEL)}, "Removed"),
        (
            {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
            "add_prefix_space",
        ),
        ({"pre_tokenizer": sequence({"type": "Whitespace"}, BYTE_LEVEL)}, "Whitespace"),
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
    ],
)
def test_an_unknown_pre_tokenizer_is_refused_and_can_be_named(
    changes: dict[str, Any], found: str, tmp_path: Path
) -> None:
    error = _refuse(tmp_path, _by_hand(**changes), found)
    assert "--pre-tokenizer" in str(error.fix)
    named = _read(tmp_path, _by_hand(**changes), options={"pre_tokenizer": "viking"})
    assert named.pre == "viking"


def test_a_name_that_llama_cpp_has_not_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown pre-tokenizer 'gpt-9'") as caught:
        _read(tmp_path, _by_hand(), options={"pre_tokenizer": "gpt-9"})
    assert "qwen2" in str(caught.value.fix)


def test_whole_words_that_the_other_kind_would_lose_are_refused(tmp_path: Path) -> None:
    """`ignore_merges` where llama.cpp's pre-tokenizer has none: only if it can make a difference."""
    reached = _by_hand(model={"ignore_merges": True})
    assert _read(tmp_path, reached).pre == "qwen2"
    lost = _by_hand(
        model={
            "ignore_merges": True,
            "vocab": {"a": 0, "b": 1, "ab": 2, "ba": 4, "b!a": 5},
            "merges": ["a b"],
        }
    )
    error = _refuse(tmp_path, lost, r"^.*1 tokens, 'ba' among them, are only found by looking up whole words")
    assert "ignore_merges" in str(error.at)


def _sentencepiece_json(**changes: Any) -> dict[str, Any]:
    return json_of_sentencepiece(sentencepiece_model(), LLAMA2_NORMALIZER) | changes


def test_sentencepiece_types_and_scores_agree_between_the_two_files(tmp_path: Path) -> None:
    tokenizer = _sentencepiece_json()
    from_json = _read(tmp_path / "json", tokenizer, 1203, bos_token="<s>", eos_token="</s>")
    (tmp_path / "both" / "model").mkdir(parents=True)
    (tmp_path / "both" / "model" / "tokenizer.model").write_bytes(sentencepiece_model())
    both = _read(tmp_path / "both", tokenizer, 1203, bos_token="<s>", eos_token="</s>")
    assert from_json.texts == both.texts
    assert from_json.texts[-3:] == ["[PAD1200]", "[PAD1201]", "[PAD1202]"]
    np.testing.assert_array_equal(from_json.types, both.types)
    kinds = [TokenType(number).name for number in both.types]
    assert kinds[:4] == ["UNKNOWN", "CONTROL", "CONTROL", "BYTE"]
    assert (kinds[258], kinds[259], kinds[1199], kinds[1200]) == ("BYTE", "NORMAL", "NORMAL", "UNUSED")
    # Scores differ, their order does not: it decides which pieces are merged first.
    assert from_json.scores is not None and both.scores is not None
    merged = [index for index, text in enumerate(both.texts) if kinds[index] == "NORMAL" and len(text) > 1]
    assert len(merged) > 100
    order = [
        np.argsort(-scores[merged], kind="stable").tolist() for scores in (from_json.scores, both.scores)
    ]
    assert order[0] == order[1]


def test_a_stale_tokenizer_model_is_not_used(tmp_path: Path) -> None:
    tokenizer = _sentencepiece_json()
    vocab = tokenizer["model"]["vocab"]
    vocab["\u2581renamed"] = vocab.pop(next(text for text, index in vocab.items() if index == 1150))
    tokenizer["model"]["merges"] = [pair for pair in tokenizer["model"]["merges"] if "".join(pair) in vocab]
    tokenizer["model"]["merges"] = [
        pair for pair in tokenizer["model"]["merges"] if pair[0] in vocab and pair[1] in vocab
    ]
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(sentencepiece_model())
    read = _read(tmp_path, tokenizer, 1200, bos_token="<s>", eos_token="</s>")
    assert read.texts[1150] == "\u2581renamed"
    assert any("is not used" in note for note in read.notes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"normalizer": None}, "neither byte-level BPE nor SentencePiece"),
        ({"model": {"type": "Unigram", "vocab": [["<unk>", 0.0]]}}, "of type Unigram; only BPE"),
    ],
)
def test_sentencepiece_structures_that_llama_cpp_has_not(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    _refuse(tmp_path, _sentencepiece_json(**changes), says, rows=1200, eos_token="</s>")


def test_a_native_bpe_with_byte_fallback_is_refused(tmp_path: Path) -> None:
    """It merges pairs in its own order; llama.cpp's SentencePiece merges whatever gives a known piece."""
    tokenizer = _sentencepiece_json()
    seen: set[str] = set()
    one_way = [
        pair
        for pair in tokenizer["model"]["merges"]
        if not ("".join(pair) in seen or seen.add("".join(pair)))
    ]
    assert len(one_way) < len(tokenizer["model"]["merges"])
    tokenizer["model"]["merges"] = one_way
    _refuse(tmp_path, tokenizer, "in 1 of 2 possible ways", rows=1200, eos_token="</s>")


def test_a_model_file_of_another_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.model").write_bytes(sentencepiece_model(size=1000, model_type="unigram"))
    _refuse(tmp_path, None, "SentencePiece model of type Unigram; only BPE", eos_token="</s>")


def test_a_damaged_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "tokenizer.model"
    for content in (sentencepiece_model()[:-100], b"version https://git-lfs.github.com/spec/v1\n", b""):
        path.write_bytes(content)
        error = _refuse(tmp_path, None, "is not a SentencePiece model", eos_token="</s>")
        assert error.at == str(path)


# Faults of the files.


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "merges.txt").write_text("a b\n")
    error = _refuse(tmp_path, None, "there is no tokenizer: neither .* found only merges.txt")
    assert "save_pretrained" in str(error.fix)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", '{"model": {"vocab": {"a', "is not valid JSON"),
        ("tokenizer.json", "", "is not valid JSON"),
        ("tokenizer.json", "\xff\xfe", "is not valid JSON"),
        ("tokenizer.json", "[" * 100_000, "nested too deeply|is not valid JSON"),
        ("tokenizer.json", "[1]", "holds a list, expected an object"),
        ("tokenizer.json", "{}", 'no object "model"'),
        ("tokenizer_config.json", "{", "is not valid JSON"),
        ("generation_config.json", "null", "holds a NoneType"),
    ],
)
def test_files_that_are_not_json(name: str, content: str, says: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", _by_hand(), eos_token="<|im_end|>")
    (folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=says) as caught:
        read_vocab(folder, {}, 6)
    assert caught.value.at == str(folder / name) and caught.value.fix


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (_by_hand(model={"merges": ["a c"]}), "merge 0, 'a' with 'c', needs the token 'c', which"),
        (_by_hand(model={"merges": ["a b", ["b", "a"]]}), "merge 0 is 'a b'; expected two tokens"),
        (_by_hand(model={"merges": [["b", "a"]]}), "needs the token 'ba'"),
        (_by_hand(model={"merges": ["a b a"]}), "expected two tokens"),
        (_by_hand(model={"merges": [["a", 1]]}), "expected two tokens"),
        (_by_hand(model={"merges": None}), '"model.merges" is not a list'),
        (_by_hand(model={"vocab": {}}), '"model.vocab" is not an object with tokens'),
        (_by_hand(model={"vocab": {"a": 0, "b": "1", "ab": 2}}), "token 'b' has the id '1'"),
        (_by_hand(model={"vocab": {"a": 0, "b": -1, "ab": 2}}), "token 'b' has the id -1"),
        (_by_hand(model={"vocab": {"a": 0, "b": 10**12, "ab": 2}}), "token 'b' has the id 1000000000000"),
        (_by_hand(model={"vocab": {"a": 0, "b": 0, "ab": 2}}), "tokens 'a' and 'b' have the same id 0"),
        (_by_hand(model={"end_of_word_suffix": "</w>"}), "end_of_word_suffix is '</w>'"),
        (_by_hand(model={"type": "WordPiece"}), "of type WordPiece; only BPE"),
        (_by_hand(added_tokens=[added(3, "a")]), "token 'a' stands twice, as 0 and 3"),
        (_by_hand(added_tokens=[{"id": "x", "content": "y"}]), "an added token is"),
        (_by_hand(added_tokens={"x": 1}), '"added_tokens" is not a list'),
        (_by_hand(model={"vocab": {"a": 0, "b": 1, "ab": 2, "\ud800": 4}}), "token 4 holds a lone surrogate"),
    ],
)  # fmt: skip
def test_faults_in_a_tokenizer_json(tokenizer: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        read_vocab(folder, {}, 6)
    assert caught.value.exit_code == 3 and caught.value.at and caught.value.fix


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    error = _refuse(tmp_path, _by_hand(), r"'<\|im_end\|>' \(3\) lie beyond the last row 2", rows=3)
    assert "resize_token_embeddings" in str(error.fix)
    many = _by_hand(added_tokens=[added(3 + index, f"<{index}>") for index in range(9)])
    _refuse(
        tmp_path, many, r"'<0>' \(3\), '<1>' \(4\), '<2>' \(5\) and 6 more lie beyond", rows=3, eos_token="ab"
    )


def test_gemmas_image_token_needs_no_row(tmp_path: Path) -> None:
    tokenizer = _by_hand(added_tokens=[added(3, "<|im_end|>"), added(4, "<image_soft_token>")])
    vocab = _read(tmp_path, tokenizer, rows=4)
    assert len(vocab.texts) == 4
    assert any("has no row" in note for note in vocab.notes)


def test_no_end_of_sequence(tmp_path: Path) -> None:
    error = _refuse(tmp_path, _by_hand(), "there is no end-of-sequence token", eos_token=None)
    assert "eos_token" in str(error.fix)
    _refuse(tmp_path, _by_hand(), "there is no end-of-sequence token", eos_token="</s>")


def test_an_id_out_of_range(tmp_path: Path) -> None:
    _refuse(
        tmp_path,
        _by_hand(),
        "eos_token_id is 99, but there are 6",
        eos_token=None,
        config={"eos_token_id": 99},
    )


def test_padding_never_repeats_a_token(tmp_path: Path) -> None:
    vocab = _read(tmp_path, _by_hand(added_tokens=[added(3, "<|im_end|>"), added(5, "[PAD4]")]))
    assert vocab.texts[3:] == ["<|im_end|>", "[[PAD4]]", "[PAD4]"]


def test_a_token_with_nul_is_replaced(tmp_path: Path) -> None:
    vocab = _read(tmp_path, _by_hand(model={"vocab": {"a": 0, "b": 1, "ab": 2, "a\0": 4}}))
    assert (vocab.texts[4], vocab.types[4]) == ("[NUL4]", TokenType.UNUSED)
    assert vocab.known_difference("\0") and not vocab.known_difference("a")


def test_probe_texts_are_the_same_each_time() -> None:
    assert probe_texts(50, seed=3) == probe_texts(50, seed=3)
    assert probe_texts(50, seed=3) != probe_texts(50, seed=4)
    assert len(probe_texts(50)) == len(AWKWARD) + 50
    assert all(probe_texts(500))
    "".join(probe_texts(2000)).encode()  # valid Unicode


def test_texts_with_a_known_difference_are_set_aside(tmp_path: Path) -> None:
    vocab = _read(
        tmp_path, _by_hand(normalizer={"type": "NFC"}, model={"vocab": {"a": 0, "b": 1, "ab": 2, "</s>": 4}})
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
