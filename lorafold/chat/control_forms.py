"""What looks like a control token: three sets, for three askers who know different things.

A control token steers the model and is no text. A tokenizer should mark each as special, but many do not, and
who sees no tokenizer has only the look of a text to go by.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from lorafold.chat.controls import split_controls

# Brackets of turn markers. Fine-tunes often add ChatML's without marking them; DeepSeek's have wide bars.
BARRED = (("<|", "|>"), ("<｜", "｜>"))

# Unmarked tokens that llama.cpp's converter makes control tokens by their name alone.
CONVERTER_NAMES = frozenset(("<pad>", "<mask>", "<2mass>", "[@BOS@]"))

# Turn markers and sentence ends of the families in use, for texts without a known vocabulary.
USUAL = re.compile(
    "|".join(
        (
            r"<[|｜][^<>|｜\s]{1,40}[|｜]>",  # ChatML, Llama 3, DeepSeek, ChatGLM, Phi, …
            r"<\|(?:turn|channel|tool)>|<(?:turn|channel|tool)\|>",  # Gemma 4
            r"\[\|[^\[\]|\s]{1,40}\|\]",  # EXAONE
            r"<</?SYS>>",
            r"</?s>|<(?:bos|eos|unk|sop|eop|eoa|eoh|eod)>|\[gMASK\]",  # Llama 2, GLM, InternLM
            r"<(?:start_of_turn|end_of_turn|end_of_utterance|seed:bos|seed:eos)>",  # Gemma, SmolVLM, Seed
            r"<(?:reserved_|SPECIAL_|extra_id_|unused)\d{1,4}>",  # Baichuan, Nemotron, Gemma
            r"\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS)\]",  # Mistral
        )
    )
)


def is_turn_marker(token: str) -> bool:
    """Of an added token: whether chat and training treat it as a control token, marked or not.

    Only barred tokens that say something: these are what templates write around turns.
    """
    return len(token) > 4 and any(token.startswith(left) and token.endswith(right) for left, right in BARRED)


def is_converter_special(token: str) -> bool:
    """Of an added token: whether llama.cpp's converter makes a control token of it, marked or not.

    A GGUF has to say the same as the converter's, so this follows its rule to the letter: unused slots and a
    few names count too, which no template writes.
    """
    return (
        any(token.startswith(left) and token.endswith(right) for left, right in BARRED)
        or (token.startswith("<unused") and token.endswith(">"))
        or token in CONVERTER_NAMES
    )


def usual_control_text(text: str) -> list[str]:
    """Of any text: what in it is a control token of some family in use, each once, in order."""
    return list(dict.fromkeys(USUAL.findall(text)))


def written_markers(text: str, controls: frozenset[str]) -> list[str]:
    """Of a text for a known tokenizer: its control tokens, and the usual ones, that the text writes out."""
    own = [piece for piece, special in split_controls(text, controls) if special]
    return list(dict.fromkeys([*own, *usual_control_text(text)]))


def without_ends(text: str, markers: Collection[str]) -> tuple[str, list[str]]:
    """A text without those of the markers that it ends with, and these, the last first."""
    ends: list[str] = []
    while last := next((marker for marker in markers if text.rstrip().endswith(marker)), ""):
        text = text.rstrip().removesuffix(last)
        ends.append(last)
    return text, ends
