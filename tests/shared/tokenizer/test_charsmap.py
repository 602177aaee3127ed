"""SentencePiece's table of characters: those that it makes are right, and no bit may lead out of one."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest
from tiny_tokenizers import sentencepiece_model

from lorafold.errors import InputError
from lorafold.tokenizer.charsmap import check_charsmap
from lorafold.tokenizer.loading import load_tokenizer
from lorafold.tokenizer.merges import from_merges
from lorafold.tokenizer.protobuf import fields

AT = Path("tokenizer.model")


def _charsmap(rule: str) -> bytes:
    model = sentencepiece_model(size=900, model_type="unigram", normalization=rule)
    (spec,) = [value for number, value in fields(model) if number == 3]
    assert isinstance(spec, memoryview)
    (table,) = [value for number, value in fields(spec) if number == 2]
    assert isinstance(table, memoryview)
    return bytes(table)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf"])
def test_sentencepieces_own_tables_pass(rule: str) -> None:
    table = _charsmap(rule)
    assert len(table) > 200_000
    check_charsmap(table, AT)


def test_none_is_right() -> None:
    check_charsmap(b"", AT)


@pytest.mark.parametrize(
    "table",
    [
        b"\1\0",
        b"\xff\xff\xff\xff" + bytes(1024),  # the library would make room for 4 GB
        (6).to_bytes(4, "little") + bytes(1028),
        (1024).to_bytes(4, "little") + b"\xff\xff\xff\xff" * 256 + b"a\0",  # a place beyond the texts
        (1024).to_bytes(4, "little") + b"\1\0\0\x80" * 256 + "é\0".encode(),  # in the middle of a character
        (1024).to_bytes(4, "little") + b"\0\xfc\xff\x7f" * 256 + b"a\0",  # children beyond the trie
        (1024).to_bytes(4, "little") + b"\0\x01\0\0" * 256 + b"a\0",  # a leaf that is none
    ],
)
def test_what_leads_out_of_the_table_is_refused(table: bytes) -> None:
    with pytest.raises(InputError, match="table of characters is damaged"):
        check_charsmap(table, AT)


@pytest.mark.slow
def test_what_passes_does_not_make_the_library_panic() -> None:
    """The library's panic is no Exception, and about one in fifty tables made this way causes one."""
    from tokenizers import normalizers

    table, dice, passed = _charsmap("nmt_nfkc"), random.Random(20), 0
    text = "".join(
        chr(dice.choice((dice.randrange(32, 127), dice.randrange(160, 0x3000)))) for _ in range(900)
    )
    for _ in range(800):
        changed = bytearray(table)
        for _ in range(dice.choice((1, 5, 50))):
            changed[dice.choice((dice.randrange(4, 2000), dice.randrange(4, len(table))))] = dice.randrange(
                256
            )
        try:
            check_charsmap(bytes(changed), AT)
            normalizers.Precompiled(bytes(changed)).normalize_str(text)
            passed += 1
        except Exception as error:
            assert isinstance(error, InputError) or "Cannot parse" in str(error)
    assert passed > 20


def test_the_tables_of_a_tokenizer_json_are_looked_at(tmp_path: Path) -> None:
    """Also one within a Sequence; the library itself would end the process, or panic at a text."""
    path = tmp_path / "tokenizer.json"
    table = base64.b64encode(b"\xff\xff\xff\xff" + bytes(1024)).decode()
    part = {"type": "Precompiled", "precompiled_charsmap": table}
    path.write_text(json.dumps({"normalizer": {"type": "Sequence", "normalizers": [part]}, "model": {}}))
    with pytest.raises(InputError, match="table of characters is damaged"):
        load_tokenizer(path)


def test_a_number_beyond_all_vocabularies_is_refused(tmp_path: Path) -> None:
    """The library would make room for all numbers up to it: 16 GB for four billion."""
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 4294967295}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    with pytest.raises(InputError, match=r"vocab\.json.* number 4,294,967,295"):
        from_merges(tmp_path)
