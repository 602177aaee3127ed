"""Which of llama.cpp's pre-tokenizers a byte-level `tokenizer.json` means.

A GGUF carries no regular expression, only a name in `tokenizer.ggml.pre`: llama.cpp has one list of
expressions compiled in for each name, so a wrong name gives other token ids without any error. Therefore the
"normalizer" and "pre_tokenizer" of tokenizer.json are reduced to the sequence of regular expressions that cut
the text, and looked up in `pre_table`. What is written as no row is may still cut as one does (`cuts`). What
neither tells is refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafold.errors import InputError, UsageError
from lorafold.export.vocab.cuts import steps_by_cuts
from lorafold.export.vocab.differences import NEW_CHARACTERS, NOT_NORMALISED, Difference
from lorafold.export.vocab.parts import brief, leaves
from lorafold.export.vocab.pre_table import (
    ASCII_DIGITS,
    CONTRACTIONS,
    DIGIT,
    DIGITS,
    GAPLESS,
    GPT2_WORDS,
    KNOWN_NAMES,
    PUNCTUATION,
    PUNCTUATION_RUNS,
    ROW_OF,
    TABLE,
)
from lorafold.export.vocab.pre_table import LLAMA3_WORDS as LLAMA3_WORDS
from lorafold.export.vocab.pre_table import PreTokenizer as PreTokenizer
from lorafold.tokenizer.merges import QWEN2_WORDS as QWEN2_WORDS


@dataclass(frozen=True, slots=True)
class Recognised:
    """The pre-tokenizer of one model.

    Attributes:
        name: for `tokenizer.ggml.pre`.
        whole_words: what llama.cpp does for this name; None if the name was given and is not in TABLE.
        differences: for which texts llama.cpp departs from the Hugging Face tokenizer.
    """

    name: str
    whole_words: bool | None
    differences: tuple[Difference, ...] = ()


def find_pre_tokenizer(
    tokenizer: Mapping[str, Any], at: Path, model_type: str | None = None, name: str | None = None
) -> Recognised:
    """Find llama.cpp's name for a byte-level tokenizer.

    Args:
        tokenizer: the parsed tokenizer.json.
        at: its path, for messages.
        model_type: of config.json; decides only between names that mean the same.
        name: a name given by the user; it is taken as it is, when llama.cpp knows it.

    Returns:
        The name and what is known to differ.

    Raises:
        UsageError: `name` is none of llama.cpp's.
        InputError: the structure is not in the table.
    """
    if name is not None:
        if name not in KNOWN_NAMES:
            raise UsageError(
                f"unknown pre-tokenizer {name!r}",
                at="--pre-tokenizer",
                fix=f"choose one of {', '.join(sorted(KNOWN_NAMES))}",
            )
        return _named(name)
    normalised = tuple(_normalizer_differences(tokenizer.get("normalizer"), at))
    rows = _rows(tokenizer.get("pre_tokenizer"), at)
    # Where only the other kind of lookup exists, `bpe` checks whether it can make a difference.
    whole_words = bool(tokenizer["model"].get("ignore_merges"))
    row = next((row for row in rows if row.whole_words == whole_words), rows[0])
    return _named(dict(row.synonyms).get(model_type or "", row.name), normalised)


def _rows(pre_tokenizer: Any, at: Path) -> list[PreTokenizer]:
    """The rows that a pre-tokenizer is: by its structure, else by its cuts.

    Raises:
        InputError: it is none of them.
    """
    try:
        steps = tuple(_steps(pre_tokenizer, at))
        rows = [row for row in TABLE if row.steps == steps]
        if not rows:
            raise _unknown(at, " then ".join(steps) or "nothing")
    except InputError:
        found = steps_by_cuts(pre_tokenizer) if is_byte_level({"pre_tokenizer": pre_tokenizer}) else None
        if found is None:
            raise
        return [row for row in TABLE if row.steps == found]
    return rows


def _named(name: str, normalised: tuple[Difference, ...] = ()) -> Recognised:
    row = ROW_OF.get(name)
    own = (row.differs,) if row and row.differs else ()
    return Recognised(name, row.whole_words if row else None, (NEW_CHARACTERS, *normalised, *own))


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether the pre-tokenizer maps bytes to letters (GPT-2's byte alphabet)."""
    return any(
        part.get("type") == "ByteLevel" for part in leaves(tokenizer.get("pre_tokenizer"), "pretokenizers")
    )


