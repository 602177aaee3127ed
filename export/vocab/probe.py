"""Texts on which two tokenizers are compared: edge cases, and random ones from a seed.

They are made of what pre-tokenizers disagree about: runs of white space, digits, contractions, changes of
script, marks, joiners and controls.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable, Iterator, Sequence

EDGE_CASES: tuple[str, ...] = (
    "The quick brown fox jumps over 13 lazy dogs.",
    "I'm you're he'll we'd they've it's don't I'M YOU'RE HE'LL WE'D THEY'VE IT'S DON'T",
    "'s't're've'm'll'd 'S'T'RE'VE'M'LL'D ''s ’s’t’re’ve",
    "a  b   c    d     e\tf\t\tg \t h\t i",
    " leading", "  leading", "   leading", "trailing ", "trailing  ", "trailing\n", "trailing \n ", " ", "  ",
    "\n", "\r\n", "\n\n", "\n \n", " \n\n ", "\t\n\t", "\r", "a\rb", "a\r\nb", "a\n\n\nb", "a \n \n b",
    "x\u000bx\u000cx",
    "1", "12", "123", "1234", "12345", "1234567890", "3.14159", "1,000,000", "0x1F", "1e-10",
    "2026-11-23T05:48",
    "½ ¾ ² ³ Ⅷ ① ٣٤٥ ४५६ ៣៤ 一二三 𝟘𝟙𝟚",
    "CamelCase snake_case kebab-case SCREAMING_CASE iPhone McDonald HTMLParser eBay A1b2C3",
    "def f(x: int) -> str:\n    return f\"{x!r}\"  # note\n\n\tif x:\n\t\tpass\n",
    "#include <stdio.h>\nint main(void){return 0;}\r\n",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\": \"b\\n\"}}",
    "https://example.org/a/b?c=d&e=%20#f user@example.org C:\\dir\\file.txt ~/.config",
    "$100 €200 £300 ¥400 ₹500 100% ±5 §7 ©®™ °C µm ÷ × ∑ ∫ √ ∞ ≠ ≤ → ⇒",
    "!!! ??? ... --- === ''' \"\"\" ``` ,,, ;;; ((())) [[]] {{}} <<>> // \\\\ ||| &&& *** ___",
    "“quoted” ‘single’ «guillemets» „low“ – en — em … ellipsis ‹x›",
    "Größe Straße façade naïve Ångström œuvre ĳsselmeer ǅ ﬁ ﬂ",
    "e\u0301 n\u0303 a\u030a o\u0308 u\u0308\u0304 q\u0307\u0323",
    "Привет, мир! Ёлка и ёжик. ПРИВЕТ",
    "Γειά σου Κόσμε ΑΒΓ ΐ ΰ",
    "你好，世界！这是一个测试。我在学习机器学习，已经3年了。",
    "繁體中文測試：「引號」、頓號；冒號",
    "こんにちは世界。カタカナとひらがな、漢字ー",
    "안녕하세요 세계! 한국어 테스트입니다.",
    "مرحبا بالعالم، كيف حالك؟ ٱلْعَرَبِيَّة",
    "שלום עולם, מה שלומך? שָׁלוֹם",
    "नमस्ते दुनिया, यह एक परीक्षण है। क्षत्रिय",
    "สวัสดีชาวโลก นี่คือการทดสอบ",
    "Xin chào thế giới, đây là bài kiểm tra",
    "🙂 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇳🇺🇸 1️⃣ ❤️ ☺︎ 🧑🏿‍🚀",
    "a\u200bb\u200cc\u200dd\u2060e\ufefff\u00adg",
    "a\u00a0b\u2003c\u3000d\u2028e\u2029f\u0085g\u1680h\u202fi",
    "\u202eright-to-left\u202c \u2066isolate\u2069",
    "\u0001\u0002\u0007\u0008\u001b[31mred\u001b[0m\u007f",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠜎𠜱𠝹 𐍈 ꙮ \ue000 \U0010fffd",
    "▁ ▁▁ a▁b ▁Hello Ġ Ċ Ā <0x0A> <0xFF>",
    "<|im_start|>user\nhi<|im_end|>\n<s>[INST] x [/INST]</s><bos><start_of_turn>model\n<eos>",
    "<｜User｜>hi<｜Assistant｜> <think>\nwhy\n</think>\n\n",
    "ſ 'ſ K Å İ ı ß ẞ Ǆ ǅ ǆ",
)  # fmt: skip

# Alphabets of the random texts: (weight, a character of it).
_SCRIPTS: tuple[tuple[int, str], ...] = (
    (14, "abcdefghijklmnopqrstuvwxyz"),
    (5, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
    (6, "0123456789"),
    (12, " "),
    (4, "\n\t\r"),
    (7, "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"),
    (3, "äöüßéèñçåøœąčžșŁđÀÉÎÕÜŠŽ"),
    (2, "абвгдежзийклмнопрстуфхцчшщъыьэюяАБВГДЕЖЗ"),
    (2, "αβγδεζηθικλμνξοπρστυφχψωΑΒΓΔΘ"),
    (
        3,
        "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里",
    ),
    (2, "のにをはがでとしてれるいたなあこれそカタカナアイウエオー"),
    (2, "가나다라마바사아자차카타파하는을를이의에한국어"),
    (2, "ابتثجحخدذرزسشصضطظعغفقكلمنهويءآأؤإئىة"),
    (1, "אבגדהוזחטיכלמנסעפצקרשת"),
    (1, "अआइईउऊएऐओऔकखगघचछजझटठडढणतथदधनपफबभमयरलवशषसह"),
    (1, "กขคงจฉชซญดตถทธนบปผฝพฟภมยรลวศษสหอฮ"),
    (1, "\u0301\u0300\u0308\u0327\u0323\u064e\u064f\u0651\u093e\u093f\u0940\u094d\u0e31\u0e34\u0e48"),
    (2, "🙂👍🏽👩👨👧👦🧑🚀❤🏳🌈🇨🇳🇺🇸☺✅⚠🦙"),
    (1, "\u200d\ufe0f\u200b\u200c\u2060\u00ad"),
    (1, "，。！？；：「」『』、（）【】《》…—～"),
    (1, "“”‘’«»–—…‹›„"),
    (1, "\u00a0\u2003\u3000\u2028\u0085"),
    (1, "²³¹½¼¾٠١٢٣४५៣Ⅷ①"),
    (1, "€£¥₹±§©®™°µ÷×∑∫√∞≠≤→⇒"),
    (1, "\u0001\u0007\u001b\u007f\u000b\u000c"),
)

_WORDS = (
    "the",
    "and",
    "don't",
    "I'm",
    "WE'LL",
    "12345",
    "2026",
    "return",
    "http://",
    "</think>",
    "你好",
    "мир",
    "...",
    "\n\n",
)


def probe_texts(random_texts: int = 200, seed: int = 0, special: Sequence[str] = ()) -> list[str]:
    """Texts that show a difference between two tokenizers if there is one.

    Args:
        random_texts: how many random texts to add to the fixed battery.
        seed: of the random ones.
        special: texts of the model's own special tokens; each is put between, before and after ordinary text.

    Returns:
        The texts, never empty ones; the same for the same arguments.
    """
    rng = random.Random(seed)
    texts = [*EDGE_CASES, *(f"a {token} b{token}{token}\n{token} c" for token in special)]
    weights = [weight for weight, _ in _SCRIPTS]
    alphabets = [alphabet for _, alphabet in _SCRIPTS]
    for _ in range(random_texts):
        texts.append("".join(_pieces(rng, weights, alphabets)) or "a")
    return texts


def _pieces(rng: random.Random, weights: Sequence[int], alphabets: Sequence[str]) -> Iterator[str]:
    """A few runs: of one script, of mixed ones, of a repeated character, a word, or any code point."""

    def run_of_one_script() -> str:
        alphabet = rng.choices(alphabets, weights)[0]
        return "".join(rng.choices(alphabet, k=rng.randint(1, 8)))

    def run_of_mixed_scripts() -> str:
        return "".join(
            rng.choice(alphabet) for alphabet in rng.choices(alphabets, weights, k=rng.randint(1, 8))
        )

    def repeated() -> str:
        return rng.choice(rng.choices(alphabets, weights)[0]) * rng.randint(2, 20)

    def word() -> str:
        return rng.choice(("", " ", "  ")) + rng.choice(_WORDS)

    def any_character() -> str:
        low, high = rng.choice(((0x20, 0x800), (0x800, 0xD800), (0xF900, 0x20000)))
        return next(char for char in iter(lambda: chr(rng.randrange(low, high)), "") if _is_assigned(char))

    kinds: tuple[Callable[[], str], ...] = (
        run_of_one_script,
        run_of_mixed_scripts,
        repeated,
        word,
        any_character,
    )
    for kind in rng.choices(kinds, (6, 3, 2, 3, 1), k=rng.randint(1, 8)):
        yield kind()


def _is_assigned(char: str) -> bool:
    # Unicode 3.2 is the one other version that every Python carries; so all versions draw the same texts.
    return unicodedata.ucd_3_2_0.category(char) != "Cn"
