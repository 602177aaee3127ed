"""How a conversation is made to fit the context of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorafold.chat.dialogue import but, tools_of
from lorafold.chat.sandbox import Message
from lorafold.errors import InputError


class PromptFitter:
    """Leaves out the oldest turns when a conversation outgrows the context.

    What was left out stays out in later turns, and a quarter of the context is freed at once: otherwise every
    turn would begin elsewhere, and the whole prompt would be read again each time. Where a prompt begins
    follows from its own conversation alone: from where its earlier prompts began, which are worked out again
    if they are not remembered (after another conversation, or in another process).
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
                if messages[end - 1]["role"] in (
                    "user",
                    "tool",
                ):  # a prompt of its own, earlier in the conversation
                    _, begin = self._begin(messages[:end], head, begin)
            ids, begin = self._begin(messages, head, begin)
        if len(ids) > self._room:
            raise InputError(
                f"the message has {len(ids):,} tokens with its prompt, but the context holds "
                f"{self.context:,}, of which {self.context - self._room:,} are kept for the answer",
                fix="shorten it, or pass a larger --context",
            )
        self._begins[len(messages)] = begin
        return ids, begin - head

    def fit_again(self, messages: Sequence[Message], answer_tokens: int) -> list[int]:
        """Encode a conversation as it was read before its answer, to score the answer.

        Args:
            messages: the conversation.
            answer_tokens: tokens of the answer; they count if nothing was asked yet.
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
        asked = (at for at in range(len(messages) - 1, -1, -1) if messages[at]["role"] == "user")
        last = next(asked, len(messages) - 1)  # a question stays with the results that belong to it
        while len(ids) > self._room * 3 // 4 and begin < last:
            begin += 1
            while begin < last and messages[begin]["role"] != "user":
                begin += 1
            ids = self._encode(messages, head, begin)
        return ids, begin

    def _encode(self, messages: Sequence[Message], head: int, begin: int) -> list[int]:
        kept = [*messages[:head], *messages[begin:]]
        return self.encode(but(messages, kept) if tools_of(messages) else kept)

    def _refuse_huge(self, message: Message) -> None:
        """A paste of megabytes is refused before a tokenizer spends a minute on it."""
        length = len(str(message["content"]))
        if length > 64 * self.context:
            raise InputError(
                f"the message has {length:,} characters, too many for {self.context:,} tokens of context",
                fix="shorten it",
            )
