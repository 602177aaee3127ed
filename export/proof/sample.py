"""Which conversations a proof asks, and how many: as many tokens as take about as long as the export itself.

An export reads and rounds every weight, a reference multiplies every weight with every token, so a number of
tokens is a time beside the export's on any machine and for a model of any size. It is counted, not measured,
so that the same export is proven on the same conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lorafold.chat.sandbox import Message
from lorafold.chat.tokenizer import ChatTokenizer

ANSWER_TOKENS = 32  # of an answer that count
CONTEXT = 512  # tokens of prompt and answer
LEAST_TOKENS = 256  # prompts and answers together
_LEAST_WORK = 1.2e11  # weights times tokens: a few seconds of two cores for each time through the model
_RATE = 3.5e10  # weights times tokens in a second of one core (Zen 5); llama.cpp's share is in it
_BEFORE = 4.0  # seconds in which libraries are loaded, tokens and tensors compared
FEWEST = 3  # conversations; with fewer nothing can be said of how sure a figure is
HELD_LOGITS = 40_000_000
"""Of the answers of one model that are held at once."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class AskedChat:
    """A conversation as tokens.

    Attributes:
        ids: prompt and answer.
        start: the index of the answer's first token.
    """

    ids: list[int]
    start: int


@dataclass(frozen=True, slots=True)
class ChatTokens:
    """What is asked, as tokens.

    Attributes:
        ids: the prompt.
        answer: the answer; empty if it is to be the greedy one.
    """

    ids: list[int]
    answer: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.ids) + (len(self.answer) or ANSWER_TOKENS)


@dataclass(frozen=True, slots=True)
class Questions:
    """What may be asked. It holds no tokenizer, so that memory for one is free once there are models.

    Attributes:
        chats: those that fit.
        stops: tokens that end an answer.
    """

    chats: list[ChatTokens]
    stops: frozenset[int]

    @classmethod
    def of(cls, tokenizer: ChatTokenizer, chats: Sequence[Sequence[Message]]) -> Questions:
        """Conversations as tokens, without those that do not fit or whose answer is empty."""
        asked = (_tokens(chat, tokenizer) for chat in chats)
        return cls([each for each in asked if each is not None], frozenset(tokenizer.eos_ids))


def question(chat: Sequence[Message]) -> Sequence[Message]:
    """A chat without its answer."""
    return chat[:-1] if chat[-1]["role"] == "assistant" else chat


def _tokens(chat: Sequence[Message], tokenizer: ChatTokenizer) -> ChatTokens | None:
    asked = question(chat)
    prompt = tokenizer.encode_prompt(asked)
    if len(prompt) + ANSWER_TOKENS > CONTEXT:
        return None
    if asked is chat:
        return ChatTokens(prompt)
    # Cut at the answer's own tokens: what follows the prompt in the whole conversation.
    answer = tokenizer.encode_chat(chat).ids[len(prompt) :][:ANSWER_TOKENS]
    return ChatTokens(prompt, answer) if answer else None


def tokens_for(weights: int) -> int:
    """How many tokens a model of so many weights is asked by default."""
    return max(LEAST_TOKENS, int(_LEAST_WORK / max(weights, 1)))


def estimated_seconds(weights: int, files: int, threads: int, minutes: float = 0.0) -> float:
    """A guess at the wall time of a proof.

    Each weight is multiplied with each token once for the base and for base + adapter, and twice for a file.

    Args:
        weights: of the model.
        files: models that are written.
        threads: cores.
        minutes: how long may be asked; 0: not long.
    """
    least = _BEFORE + weights * tokens_for(weights) * (2 + 2 * files) / (_RATE * threads)
    return max(least, 60 * minutes)


def evenly(items: Sequence[_Item], most: int) -> list[_Item]:
    """So many of some items, evenly spread over all of them; all if there are no more."""
    count = min(len(items), most)
    return [items[index * len(items) // count] for index in range(count)]


def ends_in_time(spent: float, done: int, minutes: float) -> bool:
    """Whether a further round, as long as those that are done, ends within the time that is given.

    Args:
        spent: seconds.
        done: rounds; the first one is asked in any case.
        minutes: how long may be asked.
    """
    return not done or spent * (done + 1) / done <= 60 * minutes


def rounds(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Divide conversations into rounds of about so many tokens, each spread over all of them.

    Args:
        lengths: tokens of each conversation.
        tokens: tokens of one round.

    Returns:
        For each round the numbers of its conversations, in their order; every one is in one round.
    """
    left, parts = list(range(len(lengths))), []
    while left:
        part = _spread(left, lengths, tokens)
        parts.append(part)
        left = [number for number in left if number not in set(part)]
    return parts


def _spread(left: Sequence[int], lengths: Sequence[int], tokens: int) -> list[int]:
    """The largest number of evenly spread conversations that fit; at least the shortest few.

    They are computed side by side, filled up to the longest, so each counts as much as that.
    """
    for count in range(len(left), FEWEST - 1, -1):
        for first in range(len(left) // count):
            part = [left[first + index * len(left) // count] for index in range(count)]
            if count * max(lengths[number] for number in part) <= tokens:
                return part
    return sorted(sorted(left, key=lambda number: lengths[number])[:FEWEST])
