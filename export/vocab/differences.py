"""Texts for which llama.cpp is known to give other token ids than the Hugging Face tokenizer.

On every other text the proof of an export compares ids without tolerance. Each reason here was found in the
sources of llama.cpp (src/llama-vocab.cpp, src/unicode.cpp), and the report names it if it concerns the model.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gguf import TokenType

from lorafold.errors import InputError
from lorafold.export.vocab.files import AddedToken
from lorafold.export.vocab.parts import library_tokenizer
from lorafold.export.vocab.special import END_OF_GENERATION
from lorafold.export.vocab.token_rows import TokenRows


@dataclass(frozen=True, slots=True)
class Difference:
    """One known difference.

    Attributes:
        reason: a sentence for the report.
        concerns: whether it can change the ids of a text.
        parse_special: whether it comes only with (True) or only without (False) recognising special tokens
            in the text; None: with and without.
        everywhere: it holds for all models alike, so that a report on one need not name it.
    """

    reason: str
    concerns: Callable[[str], bool]
    parse_special: bool | None = None
    everywhere: bool = False


NOT_NORMALISED = Difference(
    "llama.cpp does not normalise: text that is not in Unicode's form NFC gets other ids",
    lambda text: not unicodedata.is_normalized("NFC", text),
)
# llama.cpp's table of categories is of Unicode 15, tokenizers' of 16; Python knows up to 15.1 before 3.14.
NEW_CHARACTERS = Difference(
    "llama.cpp does not know the categories of characters that came with Unicode 16",
    lambda text: not text.isascii() and any(unicodedata.category(char) == "Cn" for char in text),
    everywhere=True,
)
# Texts that llama.cpp takes for control tokens whatever their type: ends of generation, and those for filling
# in the middle.
_FILL_IN_THE_MIDDLE = """
    <|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>
    <|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>
    <|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>
    <|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]
    <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>
