"""What every engine offers, whatever runs the model: a stream of tokens, counting, and scores.

An engine holds one model (or one model with its adapters). It keeps what it has read of the last conversation
and reads only what is new of the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from lorafold.chat.dialogue import ToolCall
from lorafold.chat.sandbox import Message
from lorafold.serve.config import Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Why an answer ended, besides "stop" and "length", which servers say as well. What else a server says stays
# as it is ("content_filter", "tool_calls").
OUR_REASONS = ("context", "cancelled", "failed", "not asked")
DEFAULT_CONTEXT = 8192  # tokens, if the model allows more and nobody asked


@dataclass(frozen=True, slots=True)
class Started:
    """The prompt has been read; the first token follows.

    Attributes:
        prompt_tokens: tokens of the prompt, or None if the engine does not say.
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
        id: its number, or None if the engine does not say.
        logprob: natural logarithm of its probability under the model (before sampling), or None.
        elapsed: seconds since the request.
    """

    text: str
    id: int | None
    logprob: float | None
    elapsed: float


@dataclass(frozen=True, slots=True)
class Thought:
    """A part of the reasoning that a server keeps apart from its answer.

    Attributes:
        text: what it adds to the reasoning.
        elapsed: seconds since the request.
    """

    text: str
    elapsed: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer has ended.

    Attributes:
        reason: "stop": the model ended it; "length": max_tokens was reached; "context": the context is full;
            "cancelled": the user interrupted; or another word of a server's.
        elapsed: seconds since the request.
        text: what was left of an incomplete character.
        tokens: of the answer, if only the end tells (servers send several at once).
        prompt_tokens: of the prompt, if only the end tells.
        calls: of tools; those that a local model wrote also stand in the answer's text.
    """

    reason: str
    elapsed: float
    text: str = ""
    tokens: int | None = None
    prompt_tokens: int | None = None
    calls: tuple[ToolCall, ...] = ()


Event = Started | Thought | Token | Finished


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
        quantization: "Q4_K_M", "bfloat16", ... or "" if it is not known.
        digest: computes the sha256 of the weights, base and adapter (reads every byte), or what the server
            says; "" if nothing is known.
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
        """Tokens that a conversation may hold, or None if the engine does not say."""

    @property
    def scorer(self) -> Scorer | None:
        """The model's probabilities for given tokens; None if the engine keeps them to itself."""

    @property
    def controls(self) -> frozenset[str] | None:
        """Control tokens that stay text if people write them; None if a server builds the prompt."""

    def stream(self, messages: Sequence[Message], sampling: Sampling, cancel: Cancel) -> Iterator[Event]:
        """Answer a conversation.

        Args:
            messages: dicts with "role" and "content", the last one the user's or a tool's; a `Dialogue`
                brings the tools that may be called.
            sampling: how tokens are drawn; its seed is not None.
            cancel: ends the stream early.

        Yields:
            `Started`, then `Token`s, then one `Finished`.

        Raises:
            InputError: the conversation does not fit, or the template refuses it.
            SystemFault: the machine or the server failed.
        """

    def prompt(self, messages: Sequence[Message]) -> str | None:
        """The prompt that the model reads, control tokens spelled out; None if a server builds it."""

    def count_tokens(self, text: str) -> int | None:
        """How many tokens a text has, or None if the engine does not say."""

    def close(self) -> None:
        """Free the model."""


@runtime_checkable
class Resizable(Protocol):
    """An engine that takes another context while it runs."""

    def resize(self, context: int) -> None:
        """Hold this many tokens from the next answer on."""


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
        trained: the model's limit, if it is known.
    """
    wanted = asked or DEFAULT_CONTEXT
    if not trained or wanted <= trained:
        return wanted, ()
    cut = f"the model was made for {trained:,} tokens; --context {wanted:,} is cut to that"
    return trained, (cut,) if asked else ()
