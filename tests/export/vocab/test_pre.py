"""Pre-tokenizers: recognised in every spelling, llama.cpp's names, never guessed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_ids import compare
from llama_vocab import Job, tokenize, write_header
from oracles import shared
from small_vocab import CHAT, by_hand, read, refuse
from tiny_tokenizers import BYTE_LEVEL, byte_level, sequence, split, write_folder

from lorafold.errors import UsageError
from lorafold.export.vocab.cuts import steps_by_cuts
from lorafold.export.vocab.pre_tokenizers import (
    DIGIT,
    GPT2_WORDS,
    KNOWN_NAMES,
    LLAMA3_WORDS,
    QWEN2_WORDS,
    TABLE,
    find_pre_tokenizer,
)
from lorafold.export.vocab.probe import probe_texts
from lorafold.export.vocab.vocab import read_vocab

DEEPSEEK_V3 = next(row for row in TABLE if row.name == "deepseek-v3").steps
WITH_REGEX = {**BYTE_LEVEL, "use_regex": True}
# As Falcon's tokenizer.json has it: digits are cut after bytes became letters.
FALCON = sequence(
    {"type": "Punctuation", "behavior": "Contiguous"},
    WITH_REGEX,
    {"type": "Digits", "individual_digits": False},
    split("[0-9][0-9][0-9]"),
)


# The expression of LLAMA3_WORDS as OpenAI's tiktoken spells it.
TIKTOKEN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    ("pre_tokenizer", "ignore_merges", "name"),
    [
        (WITH_REGEX, False, "gpt-2"),
        (sequence({"type": "Digits", "individual_digits": True}, WITH_REGEX), False, "smollm"),
        (sequence(split(LLAMA3_WORDS), BYTE_LEVEL), True, "llama-bpe"),
        (sequence(split(LLAMA3_WORDS, "Removed", True), BYTE_LEVEL), False, "dbrx"),
        (sequence(split(TIKTOKEN), BYTE_LEVEL), False, "dbrx"),
        (sequence(sequence(split(QWEN2_WORDS)), sequence(BYTE_LEVEL)), False, "qwen2"),
        (sequence(split(QWEN2_WORDS.replace(r"\r\n", "\r\n")), BYTE_LEVEL), False, "qwen2"),
        (FALCON, False, "falcon"),
    ],
)
def test_spellings_of_the_same_pre_tokenizer(
    pre_tokenizer: dict[str, Any], ignore_merges: bool, name: str, tmp_path: Path
) -> None:
    tokenizer = by_hand(pre_tokenizer=pre_tokenizer, model={"ignore_merges": ignore_merges})
    assert read(tmp_path, tokenizer).pre == name


def test_names_that_mean_the_same_follow_the_family() -> None:
    tokenizer = by_hand(
        pre_tokenizer=sequence({"type": "Digits", "individual_digits": True}, split(GPT2_WORDS), BYTE_LEVEL)
    )
    names = {
        family: find_pre_tokenizer(tokenizer, Path("t"), family).name
        for family in ("llama", "granite", "starcoder2")
    }
    assert names == {"llama": "smollm", "granite": "refact", "starcoder2": "starcoder"}


@pytest.mark.parametrize(
    ("family", "steps", "whole_words", "name"),
    [
        ("exaone4", (split(GPT2_WORDS),), False, "exaone4"),
        ("cohere2", (split(DIGIT), split(GPT2_WORDS)), False, "command-r"),
        ("granitemoe", (split(DIGIT), split(GPT2_WORDS)), False, "refact"),
        ("stablelm", (split(QWEN2_WORDS),), False, "stablelm2"),
        ("lfm2_moe", (split(LLAMA3_WORDS),), True, "lfm2"),
        ("glm4_moe", (split(LLAMA3_WORDS),), False, "glm4"),
        ("glm4_moe", (split(LLAMA3_WORDS),), True, "glm4"),
        ("hunyuan_v1_dense", tuple(map(split, DEEPSEEK_V3)), False, "hunyuan-dense"),
    ],
)
def test_the_families_own_name(
    family: str, steps: tuple[dict[str, Any], ...], whole_words: bool, name: str
) -> None:
    """The name that llama.cpp's converter gives a family's tokenizer, by its structure and model_type."""
    tokenizer = by_hand(pre_tokenizer=sequence(*steps, BYTE_LEVEL), model={"ignore_merges": whole_words})
    assert find_pre_tokenizer(tokenizer, Path("t"), family).name == name


def test_every_name_of_the_table_is_one_of_llama_cpps() -> None:
    names = {row.name for row in TABLE} | {name for row in TABLE for _, name in row.synonyms}
    assert names <= KNOWN_NAMES
    assert len({(row.steps, row.whole_words) for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"pre_tokenizer": sequence(split(r"\w+"), BYTE_LEVEL)}, r"\\w\+"),
        ({"pre_tokenizer": sequence(split(" ", "MergedWithNext"), BYTE_LEVEL)}, "MergedWithNext"),
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
    error = refuse(tmp_path, by_hand(**changes), found)
    assert "--pre-tokenizer" in str(error.fix)
    named = read(tmp_path, by_hand(**changes), options={"pre_tokenizer": "viking"})
    assert named.pre == "viking"


def test_a_name_that_llama_cpp_has_not_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown pre-tokenizer 'gpt-9'") as caught:
        read(tmp_path, by_hand(), options={"pre_tokenizer": "gpt-9"})
    assert "qwen2" in str(caught.value.fix)


def test_whole_words_that_the_other_kind_would_lose_are_refused(tmp_path: Path) -> None:
    """`ignore_merges` where llama.cpp's pre-tokenizer has none: only if it can make a difference."""
    reached = by_hand(model={"ignore_merges": True})
    assert read(tmp_path, reached).pre == "qwen2"
    lost = by_hand(
        model={
            "ignore_merges": True,
            "vocab": {"a": 0, "b": 1, "ab": 2, "ba": 4, "b!a": 5},
            "merges": ["a b"],
        }
    )
    error = refuse(tmp_path, lost, r"^.*1 tokens, 'ba' among them, are only found by looking up whole words")
    assert "ignore_merges" in str(error.at)


