"""What every engine offers, whatever runs the model: a stream of tokens, counting, and scores.

An engine holds one model (or one model with its adapters). It keeps what it has read of the last conversation
and reads only what is new of the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from lorafold.chat.sandbox import Message
from lorafold.errors import InputError
from lorafold.serve.config import Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Reason = Literal["stop", "length", "context", "cancelled"]
DEFAULT_CONTEXT = 8192  # tokens, where the model allows more and nobody asked


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt has been read; the first token follows.

    Attributes:
        prompt_tokens: tokens of the prompt, or None where the engine does not say.
        reused: how many of them were still in memory from the turn before.
        dropped: messages at the beginning that did not fit and were left out.
        elapsed: seconds since the request.
    """

    prompt_tokens: int | None
    reused: int = 0
    dropped: int = 0
    elapsed: float = 0.0


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer.

    Attributes:
        text: what it adds to the answer; empty while a character of several tokens is incomplete.
        id: its number, or None where the engine does not say.
        logprob: natural logarithm of its probability under the model (before sampling), or None.
        elapsed: seconds since the request.
    """

    text: str
    id: int | None
    logprob: float | None
    elapsed: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer has ended.

    Attributes:
        reason: the model stopped; max_tokens was reached; the context is full; the user interrupted.
        elapsed: seconds since the request.
        text: what was left of an incomplete character.
        tokens: of the answer, where only the end tells (servers send several at once).
        prompt_tokens: of the prompt, where only the end tells.
    """

    reason: Reason
    elapsed: float
    text: str = ""
    tokens: int | None = None
    prompt_tokens: int | None = None


Event = Started | Token | Finished


class Cancel:
    """Tells a running stream to end, from another thread."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._actions: list[Callable[[], None]] = []

    def set(self) -> None:
        """End the stream. Actions are run once, here, by the caller's thread."""
        self._event.set()
        while self._actions:
            self._actions.pop()()

    def is_set(self) -> bool:
        """Whether the stream is to end."""
        return self._event.is_set()

    def on_set(self, action: Callable[[], None]) -> None:
        """Run `action` when the stream is to end: closing the socket it waits for."""
        self._actions.append(action)
        if self._event.is_set():
            self.set()


@dataclass(frozen=True, slots=True)
class About:
    """Which weights answer.

    Attributes:
        name: a short name for headings, such as the file's.
        source: as the user spelled it.
        kind: "llama.cpp", "transformers", "ollama" or "openai".
        quantization: "Q4_K_M", "bfloat16", ... or "" where it is not known.
        digest: computes the sha256 of the weights, base and adapter (reads every byte), or what the server
            says; "" where nothing is known.
        notes: what the user should know before relying on answers.
    """

    name: str
    source: str
    kind: str
    quantization: str
    digest: Callable[[], str] = field(default=lambda: "", compare=False)
    notes: tuple[str, ...] = ()


class Engine(Protocol):
    """One model that answers."""

    about: About
    """Which weights answer."""

    @property
    def context(self) -> int | None:
        """Tokens that a conversation may hold, or None where the engine does not say."""

    @property
    def scorer(self) -> Scorer | None:
        """The model's probabilities for given tokens; None where the engine keeps them to itself."""

    @property
    def controls(self) -> frozenset[str] | None:
        """Control tokens that stay text where people write them; None where a server builds the prompt."""

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """Answer a conversation.

        Args:
            messages: dicts with "role" and "content", the last one the user's.
            sampling: how tokens are drawn; its seed is not None.
            cancel: ends the stream early.

        Yields:
            `Started`, then `Token`s, then one `Finished`.

        Raises:
            InputError: the conversation does not fit, or the template refuses it.
            SystemFault: the machine or the server failed.
        """

    def count_tokens(self, text: str) -> int | None:
        """How many tokens a text has, or None where the engine does not say."""

    def close(self) -> None:
        """Free the model."""


class Scorer(Protocol):
    """The probabilities a model gives to text it did not write."""

    @property
    def vocabulary(self) -> str:
        """A digest of the vocabulary: models with equal digests number their tokens alike."""

    def tokenize(self, text: str) -> list[int]:
        """The tokens of a text, control tokens in it taken as text."""

    def pieces(self, ids: Sequence[int]) -> list[bytes]:
        """The bytes of each token."""

    def log_probabilities(
        self, messages: Sequence[Message], answer: Sequence[int]
    ) -> Iterator[NDArray[np.float32]]:
        """For each token of an answer, the log-probabilities of the whole vocabulary at its place.

        Args:
            messages: the conversation before the answer.
            answer: token ids.

        Yields:
            Arrays (vocabulary,), one per token of `answer`.
        """


