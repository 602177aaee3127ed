"""Token ids: a GGUF's vocabulary in llama.cpp against Hugging Face's tokenizers, without tolerance.

Every text whose ids may differ is known beforehand (`Vocab.known_difference`, each with its cause in
llama.cpp's sources); on all others the ids must be equal.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from huggingface_ids import compare, huggingface_ids
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_vocab import Job, end_ids, tokenize, write_header
from oracles import shared
from tiny_tokenizers import (
    BYTE_LEVEL,
    GEMMA_NORMALIZER,
    LLAMA2_NORMALIZER,
    added,
    byte_level,
    in_own_order,
    json_of_sentencepiece,
    json_of_unigram,
    sentencepiece_model,
    sequence,
    split,
    write_folder,
)

from lorafold.export.vocab.differences import CASE_AND_MARKS, IDEOGRAPHIC_SPACE, NOT_NORMALISED
from lorafold.export.vocab.pre_tokenizers import TABLE, PreTokenizer
from lorafold.export.vocab.probe import probe_texts
from lorafold.export.vocab.vocab import Vocab, read_vocab
from lorafold.gguf_file.tokens import read_gguf_tokens

REAL = {"qwen2": 151_936, "llama2": 32_000, "llama3": 128_256, "deepseek-llm": 102_400}
BIG, SMALL = ("qwen2", "llama3"), ("llama2", "deepseek-llm")
CHAT = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}


def _write(folder: Path, tmp_path: Path, rows: int, **options: Any) -> tuple[Vocab, Path]:
    vocab = read_vocab(folder, {}, rows, **options)
    return vocab, write_header(tmp_path / "vocab.gguf", vocab.metadata(), vocab.needs_name or "a model")


def _rows(tokenizer: dict[str, Any], padding: int = 0) -> int:
    vocab = tokenizer["model"]["vocab"]
    ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    return 1 + max(*ids, *(token["id"] for token in tokenizer["added_tokens"])) + padding


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BIG, *SMALL])
def test_real_tokenizers_give_the_published_ids(name: str, tmp_path: Path) -> None:
    folder = shared(f"tokenizers/{name}")
    _, gguf = _write(folder, tmp_path, REAL[name])
    vectors = json.loads((folder / "vectors.json").read_text())
    (got,) = tokenize([Job(str(gguf), [vector["text"] for vector in vectors], parse_special=False)])
    assert [vector["ids"] for vector in vectors] == got
    assert len(got) == 47


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_on_twenty_thousand_texts(name: str, tmp_path: Path) -> None:
    folder = shared(f"tokenizers/{name}")
    vocab, gguf = _write(folder, tmp_path, REAL[name])
    texts = probe_texts(20_500, seed=2)
    compared, different = compare(folder, vocab, gguf, texts)
    assert compared >= (20_000 if name != "deepseek-llm" else 19_000)
    # The known differences are real: "</s>" of Qwen2, the ideographic space of DeepSeek.
    assert (different > 0) == (name in ("qwen2", "deepseek-llm"))
    compare(folder, vocab, gguf, texts[:2000], parse_special=False)


# Code points that Unicode has not assigned come seldom: texts with them are set aside, since llama.cpp's
# tables are of another version. Unique, since hypothesis repeats itself; short, since it gives up long lists.
ASSIGNED = st.characters(exclude_categories=("Cs", "Cn"))
ANY_TEXT = st.lists(
    st.text(ASSIGNED, min_size=3, max_size=16) | st.text(max_size=6), min_size=40, max_size=60, unique=True
)


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers_on_any_unicode(name: str, tmp_path: Path) -> None:
    """Texts of hypothesis's choosing, no two alike: 5,000 for each tokenizer, 20,000 together."""
    folder = shared(f"tokenizers/{name}")
    vocab, gguf = _write(folder, tmp_path, REAL[name])
    seen: set[str] = set()

    @settings(
        max_examples=170,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(texts=ANY_TEXT)
    def check(texts: list[str]) -> None:
        compare(folder, vocab, gguf, texts)
        seen.update(text for text in texts if vocab.known_difference(text) is None)

    check()
    assert len(seen) >= 5000, len(seen)


def _table_tokenizer(row: PreTokenizer, corpus: Sequence[str] = ()) -> dict[str, Any]:
    """A small tokenizer of the structure of a row of the table."""
    return byte_level(
        sequence(*(split(step) for step in row.steps), BYTE_LEVEL),
        ignore_merges=row.whole_words,
        # Words that no merge makes: found whole or not at all, according to ignore_merges.
        whole_words=("Ġlazy", "fox", "ĠLAZY", "123") if row.whole_words else (),
        corpus=corpus,
    )


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_each_row_of_the_table_is_what_llama_cpp_does(row: PreTokenizer, tmp_path: Path) -> None:
    tokenizer = _table_tokenizer(row)
    folder = write_folder(tmp_path / "model", tokenizer, **CHAT)
    vocab, gguf = _write(folder, tmp_path, _rows(tokenizer, 7))
    assert vocab.pre == row.name
    texts = probe_texts(600, seed=3, special=("<|im_start|>", "<|im_end|>"))
    compared, different = compare(folder, vocab, gguf, texts)
    assert compared > (630 if row.differs is None else 450)
    assert different == 0 or row.differs is not None


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_each_row_of_the_table_on_many_texts(row: PreTokenizer, tmp_path: Path) -> None:
    tokenizer = _table_tokenizer(row)
    folder = write_folder(tmp_path / "model", tokenizer, **CHAT)
    vocab, gguf = _write(folder, tmp_path, _rows(tokenizer))
    compare(folder, vocab, gguf, probe_texts(2500, seed=4))


EM_SPACES = "\u2003\u2003"


def test_every_known_difference_is_needed(tmp_path: Path) -> None:
    """A text for each cause on which llama.cpp does differ, so that no cause is only feared."""
    nfc = byte_level(sequence(split(_row("qwen2").steps[0]), BYTE_LEVEL), normalizer={"type": "NFC"})
    cases = [
        (NOT_NORMALISED, nfc, "e\u0301"),
        (CASE_AND_MARKS, _table_tokenizer(_row("gpt-4o"), ["नमस्ते"] * 500), "नमस्ते"),
        (CASE_AND_MARKS, _table_tokenizer(_row("tekken"), ["ПA"] * 500), "ПA"),
        (
            IDEOGRAPHIC_SPACE,
            _table_tokenizer(_row("deepseek-llm"), [EM_SPACES] * 500),
            EM_SPACES + "\u3000\xa0",
        ),
    ]
    for number, (cause, tokenizer, text) in enumerate(cases):
        folder = write_folder(tmp_path / str(number), tokenizer, **CHAT)
        vocab, gguf = _write(folder, tmp_path, _rows(tokenizer))
        assert vocab.known_difference(text) == cause.reason
        assert vocab.known_difference("plain text") is None
        (got,) = tokenize([Job(str(gguf), [text])])
        assert got != huggingface_ids(folder / "tokenizer.json", [text]), cause.reason


def _row(name: str) -> PreTokenizer:
    return next(row for row in TABLE if row.name == name)


def _unigram() -> dict[str, Any]:
    model = sentencepiece_model(
        size=1000, model_type="unigram", byte_fallback=False, normalization="nmt_nfkc"
    )
    return json_of_unigram(model, "always")


def _ranked() -> dict[str, Any]:
    made = json_of_sentencepiece(sentencepiece_model(dummy_prefix=False), GEMMA_NORMALIZER, AT_SPACES)
    return in_own_order(made)


@pytest.fixture(scope="module", params=["llama-bpe", "ranked", "unigram"])
def hypothesis_vocab(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Vocab, Path]:
    if request.param == "llama-bpe":
        tokenizer, named = _table_tokenizer(_row("llama-bpe")), CHAT
    else:
        tokenizer = _ranked() if request.param == "ranked" else _unigram()
        named = {"bos_token": "<s>", "eos_token": "</s>"}
    folder = write_folder(tmp_path_factory.mktemp("model"), tokenizer, **named)
    vocab, gguf = _write(folder, folder, _rows(tokenizer))
    return folder, vocab, gguf


@settings(
    max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(texts=st.lists(st.text(max_size=30), min_size=30, max_size=200))
def test_any_unicode_text(texts: list[str], hypothesis_vocab: tuple[Path, Vocab, Path]) -> None:
    folder, vocab, gguf = hypothesis_vocab
    compare(folder, vocab, gguf, texts)


TURNS = ("<|user|>", "<|end|>")

# normalizer, pre-tokenizer, whether the model file puts a space, what the GGUF must say
AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}


SENTENCEPIECE: dict[str, tuple[Any, Any, bool]] = {
    "llama2": (LLAMA2_NORMALIZER, None, True),
    "gemma": (GEMMA_NORMALIZER, AT_SPACES, False),
    "metaspace-never": (None, metaspace("never"), False),
    "metaspace-always": (None, metaspace("always"), True),
    "metaspace-first": (None, metaspace("first"), True),
}


@pytest.mark.parametrize("with_model_file", [True, False], ids=["model-file", "json-only"])
@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_sentencepiece_structures(kind: str, with_model_file: bool, tmp_path: Path) -> None:
    normalizer, pre_tokenizer, prefix = SENTENCEPIECE[kind]
    model = sentencepiece_model(dummy_prefix=prefix)
    tokenizer = json_of_sentencepiece(model, normalizer, pre_tokenizer)
    count = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"] += [added(count + index, text) for index, text in enumerate(TURNS)]
    folder = write_folder(tmp_path / "model", tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    if with_model_file:
        (folder / "tokenizer.model").write_bytes(model)
    vocab, gguf = _write(folder, tmp_path, count + len(TURNS) + 3)
    assert (vocab.model, vocab.pre, vocab.add_space_prefix) == ("llama", "default", prefix)
    compared, different = compare(folder, vocab, gguf, probe_texts(400, seed=5, special=TURNS))
    assert compared > 300
    assert (different > 0) == (kind in ("metaspace-always", "metaspace-first"))


@pytest.mark.parametrize("kind", ["gemma4", "llama"])
def test_merges_in_their_own_order(kind: str, tmp_path: Path) -> None:
    """BPE with bytes for unknown characters whose merges are not all ways: llama.cpp is given the merges."""
    tokenizer = json_of_sentencepiece(sentencepiece_model(dummy_prefix=False), GEMMA_NORMALIZER, AT_SPACES)
    tokenizer = in_own_order(tokenizer)
    count = len(tokenizer["model"]["vocab"])
    channels = ("<|channel>", "<channel|>")
    special = (*TURNS, *channels)
    tokenizer["added_tokens"] += [added(count + index, text) for index, text in enumerate(special)]
    folder = write_folder(tmp_path / "model", tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    vocab = read_vocab(folder, {"model_type": kind}, count + len(special) + 3)
    gguf = write_header(tmp_path / "vocab.gguf", vocab.metadata())
    keys = {entry.key.removeprefix("tokenizer.ggml."): entry.value for entry in vocab.metadata()}
    shown = [vocab.types[vocab.texts.index(text)] == TokenType.USER_DEFINED for text in channels]
    if kind == "gemma4":
        assert (keys["model"], keys["add_bos_token"], keys["add_space_prefix"]) == ("gemma4", True, False)
        assert "pre" not in keys and set(keys["scores"].tolist()) == {-1000.0} and all(shown)
        vocab = read_vocab(folder, {"model_type": kind}, count + len(special) + 3, add_bos=False)
        assert vocab.add_bos  # llama.cpp adds it all the same
        silent = write_header(tmp_path / "silent.gguf", replace(vocab, add_bos=False).metadata())
        assert tokenize([Job(str(silent), ["x"], add_special=True)])[0][0][0] == vocab.special["bos"]
        assert read_gguf_tokens(silent).add_bos
    else:
        assert (keys["model"], keys["pre"]) == ("gpt2", "sarvam-moe")
        assert "scores" not in keys and not any(shown)
    texts = probe_texts(1500, seed=11, special=special)
    for parse_special in (True, False):
        compared, different = compare(folder, vocab, gguf, texts, parse_special)
        assert compared > 1400
        assert (different > 0) == (kind == "gemma4" and not parse_special)


def test_a_prefix_for_the_first_text_only_is_off_in_chats(tmp_path: Path) -> None:
    normalizer, pre_tokenizer, _ = SENTENCEPIECE["metaspace-first"]
    tokenizer = json_of_sentencepiece(sentencepiece_model(), normalizer, pre_tokenizer)
    count = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"] += [added(count + index, text) for index, text in enumerate(TURNS)]
    folder = write_folder(tmp_path / "model", tokenizer, bos_token="<s>", eos_token="</s>")
    vocab, gguf = _write(folder, tmp_path, _rows(tokenizer), end_of_turn="<|end|>")
    assert vocab.add_space_prefix is False
    chats = [
        f"<s><|user|>{text}<|end|>"
        for text in probe_texts(400, seed=6)
        if not text.startswith((" ", "\u2581"))
    ]
    compared, _ = compare(folder, vocab, gguf, chats)
    assert compared > 300


def test_a_model_file_alone_gives_sentencepieces_ids(tmp_path: Path) -> None:
    import sentencepiece

    for prefix in (True, False):
        model = sentencepiece_model(dummy_prefix=prefix)
        folder = write_folder(tmp_path / str(prefix), None, bos_token="<s>", eos_token="</s>")
        (folder / "tokenizer.model").write_bytes(model)
        vocab, gguf = _write(folder, folder, 1200)
        assert (vocab.add_space_prefix, vocab.add_bos, vocab.add_eos) == (prefix, True, False)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        texts = [text for text in probe_texts(800, seed=7) if "\0" not in text]
        (got,) = tokenize([Job(str(gguf), texts, parse_special=False)])
        assert got == [processor.encode(text) for text in texts]


def test_a_model_file_that_changes_text_before_is_known(tmp_path: Path) -> None:
    import sentencepiece

    model = sentencepiece_model(normalization="nmt_nfkc", collapse=True)
    folder = write_folder(tmp_path / "model", None, bos_token="<s>", eos_token="</s>")
    (folder / "tokenizer.model").write_bytes(model)
    vocab, gguf = _write(folder, folder, 1200)
    texts, aside = vocab.comparable(probe_texts(1500, seed=10), parse_special=False)
    assert len(texts) > 300
    assert len(aside) == 2
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    (got,) = tokenize([Job(str(gguf), texts, parse_special=False)])
    assert got == [processor.encode(text) for text in texts]


def test_white_space_after_special_tokens_needs_the_name_phi3(tmp_path: Path) -> None:
    """Phi-3's tokens swallow the white space after them; llama.cpp does so by the model's name only."""
    tokenizer = json_of_sentencepiece(sentencepiece_model(), LLAMA2_NORMALIZER)
    count = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"] = [
        added(0, "<unk>"), added(1, "<s>"), added(2, "</s>", special=False, rstrip=True),
        added(count, "<|endoftext|>"),
        *(added(count + 1 + index, text, rstrip=True) for index, text in enumerate(TURNS)),
    ]  # fmt: skip
    folder = write_folder(tmp_path / "model", tokenizer, bos_token="<s>", eos_token="<|endoftext|>")
    vocab, gguf = _write(folder, tmp_path, _rows(tokenizer))
    assert vocab.needs_name == "phi-3"
    texts = ["<|user|>\nhi<|end|>\n<|user|>  a </s> b <s> c", *probe_texts(300, seed=8, special=TURNS)]
    compared, _ = compare(folder, vocab, gguf, texts)
    assert compared == len(texts)
    unnamed = write_header(tmp_path / "unnamed.gguf", vocab.metadata(), "another model")
    (got,) = tokenize([Job(str(unnamed), texts[:1])])
    assert got != huggingface_ids(folder / "tokenizer.json", texts[:1])


def test_white_space_that_llama_cpp_keeps_is_known(tmp_path: Path) -> None:
    tokenizer = byte_level(sequence(split(_row("qwen2").steps[0]), BYTE_LEVEL))
    tokenizer["added_tokens"][1]["rstrip"] = tokenizer["added_tokens"][2]["lstrip"] = True
    folder = write_folder(tmp_path / "model", tokenizer, **CHAT)
    vocab, gguf = _write(folder, tmp_path, _rows(tokenizer))
    assert vocab.needs_name is None
    compared, different = compare(folder, vocab, gguf, probe_texts(200, seed=9, special=CHAT.values()))
    assert compared > 200
    assert different > 0


@pytest.mark.parametrize("flag", ["single_word", "normalized"])
def test_added_tokens_that_are_not_found_everywhere_are_known(flag: str, tmp_path: Path) -> None:
    """transformers adds tokens with `normalized`: where the normalizer puts a space first, they need one."""
    tokenizer = json_of_sentencepiece(sentencepiece_model(), LLAMA2_NORMALIZER)
    count = len(tokenizer["model"]["vocab"])
    tokenizer["added_tokens"].append(added(count, "<tool>", special=False, **{flag: True}))
    folder = write_folder(tmp_path / "model", tokenizer, bos_token="<s>", eos_token="</s>")
    vocab, gguf = _write(folder, tmp_path, _rows(tokenizer))
    texts = ["a<tool>b", "a <tool> b", "<tool>", *probe_texts(200, seed=12, special=("<tool>",))]
    compared, different = compare(folder, vocab, gguf, texts)
    assert compared >= 200 and different > 0
    assert vocab.known_difference("a<tool>b") is not None and vocab.known_difference("a tool") is None


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("add_eos", [True, False])
def test_bos_and_eos_are_added_as_the_tokenizer_does(add_bos: bool, add_eos: bool, tmp_path: Path) -> None:
    tokenizer = byte_level(sequence(split(_row("llama-bpe").steps[0]), BYTE_LEVEL), ignore_merges=True)
    folder = write_folder(tmp_path / "model", tokenizer, **CHAT, add_bos_token=add_bos, add_eos_token=add_eos)
    vocab, gguf = _write(folder, tmp_path, _rows(tokenizer))
    (((*ids,),),) = tokenize([Job(str(gguf), ["x"], add_special=True)])
    bos, eos = vocab.special["bos"], vocab.special["eos"]
    assert ids == [bos] * add_bos + [vocab.texts.index("x")] + [eos] * add_eos


@pytest.mark.parametrize("eot", [None, "<|turn|>", "<|im_end|>"])
def test_generation_ends_where_the_vocabulary_says(eot: str | None, tmp_path: Path) -> None:
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|turn|>", "<|stop|>")
    tokenizer = byte_level(sequence(split(_row("qwen2").steps[0]), BYTE_LEVEL), specials=specials)
    folder = write_folder(tmp_path / "model", tokenizer, **CHAT)
    stop = _rows(tokenizer) - 1
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [stop]}))
    vocab, gguf = _write(folder, tmp_path, _rows(tokenizer), end_of_turn=eot)
    names = {vocab.texts[token_id] for token_id in end_ids(gguf)}
    assert names == {"<|endoftext|>", "<|im_end|>", "<|stop|>"} | (
        {"<|turn|>"} if eot == "<|turn|>" else set()
    )