def _normalizer_differences(normalizer: Any, at: Path) -> Iterable[Difference]:
    for part in leaves(normalizer, "normalizers"):
        if part.get("type") != "NFC":
            raise _unknown(at, f"the normalizer {brief(part)}, which llama.cpp does not apply")
        yield NOT_NORMALISED


def _steps(pre_tokenizer: Any, at: Path) -> Iterable[str]:
    """The expressions that cut the text. `ByteLevel` adds one only with `use_regex`; what comes after it sees
    letters in place of bytes, so only cuts of digits may.
    """
    parts = list(leaves(pre_tokenizer, "pretokenizers"))
    for index, part in enumerate(parts):
        kind = part.get("type")
        plain = not part.get("add_prefix_space", True)
        if kind == "ByteLevel" and plain and _cuts_digits(parts[index + 1 :]):
            if part.get("use_regex", True):
                yield GPT2_WORDS
        elif kind == "Punctuation" and part.get("behavior") in ("Isolated", "Contiguous"):
            yield PUNCTUATION if part["behavior"] == "Isolated" else PUNCTUATION_RUNS
        elif kind == "Digits":
            after_bytes = any(before.get("type") == "ByteLevel" for before in parts[:index])
            runs = ASCII_DIGITS if after_bytes else DIGITS
            yield DIGIT if part.get("individual_digits") else runs
        elif kind == "Split" and (regex := _regex(part)) is not None:
            step, how = _normal_form(regex), (part.get("behavior"), bool(part.get("invert")))
            if how != ("Isolated", False) and not (how == ("Removed", True) and step in GAPLESS):
                raise _unknown(
                    at, f"a Split with behavior {how[0]!r}{' and invert' if how[1] else ''}: {brief(part)}"
                )
            yield step
        else:
            raise _unknown(at, f"{brief(part)} as part {index + 1} of {len(parts)}")


def _cuts_digits(parts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all parts cut digits alone."""
    return all(
        part.get("type") == "Digits" or re.fullmatch(r"(\[0-9\])+", _regex(part) or "") is not None
        for part in parts
    )


def _regex(part: Mapping[str, Any]) -> str | None:
    """The expression of a Split, if it has one."""
    pattern = part.get("pattern")
    found = pattern.get("Regex") if isinstance(pattern, Mapping) else None
    return found if isinstance(found, str) else None


# Spellings that mean the same; each is replaced by the one that the constants above use.
_SPELLINGS = (
    (r"'(?i:[sdmt]|ll|ve|re)", CONTRACTIONS),
    (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", CONTRACTIONS),
    (
        r"]?+\p{L}",
        r"]?\p{L}",
    ),  # possessive: what follows cannot match what was taken, so nothing is given back
    (r"]++[\r\n", r"]+[\r\n"),
    (r"|\s*[\r\n]|", r"|\s*[\r\n]+|"),  # \s* takes all line ends but the last anyway
    (r"[\n\r]", r"[\r\n]"),
)
_RAW = {"\r": r"\r", "\n": r"\n", "\t": r"\t"}


def _normal_form(regex: str) -> str:
    """One spelling for expressions that match the same."""
    regex = re.sub("[\r\n\t]", lambda match: _RAW[match[0]], regex)
    for spelling, normal in _SPELLINGS:
        regex = regex.replace(spelling, normal)
    return regex


def _unknown(at: Path, found: str) -> InputError:
    return InputError(
        f"the pre-tokenizer is not one of those that llama.cpp has compiled in: found {found}",
        at=f"{at}: pre_tokenizer",
        fix="if one of llama.cpp's pre-tokenizers cuts the same way, pass it with --pre-tokenizer; "
        "otherwise export with --format folder",
    )
