"""SentencePiece: tokenizer.model and tokenizer.json agree; what llama.cpp has not is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import TokenType
from small_vocab import read, refuse
from tiny_tokenizers import GEMMA_NORMALIZER, LLAMA2_NORMALIZER, json_of_sentencepiece, sentencepiece_model


def _sentencepiece_json(**changes: Any) -> dict[str, Any]:
    return json_of_sentencepiece(sentencepiece_model(), LLAMA2_NORMALIZER) | changes


def test_sentencepiece_types_and_scores_agree_between_the_two_files(tmp_path: Path) -> None:
    tokenizer = _sentencepiece_json()
    from_json = read(tmp_path / "json", tokenizer, 1203, bos_token="<s>", eos_token="</s>")
    (tmp_path / "both" / "model").mkdir(parents=True)
    (tmp_path / "both" / "model" / "tokenizer.model").write_bytes(sentencepiece_model())
    both = read(tmp_path / "both", tokenizer, 1203, bos_token="<s>", eos_token="</s>")
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
    vocab = read(tmp_path, tokenizer, 1200, bos_token="<s>", eos_token="</s>")
    assert vocab.texts[1150] == "\u2581renamed"
    assert any("is not used" in note for note in vocab.notes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"normalizer": None}, "neither byte-level BPE nor SentencePiece"),
    ],
)
def test_sentencepiece_structures_that_llama_cpp_has_not(
    changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    refuse(tmp_path, _sentencepiece_json(**changes), says, rows=1200, eos_token="</s>")


def test_a_native_bpe_that_puts_a_space_first_is_refused(tmp_path: Path) -> None:
    """SentencePiece merges whatever gives a piece; llama.cpp merges in order only without that space."""
    tokenizer = _sentencepiece_json()
    seen: set[str] = set()
    one_way = [
        pair
        for pair in tokenizer["model"]["merges"]
        if not ("".join(pair) in seen or seen.add("".join(pair)))
    ]
    assert len(one_way) < len(tokenizer["model"]["merges"])
    tokenizer["model"]["merges"] = one_way
    refuse(tmp_path, tokenizer, "in 1 of 2 possible ways.*a space is put before", rows=1200, eos_token="</s>")
    tokenizer["normalizer"] = GEMMA_NORMALIZER
    assert read(tmp_path, tokenizer, 1200, eos_token="</s>").pre == "sarvam-moe"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"byte_fallback": False}, "byte_fallback is off"),
        ({"vocab": {"<0x41>": None}}, "no byte token <0x41>"),
        ({"vocab": {"a\nb": 1200}}, r"joins a line end"),
    ],
)
def test_what_merges_in_order_cannot_do(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    tokenizer = json_of_sentencepiece(sentencepiece_model(dummy_prefix=False), GEMMA_NORMALIZER)
    model = tokenizer["model"]
    own = changes.get("vocab", {})
    vocab = {text: index for text, index in (model["vocab"] | own).items() if index is not None}
    model |= changes | {"vocab": vocab}
    config = {"model_type": "gemma4_text"}
    refuse(tmp_path, tokenizer, says, rows=1201, config=config, eos_token="</s>")


def test_a_model_file_of_another_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.model").write_bytes(sentencepiece_model(size=1000, model_type="word"))
    refuse(tmp_path, None, "SentencePiece model of type Word; only BPE and Unigram", eos_token="</s>")


def test_a_damaged_model_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    path = tmp_path / "model" / "tokenizer.model"
    pointer = b"version https://git-lfs.github.com/spec/v1\n"
    damaged = "is not a SentencePiece model"
    for content, says in (
        (sentencepiece_model()[:-100], damaged),
        (pointer, "Git LFS pointer"),
        (b"", damaged),
    ):
        path.write_bytes(content)
        error = refuse(tmp_path, None, says, eos_token="</s>")
        assert error.at == str(path)
