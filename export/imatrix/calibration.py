"""The texts that a model is calibrated on: the user's own, mixed with a few general ones.

Own chats alone would make a file that is good at them and at little else. One in four is general.
Without chats of the user's, those that the adapter was trained on are taken, if they are still there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

from lorafold.artifacts import read_manifest
from lorafold.chat.tokenizer import ChatTokenizer
from lorafold.errors import InputError, LorafoldError
from lorafold.export.inputs import Inputs
from lorafold.export.proof.sample import AskedChat, evenly
from lorafold.records.chats import read_chats

GENERAL_SHARE = 0.25
"""Of the conversations; not chosen by measurement."""
GENERAL_ALONE = "general chats"
"""Where texts come from if none are the user's."""
GENERAL_TEXTS = Path(__file__).with_name("general.jsonl")
LONGEST_PROMPT, LONGEST_ANSWER = 256, 64  # tokens; a prompt's without what the template writes unasked
_MOST = 4000  # chats that are read of a file
_WIDE = 0.9  # of the chats, by length, are asked: a batch is as wide as its longest one


class HasTokens(Protocol):
    """A text as tokens."""

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""


AnyText = TypeVar("AnyText", bound=HasTokens)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Texts, in two parts that share none.

    Attributes:
        measured: what is learnt from.
        checked: what the result is tested with.
        words: where they come from.
    """

    measured: list[AskedChat]
    checked: list[AskedChat]
    words: str


def calibration(inputs: Inputs, data: Path | None, tokens: int) -> Calibration:
    """Choose the texts.

    Args:
        inputs: the model.
        data: the user's chats, or None.
        tokens: about how many are in each part.

    Raises:
        InputError: the file is missing or malformed, the tokenizer has no chat template, or every
            conversation is too long.
    """
    tokenizer = ChatTokenizer.from_folder(inputs.tokenizer, inputs.template)
    general = list(_asked(GENERAL_TEXTS, tokenizer))
    own, words = _own(inputs, data, tokenizer)
    mine, others = alike(own), alike(general)
    parts = [mixed(mine[half::2], others[half::2], tokens) for half in (0, 1)]
    if not all(parts):
        raise InputError(
            "every conversation is too long to be asked", at=inputs.tokenizer, fix="choose with --quant"
        )
    return Calibration(parts[0], parts[1], words)


def mixed(own: Sequence[AskedChat], general: Sequence[AskedChat], tokens: int) -> list[AskedChat]:
    """About so many tokens of both, spread over all of them."""
    if not own:
        return _spread(general, tokens)
    shares = ((own, 1 - GENERAL_SHARE), (general, GENERAL_SHARE))
    return [each for chats, share in shares for each in _spread(chats, int(tokens * share))]


def longest_prompt(tokenizer: ChatTokenizer) -> int:
    """How many tokens a prompt may have: a template's own system prompt may be longer than any question."""
    return LONGEST_PROMPT + len(tokenizer.encode_prompt([{"role": "user", "content": "?"}]))


def alike(chats: Sequence[AnyText]) -> list[AnyText]:
    """Without the few longest."""
    lengths = sorted(len(each.ids) for each in chats)
    return [each for each in chats if len(each.ids) <= lengths[int(_WIDE * (len(chats) - 1))]]


def _spread(chats: Sequence[AnyText], tokens: int) -> list[AnyText]:
    """Evenly spread ones that have about so many tokens together, one at least."""
    mean = sum(len(each.ids) for each in chats) / max(len(chats), 1)
    return evenly(chats, max(int(tokens / max(mean, 1)), 1))


def _own(inputs: Inputs, data: Path | None, tokenizer: ChatTokenizer) -> tuple[list[AskedChat], str]:
    """The user's chats, and where they come from."""
    if data is not None:
        own = list(islice(_asked(data, tokenizer), _MOST))
        if not own:
            return [], f"general chats; those in {data.name} are too long"
        return own, f"{data.name} and general chats"
    for adapter, _ in inputs.adapters:
        manifest = read_manifest(adapter.folder) or {}
        for named in (manifest.get("config") or {}).get("data") or ():
            path = Path(str(named))
            if not path.is_file():
                continue
            try:
                return list(islice(_asked(path, tokenizer), _MOST)), f"{path.name} and general chats"
            except LorafoldError:  # it was read with a layout that is not known here
                continue
    return [], GENERAL_ALONE


def _asked(path: Path, tokenizer: ChatTokenizer) -> Iterator[AskedChat]:
    """Conversations as tokens; those that are too long are left out, long answers are cut."""
    longest = longest_prompt(tokenizer)
    for example in read_chats(path, text="whole"):
        if example.text is not None:
            ids, start = tokenizer.tokenize(example.text, False), 1
        elif example.messages[-1]["role"] == "assistant":
            ids = list(tokenizer.encode_chat(example.messages).ids)
            start = len(tokenizer.encode_prompt(example.messages[:-1]))
        else:
            ids, start = list(tokenizer.encode_chat(example.messages).ids), 1
        if start <= longest and len(ids) > start:
            yield AskedChat(ids[: start + LONGEST_ANSWER], start)