def context_of(asked: int | None, trained: int | None) -> tuple[int, tuple[str, ...]]:
    """How many tokens a conversation may hold, and what the user should know about that.

    Args:
        asked: as the user wishes.
        trained: the model's limit, where it is known.
    """
    wanted = asked or DEFAULT_CONTEXT
    if not trained or wanted <= trained:
        return wanted, ()
    cut = f"the model was made for {trained:,} tokens; --context {wanted:,} is cut to that"
    return trained, (cut,) if asked else ()


class PromptFitter:
    """Leaves out the oldest turns when a conversation outgrows the context.

    What was left out stays out in later turns, and a quarter of the context is freed at once: otherwise every
    turn would begin elsewhere, and the whole prompt would be read again each time. Where a prompt begins
    follows from its own conversation alone: from where its earlier prompts began, which are worked out again
    where they are not remembered (after another conversation, or in another process).
    """

    def __init__(self, encode: Callable[[Sequence[Message]], list[int]], context: int) -> None:
        self.encode = encode
        self.context = context
        self._room = 0  # tokens that the remembered prompts had
        self._messages: list[Message] = []  # the last conversation
        self._begins: dict[
            int, int
        ] = {}  # length of a prompt in it -> index of the first message that fitted

    def fit(self, messages: Sequence[Message], answer_tokens: int) -> tuple[list[int], int]:
        """Encode what fits.

        Args:
            messages: the conversation.
            answer_tokens: tokens to keep free for the answer, at most a quarter of the context.

        Returns:
            The prompt's ids, and how many messages were left out.

        Raises:
            InputError: the last message alone does not fit.
        """
        self._remember(messages, self.context - min(answer_tokens, self.context // 4))
        head = 1 if messages[0]["role"] == "system" else 0
        self._refuse_huge(messages[-1])
        before, begin = max(self._begins.items(), default=(0, head))
        ids = self._encode(messages, head, begin)
        if before < len(messages) and len(ids) > self._room:
            for end in range(max(before, head) + 1, len(messages)):
                if messages[end - 1]["role"] == "user":  # a prompt of its own, earlier in the conversation
                    _, begin = self._begin(messages[:end], head, begin)
            ids, begin = self._begin(messages, head, begin)
        if len(ids) > self._room:
            raise InputError(
                f"the message has {len(ids):,} tokens with its prompt, but the context holds "
                f"{self.context:,}, of which {self.context - self._room:,} are kept for the answer",
                fix="shorten it, or give a larger --context",
            )
        self._begins[len(messages)] = begin
        return ids, begin - head

    def fit_again(self, messages: Sequence[Message], answer_tokens: int) -> list[int]:
        """Encode a conversation as it was read before its answer, to score the answer.

        Args:
            messages: the conversation.
            answer_tokens: tokens of the answer; they count where nothing was asked yet.
        """
        return self.fit(messages, self.context - self._room if self._room else answer_tokens)[0]

    def _remember(self, messages: Sequence[Message], room: int) -> None:
        """Keep what is known of the prompts that these messages begin with, in equal room."""
        pairs = zip(self._messages, messages, strict=False)
        known = min(len(self._messages), len(messages))
        shared = next((at for at, (old, new) in enumerate(pairs) if old != new), known)
        shared = shared if room == self._room else 0
        self._begins = {end: begin for end, begin in self._begins.items() if end <= shared}
        self._messages, self._room = list(messages), room

    def _begin(self, messages: Sequence[Message], head: int, begin: int) -> tuple[list[int], int]:
        """The ids of a prompt, and where it begins if the one before it began at `begin`."""
        ids = self._encode(messages, head, begin)
        if len(ids) <= self._room:
            return ids, begin
        while len(ids) > self._room * 3 // 4 and begin < len(messages) - 1:
            begin += 1
            while begin < len(messages) - 1 and messages[begin]["role"] != "user":
                begin += 1
            ids = self._encode(messages, head, begin)
        return ids, begin

    def _encode(self, messages: Sequence[Message], head: int, begin: int) -> list[int]:
        return self.encode([*messages[:head], *messages[begin:]])

    def _refuse_huge(self, message: Message) -> None:
        """A paste of megabytes is refused before a tokenizer spends a minute on it."""
        length = len(str(message["content"]))
        if length > 64 * self.context:
            raise InputError(
                f"the message has {length:,} characters, too many for {self.context:,} tokens of context",
                fix="shorten it",
            )
