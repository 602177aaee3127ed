"""llama.cpp's compiled-in pre-tokenizers: their names, and the expressions that each stands for.

The expressions are spelled as in `tokenizer.json` files, in the normal form of `pre_tokenizers`. Names and
what they mean are those of llama_vocab::impl::load and llm_tokenizer_bpe in llama.cpp's src/llama-vocab.cpp
(as of llama-cpp-python 0.3.36); the tests compare every row's ids with llama.cpp's, and every name with its
row.
"""

from __future__ import annotations

from dataclasses import dataclass

from lorafold.export.vocab.differences import (
    CASE_AND_MARKS,
    IDEOGRAPHIC_SPACE,
    OTHER_DIGITS,
    THOUSANDS,
    Difference,
)
from lorafold.tokenizer.merges import QWEN2_WORDS

# The expressions as `tokenizer.json` files spell them, in the normal form of `_normal_form`.
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_OTHER_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT = r"\p{N}"
DIGITS = r"\p{N}+"
ASCII_DIGITS = "[0-9]+"
DIGITS_3 = r"\p{N}{1,3}"
LLAMA3_WORDS = rf"{CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}|{_OTHER}{_TAIL}"
QWEN35_WORDS = rf"{CONTRACTIONS}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_TAIL}"
MINICPM5 = rf"{CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}+|{_OTHER}{_TAIL}"
SEED_CODER = rf"{CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+{_TAIL}"
TEKKEN_WORDS = rf"{_LEAD}{_UPPER}*{_LOWER}+|{_LEAD}{_UPPER}+{_LOWER}*|\p{{N}}|{_OTHER_SLASH}{_TAIL}"
O200K = (
    rf"{_LEAD}{_UPPER}*{_LOWER}+{CONTRACTIONS}?|{_LEAD}{_UPPER}+{_LOWER}*{CONTRACTIONS}?"
    rf"|\p{{N}}{{1,3}}|{_OTHER_SLASH}{_TAIL}"
)
PUNCTUATION = r"[\p{P}!-/:-@\[-`{-~]"
PUNCTUATION_RUNS = PUNCTUATION + "+"
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

