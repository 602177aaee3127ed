"""Which of llama.cpp's pre-tokenizers a byte-level `tokenizer.json` means.

A GGUF carries no regular expression, only a name in `tokenizer.ggml.pre`: llama.cpp has one list of
expressions compiled in for each name (`llm_tokenizer_bpe` in its src/llama-vocab.cpp), so a wrong name gives
other token ids without any error. Therefore the "normalizer" and "pre_tokenizer" of tokenizer.json are
reduced to the sequence of regular expressions that cut the text, and looked up. What is not in the table is
refused, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafold.errors import InputError, UsageError
from lorafold.export.vocab.differences import (
    CASE_AND_MARKS,
    IDEOGRAPHIC_SPACE,
    NEW_CHARACTERS,
    NOT_NORMALISED,
    Difference,
)
from lorafold.tokenizer.merges import QWEN2_WORDS

# The expressions as `tokenizer.json` files spell them, in the normal form of `_normal_form`.
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_OTHER_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
DIGITS = r"\p{N}+"
DIGITS_3 = r"\p{N}{1,3}"
LLAMA3_WORDS = rf"{_ENDINGS}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}|{_OTHER}{_TAIL}"
QWEN35_WORDS = rf"{_ENDINGS}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_TAIL}"
MINICPM5 = rf"{_ENDINGS}|{_LEAD}\p{{L}}+|\p{{N}}+|{_OTHER}{_TAIL}"
SEED_CODER = rf"{_ENDINGS}|{_LEAD}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+{_TAIL}"
TEKKEN = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_OTHER_SLASH}{_TAIL}"
O200K = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+{_ENDINGS}?|{_LEAD}{_UPPER}+{_LOWER}*{_ENDINGS}?"
    rf"|\p{{N}}{{1,3}}|{_OTHER_SLASH}{_TAIL}"
)
_LINE_ENDS = r"[\r\n]"
_DEEPSEEK_CJK = "[一-龥ࠀ-一가-\ud7ff]+"
_DEEPSEEK_PUNCTUATION = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"
_DEEPSEEK_LETTERS = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-"
    "\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ"
    "𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_DEEPSEEK_V3_CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
_DEEPSEEK_V3_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + _TAIL
)

# Expressions that match every text without a gap: cutting out the matches and dropping the rest ("Removed",
# inverted) is then the same as isolating them.
_GAPLESS = frozenset((GPT2_WORDS, LLAMA3_WORDS, QWEN2_WORDS, QWEN35_WORDS, MINICPM5, TEKKEN, O200K))


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One of llama.cpp's compiled-in pre-tokenizers.

    Attributes:
        name: the value of `tokenizer.ggml.pre`.
        steps: the expressions that cut the text, one after the other, in normal form.
        whole_words: llama.cpp looks a whole word up before it merges (`ignore_merges` of tokenizer.json).
        differs: for which texts llama.cpp departs from these expressions, or None.
        synonyms: model_type of config.json → another name that cuts the same way; llama.cpp's own converter
            writes that one for this family.
    """

    name: str
    steps: tuple[str, ...]
    whole_words: bool = False
    differs: Difference | None = None
    synonyms: tuple[tuple[str, str], ...] = ()


# Names that mean the same in llama.cpp (gpt-2 = mpt = olmo, smollm = starcoder = refact, …) appear once,
# under the oldest name, which the most versions of llama.cpp and Ollama know.
TABLE: tuple[PreTokenizer, ...] = (
    PreTokenizer(
        "gpt-2",
        (GPT2_WORDS,),
        synonyms=(("olmo", "olmo"), ("mpt", "mpt"), ("phi", "phi-2"), ("exaone4", "exaone4")),
    ),
    PreTokenizer(
        "smollm",
        (DIGIT, GPT2_WORDS),
        synonyms=(
            ("starcoder2", "starcoder"),
            ("granite", "refact"),
            ("granitemoe", "refact"),
            ("granitemoeshared", "refact"),
            ("cohere", "command-r"),
            ("cohere2", "command-r"),
        ),
    ),
    PreTokenizer(
        "llama-bpe",
        (LLAMA3_WORDS,),
        whole_words=True,
        synonyms=(("lfm2", "lfm2"), ("lfm2_moe", "lfm2"), ("glm4", "glm4"), ("glm4_moe", "glm4")),
    ),
    PreTokenizer(
        "dbrx",
        (LLAMA3_WORDS,),
        synonyms=(
            ("llama", "smaug-bpe"),
            ("chatglm", "chatglm-bpe"),
            ("glm", "chatglm-bpe"),
            ("glm4", "glm4"),
            ("glm4_moe", "glm4"),
        ),
    ),
    PreTokenizer("qwen2", (QWEN2_WORDS,), synonyms=(("stablelm", "stablelm2"),)),
    PreTokenizer("qwen35", (QWEN35_WORDS,)),
    PreTokenizer(
        "deepseek-llm",
        (_LINE_ENDS, _DEEPSEEK_LETTERS, _DEEPSEEK_PUNCTUATION, r"\s+$", _DEEPSEEK_CJK, DIGITS, DIGIT),
        differs=IDEOGRAPHIC_SPACE,
    ),
    PreTokenizer(
        "deepseek-coder",
        (_LINE_ENDS, r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, DIGIT),
    ),
    PreTokenizer(
        "deepseek-v3",
        (DIGITS_3, _DEEPSEEK_V3_CJK, _DEEPSEEK_V3_WORDS),
        synonyms=(("hunyuan_v1_dense", "hunyuan-dense"),),
    ),
    PreTokenizer("tekken", (TEKKEN,), whole_words=True, differs=CASE_AND_MARKS),
    PreTokenizer(
        "gpt-4o", (O200K,), differs=CASE_AND_MARKS, synonyms=(("llama4_text", "llama4"), ("llama4", "llama4"))
    ),
    PreTokenizer("minicpm5", (DIGITS_3, MINICPM5), whole_words=True),
    PreTokenizer("seed-coder", (SEED_CODER,)),
)

