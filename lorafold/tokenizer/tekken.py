"""tekken.json -> tokenizer.json, for Mistral's models that bring no other tokenizer.

The file holds tokens as bytes in the order of their ranks, and the expression that cuts words:

    "config": {"pattern", "default_vocab_size", "default_num_special_tokens", "version"}
    "vocab": [{"rank", "token_bytes": base64}, …]
    "special_tokens": [{"rank", "token_str", "is_control"}, …]

Special tokens have the first ids, and the token of rank r the id r + their number. Text is cut as tiktoken
does it: a word that is a token is one; otherwise the neighbours that together give the token of the lowest
rank are joined, again and again. So every pair that gives a token is a merge, as good as its token's rank.
"""

from __future__ import annotations

import base64
import binascii
import json
import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorafold.errors import InputError
from lorafold.files.jsonfile import read_object

TEKKEN = "tekken.json"
# What the settings of a folder with a tekken.json alone would say.
SETTINGS: Mapping[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "add_bos_token": True,
    "add_eos_token": False,
}
# Versions up to v7 may leave the list of special tokens out; these are the ones they mean.
_UNLISTED = """
    <unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS]
    [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT]
    [TOOL_CONTENT]
"""
_LAST_UNLISTED = 7
_MOST = 10_000_000  # no vocabulary has more


def from_tekken(path: Path) -> str:
    """The text of the tokenizer.json for a tekken.json.

    Raises:
        InputError: the file is damaged or incomplete.
    """
    data = read_object(path, limit=256 << 20)
    config = data.get("config")
    wanted = {"pattern": str, "default_vocab_size": int, "default_num_special_tokens": int}
    if not isinstance(config, dict) or not all(type(config.get(key)) is kind for key, kind in wanted.items()):
        raise _damaged(path, f'"config" is not an object with {", ".join(wanted)}')
    count = config["default_num_special_tokens"]
    if not 0 <= count <= config["default_vocab_size"] <= _MOST:
        raise _damaged(path, f"{count:,} special tokens of {config['default_vocab_size']:,}")
    special = _special_tokens(data, config, path)
    ranks = _ranks(data.get("vocab"), config["default_vocab_size"] - count, path)
    texts = {token: _letters(token) for token in ranks}
    vocab = {entry["content"]: entry["id"] for entry in special}
    if clash := vocab.keys() & set(texts.values()):
        raise _damaged(path, f"the special token {min(clash)!r} is an ordinary one, too")
    vocab |= {texts[token]: rank + count for token, rank in ranks.items()}
    merges = [[texts[left], texts[right]] for left, right in _merges(ranks)]
    model = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    pattern = {
        "type": "Split",
        "pattern": {"Regex": config["pattern"]},
        "behavior": "Isolated",
        "invert": False,
    }
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": special,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [pattern, byte_level]},
            "post_processor": _begins_with("<s>", vocab),
            "decoder": byte_level,
            "model": model,
        },
        ensure_ascii=False,
    )


def _special_tokens(data: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """Entries of "added_tokens"; ranks without a token are filled up as `<SPECIAL_n>`."""
    count = config["default_num_special_tokens"]
    listed = data.get("special_tokens")
    if listed is None:
        version = str(config.get("version", "")).removeprefix("v")
        if not version.isdecimal() or int(version) > _LAST_UNLISTED:
            raise _damaged(path, 'there is no list "special_tokens"')
        listed = [{"rank": rank, "token_str": text} for rank, text in enumerate(_UNLISTED.split())]
    texts = {rank: (f"<SPECIAL_{rank}>", True) for rank in range(count)}
    for entry in listed if isinstance(listed, list) else [listed]:
        rank, text = (entry.get("rank"), entry.get("token_str")) if isinstance(entry, dict) else (None, None)
        if type(rank) is not int or rank not in texts or not isinstance(text, str) or not text:
            raise _damaged(path, f"a special token is {entry!r}; expected a text and a rank below {count}")
        texts[rank] = text, bool(entry.get("is_control", True))
    if len({text for text, _ in texts.values()}) < count:
        raise _damaged(path, "two special tokens have the same text")
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": rank, "content": text, **plain, "special": control} for rank, (text, control) in texts.items()
    ]


def _ranks(entries: Any, count: int, path: Path) -> dict[bytes, int]:
    """Bytes → rank of the first `count` tokens: all single bytes, and no rank twice."""
    ranks: dict[bytes, int] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        try:
            if (rank := operator.index(entry["rank"])) < count:
                ranks[base64.b64decode(entry["token_bytes"], validate=True)] = rank
        except (TypeError, KeyError, ValueError, binascii.Error):
            raise _damaged(path, f"a token is {entry!r}; expected a rank and its bytes in base64") from None
    if sorted(ranks.values()) != list(range(count)):
        raise _damaged(path, f"{len(ranks)} tokens do not have the ranks from 0 to {count - 1}")
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise _damaged(path, f"there is no token for the byte {missing[0]}")
    return ranks


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every pair of tokens that gives a token, best first."""
    for token in sorted(ranks, key=ranks.__getitem__):
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        found = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        yield from sorted(found, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _alphabet() -> list[str]:
    """GPT-2's letter for each byte: printable ones stand for themselves, the others follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_ALPHABET = _alphabet()


def _letters(token: bytes) -> str:
    return "".join(map(_ALPHABET.__getitem__, token))


def _begins_with(token: str, vocab: Mapping[str, int]) -> dict[str, Any] | None:
    if token not in vocab:
        return None
    text, first = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [vocab[token]], "tokens": [token]}},
    }


def _damaged(path: Path, problem: str) -> InputError:
    return InputError(f"is not Mistral's tekken.json: {problem}", at=path, fix="download it again")