UFAKZEKA = rf"{_LEAD}\p{{L}}+|\p{{N}}|{_OTHER}{_TAIL}"
JAIS2 = (
    rf"{CONTRACTIONS}|{_LEAD}\p{{L}}+|\p{{N}}{{1,3}}|{_OTHER}|\s*[\r\n]+"
    + "".join(rf"|\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))
    + r"|\s{1,2}(?!\S)|\s{1}"
)
EXAONE_MOE = (
    rf"{CONTRACTIONS}|{_LEAD}(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]?{_TAIL}"
)
YOUTU = O200K.replace(DIGITS_3, DIGIT)
_YOUTU_CJK = "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥\u3040-ゟ゠-ヿ]+"
_THOUSANDS = r"\d{1,3}(?=(?:\d{3})*\b)"
_THREES = r"(?=(\d{3})+(?!\d))"
_AFMOE_SCRIPTS = (
    "[一-鿿㐀-䶿豈-\ufaff\u3040-ゟ゠-ヿ･-ﾟ⼀-\u2fdfเ-\u0e7f\u0e80-\u0effក-\u17ffက-႟ꩠ-ꩿꧠ-\ua9ff가-\ud7afᄀ-ᇿ]+"
)
_LINES = r"[^\n]+|[\n]+"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_SPARK_WORDS = _DEEPSEEK_V3_WORDS.replace(r"[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+", r"[\p{P}\p{S}]+|[\r\n]")

# Expressions that match every text without a gap: cutting out the matches and dropping the rest ("Removed",
# inverted) is then the same as isolating them.
GAPLESS = frozenset(
    (GPT2_WORDS, LLAMA3_WORDS, QWEN2_WORDS, QWEN35_WORDS, MINICPM5, TEKKEN_WORDS, O200K, UFAKZEKA)
)


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
        same: further names that llama.cpp treats alike in all that a GGUF of ours leaves to the name.
    """

    name: str
    steps: tuple[str, ...]
    whole_words: bool = False
    differs: Difference | None = None
    synonyms: tuple[tuple[str, str], ...] = ()
    same: str = ""

    @property
    def names(self) -> frozenset[str]:
        """All names that mean this row."""
        return frozenset((self.name, *self.same.split()))


# Names that mean the same in llama.cpp appear once, under the oldest name, which the most versions of
# llama.cpp and Ollama know; `same` has the others. What else a name says there (whether BOS is added, spaces
# are cleaned up when text is made of tokens) a GGUF of ours says itself, or nobody asks.
TABLE: tuple[PreTokenizer, ...] = (
    PreTokenizer(
        "gpt-2",
        (GPT2_WORDS,),
        synonyms=(("olmo", "olmo"), ("mpt", "mpt"), ("phi", "phi-2"), ("exaone4", "exaone4")),
        same="""mpt olmo phi-2 exaone4 jais trillion gigachat mellum a.x-4.0 granite-docling modern-bert
            roberta-bpe jina-de jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es""",
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
        same="starcoder refact command-r codeshell exaone minerva-7b mellum2",
    ),
    PreTokenizer(
        "llama-bpe",
        (LLAMA3_WORDS,),
        whole_words=True,
        synonyms=(
            ("lfm2", "lfm2"),
            ("lfm2_moe", "lfm2"),
            ("glm4", "glm4"),
            ("glm4_moe", "glm4"),
            ("falcon_h1", "falcon-h1"),
        ),
        same="llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano glm4 glm5",
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
        same="smaug-bpe chatglm-bpe",
    ),
    PreTokenizer(
        "qwen2",
        (QWEN2_WORDS,),
        synonyms=(
            ("stablelm", "stablelm2"),
            ("hunyuan_v1_moe", "hunyuan"),
            ("bailing_moe", "bailingmoe"),
            ("bailing_moe_v2", "bailingmoe2"),
            ("llada2_moe", "llada-moe"),
            ("solar_open", "solar-open"),
        ),
        same="""stablelm2 deepseek-r1-qwen hunyuan megrez kormo f2llmv2 solar-open grok-2 bailingmoe
            bailingmoe2 llada-moe""",
    ),
    PreTokenizer("qwen35", (QWEN35_WORDS,)),
    PreTokenizer("ufakzeka", (UFAKZEKA,)),
    PreTokenizer("laguna", (_LINES, QWEN2_WORDS)),
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
        same="hunyuan-dense joyai-llm hy_v4",
    ),
    PreTokenizer("spark2_5", (DIGITS_3, _DEEPSEEK_V3_CJK, _SPARK_WORDS, DIGIT)),
    PreTokenizer("tekken", (TEKKEN_WORDS,), whole_words=True, differs=CASE_AND_MARKS),
    PreTokenizer(
        "gpt-4o",
        (O200K,),
        differs=CASE_AND_MARKS,
        synonyms=(("llama4_text", "llama4"), ("llama4", "llama4"), ("minimax_m2", "minimax-m2")),
        same="llama4 minimax-m2 kanana2 talkie",
    ),
    PreTokenizer("granite-embed-multi-97m", (O200K,), whole_words=True, differs=CASE_AND_MARKS),
    # llama.cpp takes \p{Lu} and \p{Ll} for any letter here and does not cut before a capital; no merge joins
    # what was cut there in training, so the ids are the same.
    PreTokenizer("youtu", (_YOUTU_CJK, YOUTU), whole_words=True),
    PreTokenizer("tiny_aya", (_THOUSANDS, O200K), differs=THOUSANDS, same="cohere2moe"),
    PreTokenizer("minicpm5", (DIGITS_3, MINICPM5), whole_words=True),
    PreTokenizer("seed-coder", (SEED_CODER,)),
    PreTokenizer("jais-2", (JAIS2,)),
    PreTokenizer("exaone-moe", (EXAONE_MOE,)),
    PreTokenizer("superbpe", (DIGITS, _THREES), differs=OTHER_DIGITS),
    PreTokenizer("afmoe", (DIGITS, _THREES, _AFMOE_SCRIPTS, _DEEPSEEK_V3_WORDS), differs=THOUSANDS),
    # llama.cpp leaves digits with the space before them; no merge joins what was cut there in training, so
    # the ids are the same.
    PreTokenizer("falcon", (PUNCTUATION_RUNS, GPT2_WORDS, ASCII_DIGITS, "[0-9][0-9][0-9]")),
    PreTokenizer(
        "chameleon",
        (
            *("<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", r"([\t\n]|    |  )"),
            *(DIGIT, PUNCTUATION, GPT2_WORDS),
        ),
    ),
    PreTokenizer("bloom", (_BLOOM,), same="poro-chat gpt3-finnish"),
    PreTokenizer("viking", (_BLOOM, DIGIT)),
)

# Names that no tokenizer.json means: an old one, and that of a tiktoken file. They can be given
# (`--pre-tokenizer`).
_UNTOLD = "default kimi-k2"
# Not byte-level: `ranked` writes the first two, and models that only embed use the others.
_NOT_BYTE_LEVEL = "gemma4 sarvam-moe granite-embed-multi-311m whitespace"

# Every name that llama.cpp accepts (llama_vocab::impl::load); `pre_tokenizer=` may give any of them.
KNOWN_NAMES = frozenset(
    name
    for names in (*(row.names for row in TABLE), _UNTOLD.split(), _NOT_BYTE_LEVEL.split())
    for name in names
)
ROW_OF = {name: row for row in TABLE for name in row.names}