# Every name that llama.cpp accepts (llama_vocab::impl::load); `pre_tokenizer=` may give any of them.
_KNOWN_NAMES = """
    a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx
    deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 f2llmv2
    falcon falcon-h1 falcon3 gemma4 gigachat glm4 gpt-2 gpt-4o gpt3-finnish granite-docling
    granite-embed-multi-311m granite-embed-multi-97m grok-2 hunyuan hunyuan-dense jais jais-2 jina-de
    jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano joyai-llm kanana2 kimi-k2 kormo
    laguna lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2 midm-2.0 minerva-7b
    minicpm5 minimax-m2 modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35 refact roberta-bpe
    sarvam-moe seed-coder smaug-bpe smollm solar-open stablelm2 starcoder superbpe talkie tekken tiny_aya
    trillion viking whitespace youtu
"""
KNOWN_NAMES = frozenset(_KNOWN_NAMES.split())


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
        row = next((row for row in TABLE if row.name == name), None)
        return Recognised(name, row.whole_words if row else None)
    differences = [NEW_CHARACTERS, *_normalizer_differences(tokenizer.get("normalizer"), at)]
    steps = tuple(_steps(tokenizer.get("pre_tokenizer"), at))
    whole_words = bool(tokenizer["model"].get("ignore_merges"))
    rows = [row for row in TABLE if row.steps == steps]
    if not rows:
        raise _unknown(at, " then ".join(steps) or "nothing")
    # Where only the other kind of lookup exists, `bpe` checks whether it can make a difference.
    row = next((row for row in rows if row.whole_words == whole_words), rows[0])
    if row.differs:
        differences.append(row.differs)
    return Recognised(dict(row.synonyms).get(model_type or "", row.name), row.whole_words, tuple(differences))


def is_byte_level(tokenizer: Mapping[str, Any]) -> bool:
    """Whether the pre-tokenizer maps bytes to letters (GPT-2's byte alphabet)."""
    return any(
        part.get("type") == "ByteLevel" for part in _flat(tokenizer.get("pre_tokenizer"), "pretokenizers")
    )


def _flat(part: Any, key: str) -> Iterable[Mapping[str, Any]]:
    """The leaves of nested Sequences; `key` is the name of a Sequence's list."""
    if isinstance(part, Mapping):
        if part.get("type") == "Sequence":
            for inner in part.get(key) or ():
                yield from _flat(inner, key)
        else:
            yield part


def _normalizer_differences(normalizer: Any, at: Path) -> Iterable[Difference]:
    for part in _flat(normalizer, "normalizers"):
        if part.get("type") != "NFC":
            raise _unknown(at, f"the normalizer {_brief(part)}, which llama.cpp does not apply")
        yield NOT_NORMALISED


def _steps(pre_tokenizer: Any, at: Path) -> Iterable[str]:
    """The expressions that cut the text. `ByteLevel` comes last and adds one only with `use_regex`."""
    parts = list(_flat(pre_tokenizer, "pretokenizers"))
    for index, part in enumerate(parts):
        kind, last = part.get("type"), index == len(parts) - 1
        if kind == "ByteLevel" and last and not part.get("add_prefix_space", True):
            if part.get("use_regex", True):
                yield GPT2_WORDS
        elif kind == "Digits":
            yield DIGIT if part.get("individual_digits") else DIGITS
        elif kind == "Split" and isinstance(regex := (part.get("pattern") or {}).get("Regex"), str):
            step, how = _normal_form(regex), (part.get("behavior"), bool(part.get("invert")))
            if how != ("Isolated", False) and not (how == ("Removed", True) and step in _GAPLESS):
                raise _unknown(
                    at, f"a Split with behavior {how[0]!r}{' and invert' if how[1] else ''}: {_brief(part)}"
                )
            yield step
        else:
            raise _unknown(at, f"{_brief(part)} as part {index + 1} of {len(parts)}")


# Spellings that mean the same; each is replaced by the one that the constants above use.
_SPELLINGS = (
    (r"'(?i:[sdmt]|ll|ve|re)", _ENDINGS),
    (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _ENDINGS),
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


def _brief(part: Any) -> str:
    text = repr(part)
    return text if len(text) <= 160 else text[:157] + "..."


def _unknown(at: Path, found: str) -> InputError:
    return InputError(
        f"the pre-tokenizer is not one of those that llama.cpp has compiled in: found {found}",
        at=f"{at}: pre_tokenizer",
        fix="if one of llama.cpp's pre-tokenizers cuts the same way, pass it with --pre-tokenizer; "
        "otherwise export with --format folder",
    )
