"""BPE on raw UTF-8 whose merges have an order of their own (Gemma 4, Sarvam): `tokenizer.ggml.merges`.

Its spaces are U+2581 and its unknown characters bytes, as in SentencePiece. But SentencePiece merges whatever
gives a piece, and here only the listed pairs are merged, best first. llama.cpp does that for two names
(GEMMA4 and SARVAM_MOE of llm_tokenizer_bpe in its src/llama-vocab.cpp). It cuts the text at line ends first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafold.errors import InputError

# Gemma 4's control tokens that llama.cpp's converter lets any text show: servers look for them in answers.
_SHOWN = frozenset(
    (
        "<|channel>",
        "<channel|>",
        "<|tool_call>",
        "<tool_call|>",
        "<|tool_response>",
        "<tool_response|>",
        '<|"|>',
    )
)


@dataclass(frozen=True, slots=True)
class Ranked:
    """How llama.cpp is told to merge in the listed order.

    Attributes:
        model: `tokenizer.ggml.model`.
        pre: `tokenizer.ggml.pre`, or None if the model implies it.
        score: of every token, which nothing looks at, or None.
        shown: control tokens that any text may show.
        adds_bos: llama.cpp adds BOS whatever the file says.
    """

    model: str
    pre: str | None
    score: float | None = None
    shown: frozenset[str] = frozenset()
    adds_bos: bool = False


IN_GEMMA4 = Ranked("gemma4", None, -1000.0, _SHOWN, adds_bos=True)
IN_ORDER = Ranked("gpt2", "sarvam-moe")


def is_gemma4(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a model for which llama.cpp has its own kind of tokenizer."""
    return str(config.get("model_type", "")).startswith("gemma4")


def require_ranked(
    model: Mapping[str, Any], vocab: Iterable[str], prefix: bool, at: Path, why: str = ""
) -> None:
    """Check that llama.cpp's merging in the listed order gives this tokenizer's ids.

    Args:
        model: the "model" object of tokenizer.json.
        vocab: its tokens.
        prefix: whether a space is put before a text.
        at: the file, for messages.
        why: why SentencePiece's way is out of the question.

    Raises:
        InputError: naming what differs.
    """
    texts = frozenset(vocab)
    problem = ""
    if prefix:
        problem = "a space is put before a text"
    elif missing := [text for text in (f"<0x{byte:02X}>" for byte in range(256)) if text not in texts]:
        problem = f"there is no byte token {missing[0]}"
    elif not model.get("byte_fallback"):
        problem = "byte_fallback is off"
    elif mixed := next((text for text in texts if "\n" in text and text.strip("\n")), None):
        problem = f"the token {mixed!r} joins a line end with other text"
    if problem:
        raise InputError(
            f"{why + '; and ' if why else ''}{problem}: then llama.cpp cannot merge in the listed order",
            at=f"{at}: model",
            fix="choose --format folder",
        )
