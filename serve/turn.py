"""One question to several models and what each answered."""

from __future__ import annotations

from dataclasses import dataclass, field

from lorafold.errors import LorafoldError
from lorafold.serve.engine import Event, Started, Token


@dataclass(slots=True)
class Answer:
    """What one model answered in one turn; it grows while the model speaks.

    Attributes:
        text: the answer.
        ids: its tokens, where the engine numbers them.
        logprobs: natural logarithms of their probabilities, where the engine says.
        pieces: their texts, where the engine has log-probabilities but no numbers (servers).
        tokens: how many it has.
        prompt_tokens: how many the prompt had.
        reused: how many of those were in memory.
        dropped: messages that no longer fitted.
        first: seconds to the first token.
        elapsed: seconds in all.
        reason: why it ended: stop, length, context, cancelled, failed; "" while it grows.
        error: what went wrong.
        seed: of its random numbers.
        under: the system message and `follow` it was asked under, where /retry kept it in a turn of others.
    """

    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int | None = None
    reused: int = 0
    dropped: int = 0
    first: float = 0.0
    elapsed: float = 0.0
    reason: str = ""
    error: str = ""
    seed: int | None = None
    under: tuple[str | None, int | None] | None = None

    def take(self, event: Event | Exception) -> str:
        """Take in what an engine reported; returns the text that it adds."""
        added = ""
        if isinstance(event, Exception):
            self.reason = "failed"
            known = isinstance(event, LorafoldError)
            self.error = str(event) if known else f"{type(event).__name__}: {event}"
        elif isinstance(event, Started):
            self.prompt_tokens, self.reused, self.dropped = event.prompt_tokens, event.reused, event.dropped
        elif isinstance(event, Token):
            added = event.text
            self.tokens += 1
            self.first = self.first or event.elapsed
            self.elapsed = event.elapsed
            if event.id is not None:
                self.ids.append(event.id)
            if event.logprob is not None:
                self.logprobs.append(event.logprob)
                if event.id is None:
                    self.pieces.append(event.text)
        else:
            added, self.reason, self.elapsed = event.text, event.reason, event.elapsed
            self.tokens = self.tokens if event.tokens is None else event.tokens
            self.prompt_tokens = self.prompt_tokens if event.prompt_tokens is None else event.prompt_tokens
        self.text += added
        return added

    @property
    def stands(self) -> bool:
        """Whether it counts: something was said, and it was not cut off by a failure."""
        return bool(self.text) and self.reason != "failed"

    @property
    def scored(self) -> list[tuple[str, float]] | None:
        """Its tokens' texts and log-probabilities as the server told them, if it told them all."""
        whole = bool(self.pieces) and "".join(self.pieces) == self.text
        return list(zip(self.pieces, self.logprobs, strict=True)) if whole else None

    @property
    def rate(self) -> float:
        """Tokens per second after the first one; 0 where there are too few to tell."""
        seconds = self.elapsed - self.first
        return (self.tokens - 1) / seconds if self.tokens > 1 and seconds > 0 else 0.0


@dataclass(slots=True)
class Turn:
    """One question and its answers.

    Attributes:
        user: the question.
        answers: model index -> answer.
        order: models that were asked, in the order shown, left to right.
        blind: the names were hidden.
        vote: index of the better model, `TIE`, or None where nobody voted.
        columns: models whose letters were A, B, ... when it was asked.
        system: the system message in force.
        follow: index of the model whose answers were everybody's history; None: each followed its own.
    """

    user: str
    answers: dict[int, Answer] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    blind: bool = False
    vote: int | None = None
    columns: list[int] = field(default_factory=list)
    system: str | None = None
    follow: int | None = None

    @property
    def hidden(self) -> bool:
        """Whether nobody may know yet who answered what."""
        return self.blind and self.vote is None

    def standing(self) -> list[int]:
        """The models whose answers count, as shown."""
        return [index for index in self.order if index in self.answers and self.answers[index].stands]

    def carry_over(self, old: Turn) -> list[int]:
        """Take over answers of an earlier attempt where this one brought none.

        The vote is kept if all that it compared are; names stay hidden only if nobody knows them.

        Args:
            old: the same question, asked before.

        Returns:
            The models whose old answers stand.
        """
        kept = [
            index
            for index, answer in old.answers.items()
            if answer.text and not (index in self.answers and self.answers[index].stands)
        ]
        for index in kept:
            answer = self.answers[index] = old.answers[index]
            under = answer.under or (old.system, old.follow)
            answer.under = under if under != (self.system, self.follow) else None
        self.columns += [index for index in kept if index not in self.columns]
        self.order += [index for index in kept if index not in self.order]
        if old.vote is not None and set(kept) >= set(old.standing()):
            self.vote, self.blind = old.vote, old.blind
        elif kept:
            self.blind = self.blind and old.hidden
        return kept
