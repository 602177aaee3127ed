"""Unigram vocabularies: llama.cpp's ids against those of `tokenizers` and of SentencePiece."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from huggingface_ids import compare
from llama_vocab import Job, tokenize, write_header
from oracles import shared
from small_vocab import read, refuse
from tiny_tokenizers import added, json_of_unigram, sentencepiece_model, write_folder

from lorafold.export.vocab.model_file import read_model_spec
from lorafold.export.vocab.probe import probe_texts
from lorafold.export.vocab.vocab import read_vocab
from lorafold.tokenizer.folder import PIECES, tokenizer_files, with_tokenizer_json

TURN = "<|turn|>"
SIZE = 1000


def model(**options: Any) -> bytes:
    return sentencepiece_model(size=SIZE, model_type="unigram", byte_fallback=False, **options)


# normalization, several spaces become one, a space is put first (by the model file; by tokenizer.json)
KINDS: dict[str, tuple[str, bool, bool, str]] = {
    "t5": ("nmt_nfkc", True, True, "always"),
    "plain": ("identity", False, False, "never"),
    "prefix": ("identity", False, True, "always"),
    "first": ("identity", False, True, "first"),
    "mapped": ("nmt_nfkc", False, True, "always"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_a_tokenizer_json(kind: str, tmp_path: Path) -> None:
    normalization, collapse, prefix, scheme = KINDS[kind]
    proto = model(normalization=normalization, collapse=collapse, dummy_prefix=prefix)
    tokenizer = json_of_unigram(proto, scheme, collapse=collapse)
    tokenizer["added_tokens"].append(added(SIZE, TURN))
    folder = write_folder(tmp_path / "model", tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    vocab = read_vocab(folder, {}, SIZE + 3)
    assert (vocab.model, vocab.add_space_prefix, vocab.collapses_spaces) == ("t5", prefix, collapse)
    assert vocab.charsmap == read_model_spec(proto).charsmap
    gguf = write_header(tmp_path / "vocab.gguf", vocab.metadata())
    for parse_special in (True, False):
        texts = probe_texts(2500, seed=31, special=(TURN,) if parse_special else ())
        compared, _ = compare(folder, vocab, gguf, texts, parse_special)
        assert compared > 1000


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["t5", "plain", "prefix", "mapped"])
def test_ids_of_a_model_file(kind: str, tmp_path: Path) -> None:
    normalization, collapse, prefix, _ = KINDS[kind]
    proto = model(normalization=normalization, collapse=collapse, dummy_prefix=prefix)
    folder = write_folder(tmp_path / "model", None, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    (folder / "tokenizer.model").write_bytes(proto)
    vocab = read_vocab(folder, {}, SIZE)
    gguf = write_header(tmp_path / "vocab.gguf", vocab.metadata())
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    texts, _ = vocab.comparable(probe_texts(2500, seed=32), parse_special=False)
    (found,) = tokenize([Job(str(gguf), texts, parse_special=False)])
    wrong = [text for text, ids in zip(texts, found, strict=True) if ids != processor.encode(text)]
    assert len(texts) > 1000 and not wrong, wrong[:3]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "prefix"])
def test_a_model_file_becomes_a_tokenizer_json(kind: str, tmp_path: Path) -> None:
    """As training and chat need it."""
    from tokenizers import Tokenizer

    proto = model(dummy_prefix=KINDS[kind][2])
    folder = write_folder(tmp_path / "model", None, eos_token="</s>")
    (folder / "tokenizer.model").write_bytes(proto)
    tokenizer = Tokenizer.from_file(str(with_tokenizer_json(folder) / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
    vocab = read_vocab(folder, {}, SIZE)
    # Where sums of scores differ by rounding, the two libraries do, too.
    texts = [text for text in probe_texts(600, seed=33) if vocab.known_difference(text) is None]
    found = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert found == [processor.encode(text) for text in texts] and len(texts) > 300


def test_bytes_for_a_line_end_are_refused(tmp_path: Path) -> None:
    proto = sentencepiece_model(size=SIZE, model_type="unigram")
    refuse(
        tmp_path / "json",
        json_of_unigram(proto, "always"),
        r"spells '.n' in bytes",
        rows=SIZE,
        eos_token="</s>",
    )
    (tmp_path / "file" / "model").mkdir(parents=True)
    (tmp_path / "file" / "model" / "tokenizer.model").write_bytes(proto)
    refuse(tmp_path / "file", None, r"spells '.n' in bytes", rows=SIZE, eos_token="</s>")
    # With a piece of its own for the line end, only characters without one differ.
    tokenizer = json_of_unigram(proto, "never", split=False)
    tokenizer["model"]["vocab"].append(["\n", -5.0])
    vocab = read(tmp_path / "own", tokenizer, SIZE + 1, eos_token="</s>")
    assert vocab.known_difference("plain text\n") is None
    assert "become <unk>" in str(vocab.known_difference("\U0001f9ff"))


def _with(**changes: Any) -> dict[str, Any]:
    return json_of_unigram(model(), "always") | changes


BASE64 = base64.b64encode(b"no table").decode()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "Lowercase.*does not do for Unigram"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "?"}}, "not base64"),
        ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, "WhitespaceSplit.*does not do"),
        ({"pre_tokenizer": None}, "spaces are not written as U"),
        (
            {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
            "dropped at the ends alone",
        ),
        ({"model": {"type": "Unigram", "vocab": [["<unk>", 0.0]]}}, "model.unk_id is None"),
        (
            {"model": {"type": "Unigram", "vocab": [["<unk>"]], "unk_id": 0}},
            "not a list of texts with scores",
        ),
    ],
    ids=str,
)
def test_what_llama_cpp_does_not_do_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    refuse(tmp_path, _with(**changes), says, rows=SIZE, eos_token="</s>")


def test_one_space_of_several_without_one_first_is_refused(tmp_path: Path) -> None:
    tokenizer = json_of_unigram(model(), "never", collapse=True)
    refuse(tmp_path, tokenizer, "puts none before each piece of text", rows=SIZE, eos_token="</s>")


def test_the_metadata(tmp_path: Path) -> None:
    proto = model(normalization="nmt_nfkc", collapse=True)
    vocab = read(tmp_path, json_of_unigram(proto, "always", collapse=True), SIZE + 2, eos_token="</s>")
    entries = {entry.key.removeprefix("tokenizer.ggml."): entry for entry in vocab.metadata()}
    values = {key: entry.value for key, entry in entries.items()}
    assert (values["model"], values["pre"], values["unknown_token_id"]) == ("t5", "default", 0)
    assert values["add_space_prefix"] is True and values["remove_extra_whitespaces"] is True
    table = np.asarray(values["precompiled_charsmap"])
    assert table.dtype == np.uint8 and table.tobytes() == read_model_spec(proto).charsmap
    scores = np.asarray(values["scores"])
    assert scores[-1] == -10000.0 and scores[10] < 0


@pytest.mark.parametrize("name", PIECES)
def test_every_name_of_the_model_file(name: str, tmp_path: Path) -> None:
    """T5's, XLM-R's and DeBERTa's names are read as Llama's is, by the export and by everything else."""
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    usual, other = (write_folder(tmp_path / folder, None, **settings) for folder in ("usual", "other"))
    (usual / "tokenizer.model").write_bytes(model())
    (other / name).write_bytes(model())
    headers = [
        write_header(folder / "vocab.gguf", read_vocab(folder, {}, SIZE + 3).metadata()).read_bytes()
        for folder in (usual, other)
    ]
    assert headers[0] == headers[1]
    made = with_tokenizer_json(other) / "tokenizer.json"
    assert made.read_text() == (with_tokenizer_json(usual) / "tokenizer.json").read_text()
    assert name in tokenizer_files(other)


@pytest.mark.slow
def test_published_ids_of_a_spiece_model(tmp_path: Path) -> None:
    real = shared("tokenizers/llama2")
    for source, name in (("tokenizer.model", "spiece.model"), ("tokenizer_config.json",) * 2):
        shutil.copyfile(real / source, tmp_path / name)
    vectors = json.loads((real / "vectors.json").read_text())
    gguf = write_header(tmp_path / "vocab.gguf", read_vocab(tmp_path, {}, 32_000).metadata())
    (got,) = tokenize([Job(str(gguf), [vector["text"] for vector in vectors], parse_special=False)])
    assert [vector["ids"] for vector in vectors] == got