@pytest.mark.slow
def test_every_name_of_llama_cpp_is_known(tmp_path: Path) -> None:
    """Each name loads, and cuts texts as the row does that stands for it; an invented one does not load."""
    texts = probe_texts(60, seed=21)
    for row in TABLE:
        tokenizer = byte_level(
            sequence(*(split(step) for step in row.steps), BYTE_LEVEL),
            ignore_merges=row.whole_words,
            size=400,
            whole_words=("\u0120lazy", "fox", "123"),
        )
        folder = write_folder(tmp_path / row.name, tokenizer, **CHAT)
        vocab = read_vocab(folder, {}, 500)
        found = {}
        for name in row.names:
            gguf = write_header(tmp_path / "vocab.gguf", replace(vocab, pre=name).metadata())
            (found[name],) = tokenize([Job(str(gguf), texts)])
        assert all(ids == found[row.name] for ids in found.values()), row.name


@pytest.mark.parametrize("name", ["qwen2", "deepseek-llm", "llama-bpe", "gpt-4o", "afmoe"])
def test_another_structure_that_cuts_alike(name: str) -> None:
    """A pre-tokenizer that is written as no row is known by what it does; this cut never comes."""
    row = next(row for row in TABLE if row.name == name)
    never = split("a(?=bcdefghijk)")
    tokenizer = by_hand(
        pre_tokenizer=sequence(never, *map(split, row.steps), BYTE_LEVEL),
        model={"ignore_merges": row.whole_words},
    )
    found = find_pre_tokenizer(tokenizer, Path("t"))
    assert (found.name, found.whole_words) == (name, row.whole_words)
    assert row.differs is None or row.differs in found.differences


@pytest.mark.slow
def test_real_tokenizers_are_told_by_their_cuts() -> None:
    for name, pre in {"qwen2": "qwen2", "deepseek-llm": "deepseek-llm", "llama3": "llama-bpe"}.items():
        tokenizer = json.loads((shared(f"tokenizers/{name}") / "tokenizer.json").read_text())
        steps = steps_by_cuts(tokenizer["pre_tokenizer"])
        assert pre in {row.name for row in TABLE if row.steps == steps}, name


def test_no_two_rows_cut_alike() -> None:
    """The texts on which cuts are compared tell every row from every other."""
    steps = list(dict.fromkeys(row.steps for row in TABLE))
    for row in TABLE:
        written = sequence(*map(split, row.steps), BYTE_LEVEL)
        assert steps_by_cuts(written) == row.steps, row.name
    assert len(steps) == 25


def test_cuts_of_no_row_or_of_another_kind_are_refused(tmp_path: Path) -> None:
    odd = sequence(split(r"\p{N}{7}"), split(GPT2_WORDS), BYTE_LEVEL)
    assert steps_by_cuts(odd) is None
    assert steps_by_cuts(sequence(split("(?<"), BYTE_LEVEL)) is None
    refuse(tmp_path, by_hand(pre_tokenizer=odd), r"found \\p\{N\}\{7\} then ")


@pytest.mark.slow
def test_falcons_own_structure(tmp_path: Path) -> None:
    tokenizer = byte_level(FALCON)
    folder = write_folder(tmp_path / "falcon", tokenizer, **CHAT)
    vocab = read_vocab(folder, {}, 1000)
    assert vocab.pre == "falcon"
    gguf = write_header(tmp_path / "vocab.gguf", vocab.metadata())
    compared, different = compare(folder, vocab, gguf, probe_texts(600, seed=31))
    assert compared > 600 and different == 0
