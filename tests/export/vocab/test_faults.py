"""Every fault of a tokenizer's files, by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from small_vocab import by_hand, read, refuse
from tiny_tokenizers import added, write_folder

from lorafold.errors import InputError
from lorafold.export.vocab.vocab import read_vocab


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "merges.txt").write_text("a b\n")
    error = refuse(tmp_path, None, "there is no tokenizer: neither .* found only merges.txt")
    assert "save_pretrained" in str(error.fix)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tokenizer.json", '{"model": {"vocab": {"a', "truncated or invalid JSON"),
        ("tokenizer.json", "", "the file is empty"),
        ("tokenizer.json", "\xff\xfe", "not UTF-8"),
        ("tokenizer.json", "version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("tokenizer.json", '{"model": {}, "model": {}}', "the key 'model' is given twice"),
        ("tokenizer.json", "[" * 100_000, "nested too deeply"),
        ("tokenizer.json", "[1]", "got a JSON list, expected an object"),
        ("tokenizer.json", "{}", 'no object "model"'),
        ("tokenizer_config.json", "{", "truncated or invalid JSON"),
        ("generation_config.json", "null", "got a JSON NoneType"),
    ],
)
def test_files_that_are_not_json(name: str, content: str, says: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", by_hand(), eos_token="<|im_end|>")
    (folder / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=says) as caught:
        read_vocab(folder, {}, 6)
    assert caught.value.at == str(folder / name) and caught.value.fix


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        (by_hand(model={"merges": ["a c"]}), "merge 0, 'a' with 'c', needs the token 'c', which"),
        (by_hand(model={"merges": ["a b", ["b", "a"]]}), "merge 0 is 'a b'; expected two tokens"),
        (by_hand(model={"merges": [["b", "a"]]}), "needs the token 'ba'"),
        (by_hand(model={"merges": ["a b a"]}), "expected two tokens"),
        (by_hand(model={"merges": [["a", 1]]}), "expected two tokens"),
        (by_hand(model={"merges": None}), '"model.merges" is not a list'),
        (by_hand(model={"vocab": {}}), '"model.vocab" is not an object with tokens'),
        (by_hand(model={"vocab": {"a": 0, "b": "1", "ab": 2}}), "token 'b' has the id '1'"),
        (by_hand(model={"vocab": {"a": 0, "b": -1, "ab": 2}}), "token 'b' has the id -1"),
        (by_hand(model={"vocab": {"a": 0, "b": 10**12, "ab": 2}}), "token 'b' has the id 1000000000000"),
        (by_hand(model={"vocab": {"a": 0, "b": 0, "ab": 2}}), "tokens 'a' and 'b' have the same id 0"),
        (by_hand(model={"end_of_word_suffix": "</w>"}), "end_of_word_suffix is '</w>'"),
        (by_hand(model={"type": "WordPiece"}), "of type WordPiece; only BPE"),
        (by_hand(added_tokens=[added(3, "a")]), "token 'a' stands twice, as 0 and 3"),
        (by_hand(added_tokens=[{"id": "x", "content": "y"}]), "an added token is"),
        (by_hand(added_tokens={"x": 1}), '"added_tokens" is not a list'),
        (by_hand(model={"vocab": {"a": 0, "b": 1, "ab": 2, "\ud800": 4}}), "token 4 holds a lone surrogate"),
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
    error = refuse(tmp_path, by_hand(), r"'<\|im_end\|>' \(3\) lie beyond the last row 2", rows=3)
    assert "resize_token_embeddings" in str(error.fix)
    many = by_hand(added_tokens=[added(3 + index, f"<{index}>") for index in range(9)])
    refuse(
        tmp_path, many, r"'<0>' \(3\), '<1>' \(4\), '<2>' \(5\) and 6 more lie beyond", rows=3, eos_token="ab"
    )


def test_gemmas_image_token_needs_no_row(tmp_path: Path) -> None:
    tokenizer = by_hand(added_tokens=[added(3, "<|im_end|>"), added(4, "<image_soft_token>")])
    vocab = read(tmp_path, tokenizer, rows=4)
    assert len(vocab.texts) == 4
    assert any("has no row" in note for note in vocab.notes)


def test_no_end_of_sequence(tmp_path: Path) -> None:
    error = refuse(tmp_path, by_hand(), "there is no end-of-sequence token", eos_token=None)
    assert "eos_token" in str(error.fix)
    refuse(tmp_path, by_hand(), "there is no end-of-sequence token", eos_token="</s>")


def test_an_id_out_of_range(tmp_path: Path) -> None:
    refuse(
        tmp_path,
        by_hand(),
        "eos_token_id is 99, but there are 6",
        eos_token=None,
        config={"eos_token_id": 99},
    )