"""
TAKEN_AS_CONTROL = END_OF_GENERATION | frozenset(_FILL_IN_THE_MIDDLE.split())
# Texts that it takes for user-defined tokens whatever their type, for one family (gpt-oss).
TAKEN_AS_TEXT = frozenset(("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>", "<|end|>"))
RETYPED = TAKEN_AS_CONTROL | TAKEN_AS_TEXT

# m: mark, l/u: lower/upper case beyond ASCII, a/A: in ASCII, o: letter without case.
_CASES = {"Mn": "m", "Mc": "m", "Me": "m", "Ll": "l", "Lu": "u", "Lt": "u", "Lm": "o", "Lo": "o"}
_CUT_BY_CASE = re.compile("m|[lao]o*u|[lu]o*A")


def _case(char: str) -> str:
    if char.isascii():
        return "a" if char.islower() else "A" if char.isupper() else "."
    return _CASES.get(unicodedata.category(char), ".")


# unicode_regex_split collapses Lu, Ll, Lt, Lm and Lo into one letter class: there is no case beyond ASCII,
# and a letter there counts as upper and lower at once. Words differ where case would have cut them, or not.
CASE_AND_MARKS = Difference(
    "llama.cpp's pre-tokenizer tells upper from lower case only in ASCII and keeps combining marks out of "
    "words: words in mixed case in other scripts, and in scripts with vowel signs, may be cut elsewhere",
    lambda text: not text.isascii() and _CUT_BY_CASE.search("".join(map(_case, text))) is not None,
)
# unicode_regex_split replaces white space beyond ASCII by U+000B before it matches ranges of characters.
IDEOGRAPHIC_SPACE = Difference(
    "llama.cpp does not find the ideographic space (U+3000) in this pre-tokenizer's range of punctuation",
    lambda text: "\u3000" in text,
)


def _number_beyond_ascii(text: str) -> bool:
    return not text.isascii() and any(not char.isascii() and char.isnumeric() for char in text)


# \d is ASCII in C++, and any decimal digit in tokenizer.json.
OTHER_DIGITS = Difference(
    "llama.cpp does not count numbers beyond 0 to 9 as digits, or counts more, where it cuts them in threes",
    _number_beyond_ascii,
)
# d: decimal digit, n: other number, s: white space on a line, w: other part of a word.
_CUT_BY_DIGITS = re.compile("n[dn]|dn|[dn]{4}[dn]*w|ss[dn]")


def _digit(char: str) -> str:
    kind = unicodedata.category(char)
    if kind[0] == "N":
        return "d" if kind == "Nd" else "n"
    if char.isspace():
        return "l" if char in "\r\n" else "s"
    return "w" if char.isalnum() or kind in ("Mn", "Mc", "Pc") else "."


# unicode_regex_split_custom_afmoe stands in for an expression that asks for the end of a word.
THOUSANDS = Difference(
    "llama.cpp cuts digits in threes even if letters follow or spaces stand before, and knows more digits",
    lambda text: _CUT_BY_DIGITS.search("".join(map(_digit, text))) is not None,
)


def texts_taken_as_control(texts: Collection[str]) -> Difference:
    """Ordinary tokens whose text llama.cpp takes for a control token."""
    named = ", ".join(repr(text) for text in sorted(texts))
    return Difference(
        f"llama.cpp takes the ordinary token {named} for a control token, by its text",
        lambda text: any(token in text for token in texts),
        parse_special=True,
    )


def texts_taken_as_text(texts: Collection[str]) -> Difference:
    """Control tokens that llama.cpp takes for parts of the text."""
    named = ", ".join(sorted(texts)[:3])
    return Difference(
        f"llama.cpp parses {named} in any text, even if control tokens are to stay text",
        lambda text: any(token in text for token in texts),
        parse_special=False,
    )


def texts_marked_here(texts: Collection[str]) -> Difference:
    """Tokens that are CONTROL in the GGUF although the tokenizer does not mark them special."""
    named = ", ".join(sorted(texts)[:3])
    return Difference(
        f"the tokenizer parses {named} in any text, even if control tokens are to stay text; "
        "llama.cpp does not",
        lambda text: any(token in text for token in texts),
        parse_special=False,
    )


def stripped_space(before: Collection[str], after: Collection[str]) -> Difference:
    """Special tokens that swallow the white space before or after them, which llama.cpp keeps."""
    patterns = [rf"\s{re.escape(token)}" for token in before] + [rf"{re.escape(token)}\s" for token in after]
    found = re.compile("|".join(patterns))
    named = ", ".join(sorted({*before, *after})[:3])
    return Difference(
        f"llama.cpp keeps white space beside special tokens that swallow it here ({named})",
        lambda text: found.search(text) is not None,
    )


def found_elsewhere(tokenizer: Mapping[str, Any] | None, added: Iterable[AddedToken]) -> Iterator[Difference]:
    """Added tokens that the tokenizer does not find wherever a text holds them, as llama.cpp does."""
    tokens = list(added)
    if single := [token.content for token in tokens if token.single_word]:
        beside = re.compile("|".join(rf"\w{re.escape(text)}|{re.escape(text)}\w" for text in single))
        yield Difference(
            f"the tokenizer finds {', '.join(single[:3])} only as a word of its own, llama.cpp anywhere",
            lambda text: beside.search(text) is not None,
        )
    if changed := _changed_by_normalizer(tokenizer, [token.content for token in tokens if token.normalized]):
        yield Difference(
            f"the tokenizer looks for {', '.join(sorted(changed)[:3])} as its normalizer writes it, such as "
            "only after a space; llama.cpp finds it anywhere",
            lambda text: any(token in text for token in changed),
        )


def _changed_by_normalizer(tokenizer: Mapping[str, Any] | None, texts: Collection[str]) -> frozenset[str]:
    if not texts or tokenizer is None or not tokenizer.get("normalizer"):
        return frozenset()
    try:
        normalizer = library_tokenizer(normalizer=tokenizer["normalizer"]).normalizer
    except Exception as error:  # the library raises Exception itself
        problem = f"the tokenizers library cannot read it ({' '.join(str(error).split())})"
        raise InputError(problem, at="tokenizer.json: normalizer", fix="download the file again") from error
    return frozenset(text for text in texts if normalizer.normalize_str(text) != text)


def literal_space_mark(mark: str) -> Difference:
    """Tokens for runs of spaces, which llama.cpp finds as spaces only."""
    return Difference(
        f"llama.cpp does not use the tokens for runs of spaces if a text holds {mark!r} itself",
        lambda text: mark in text,
    )


def doubled_prefix(special: Collection[str], mark: str) -> Difference:
    """A space before text that begins with one: llama.cpp adds it all the same."""
    found = re.compile(f"(?:{'|'.join(['^', *map(re.escape, special)])})[ {mark}]")
    return Difference(
        "llama.cpp puts a space before text that begins with a space, too",
        lambda text: found.search(text) is not None,
    )


def prefix_nowhere(special: Collection[str]) -> Difference:
    """A space before the very first text only, if llama.cpp was told to put none."""
    return Difference(
        "the tokenizer puts a space before a text that begins without a special token; llama.cpp, set for "
        "chats (which begin with one), does not",
        lambda text: bool(text) and not text.startswith(tuple(special)),
    )


def prefix_everywhere(special: Collection[str]) -> Difference:
    """A space before the very first text only, if llama.cpp puts one after each special token."""
    return Difference(
        "llama.cpp puts a space after each special token, the tokenizer only before the very first text",
        lambda text: any(token in text for token in special),
    )


COLLAPSED_SPACES = Difference(
    "the tokenizer makes one space of several and drops those at the ends; llama.cpp keeps them",
    lambda text: "\u2581" in text or "  " in text or text != text.strip(" "),
)
# SentencePiece's rules besides "identity" begin with NFKC and turn control characters into spaces.
MAPPED_CHARACTERS = Difference(
    "llama.cpp does not apply the tokenizer's map of characters (Unicode's form NFKC, controls to spaces)",
    lambda text: not unicodedata.is_normalized("NFKC", text) or any(map(_is_mapped, text)),
)


def _is_mapped(char: str) -> bool:
    return unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Zs", "Cn", "Mn") and char != " "


def nul_token() -> Difference:
    """A token that holds a NUL character."""
    return Difference(
        "llama.cpp cannot represent a token with a NUL character, and spells it in bytes",
        lambda text: "\0" in text,
    )


# llama.cpp swallows white space after special tokens for one family only, which it knows by general.name
# containing "phi-3", and there for all special tokens but these (llama_vocab::impl::load).
_PHI3_KEEPS = frozenset(("<unk>", "<s>", "<|endoftext|>"))


def needed_name(layout: TokenRows, added: Iterable[AddedToken]) -> str | None:
    """What `general.name` must contain for llama.cpp to swallow the same white space as this tokenizer."""
    strips = {token.content for token in added if token.rstrip}
    fits = "</s>" in strips and not strips & _PHI3_KEEPS
    # llama.cpp looks these up without asking whether they exist, and throws.
    return "phi-3" if fits and layout.id_of.keys() >= _PHI3_KEEPS else None


def token_differences(layout: TokenRows, added: Iterable[AddedToken]) -> Iterator[Difference]:
    """Known differences that come from single tokens."""
    tokens = list(added)
    before = [token.content for token in tokens if token.lstrip]
    after = [] if needed_name(layout, tokens) else [token.content for token in tokens if token.rstrip]
    if before or after:
        yield stripped_space(before, after)
    type_of = {text: layout.types[layout.id_of[text]] for text in RETYPED & layout.id_of.keys()}
    if taken := [text for text in TAKEN_AS_CONTROL & type_of.keys() if type_of[text] == TokenType.NORMAL]:
        yield texts_taken_as_control(taken)
    unmarked = [token.content for token in tokens if token.special and not token.marked]
    marked = {token.content for token in tokens if token.marked}
    unmarked += [
        text
        for text in (TAKEN_AS_CONTROL & type_of.keys()) - marked
        if type_of[text] == TokenType.USER_DEFINED
    ]
    if unmarked:
        yield texts_marked_here(unmarked)
    shown = [text for text in TAKEN_AS_TEXT & type_of.keys() if type_of[text] == TokenType.CONTROL]
    shown += [
        text
        for text in marked - TAKEN_AS_CONTROL
        if text in layout.id_of and layout.types[layout.id_of[text]] == TokenType.USER_DEFINED
    ]
    if shown:
        yield texts_taken_as_text(shown)
    if any("\0" in text for text in layout.id_of):
        yield nul_token()
