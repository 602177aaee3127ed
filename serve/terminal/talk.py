"""A conversation under way: engines, what was said, and how it is shown."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from lorafold.chat.control_forms import usual_control_text
from lorafold.chat.controls import control_text
from lorafold.serve.answers import Request, answer_all, seeded
from lorafold.serve.config import Sampling
from lorafold.serve.conversation import Answer, Conversation, Turn, letter_of
from lorafold.serve.engines.digests import Digests
from lorafold.serve.protocol import Cancel, Engine, Event, Thought
from lorafold.serve.terminal.tty import cancelled_by_ctrl_c
from lorafold.serve.terminal.views import View, heads


@dataclass(slots=True)
class LastQuestion:
    """The question that was asked last, and what came of it.

    Attributes:
        turn: the question and its answers, whether it was kept or not.
        attempt: how often /retry has asked it again.
        kept: models whose answers are those of an earlier attempt.
        cancelled: the answers were stopped.
    """

    turn: Turn
    attempt: int = 0
    kept: list[int] = field(default_factory=list)
    cancelled: bool = False


class Talk:
    """Engines that answer one conversation. A model is known by its index among the engines.

    Args:
        engines: the models.
        conversation: what was said so far.
        view: where answers appear.
        digests: of the models' weights.

    Attributes:
        columns: models as they are shown from left to right.
        only: the models that answer; None: all.
        blind: names are hidden.
        last: the question that was asked last; None before the first.
        notes: what the user should know of the whole conversation.
    """

    def __init__(
        self, engines: Sequence[Engine], conversation: Conversation, view: View, digests: Digests
    ) -> None:
        self.engines = engines
        self.conversation = conversation
        self.view = view
        self.digests = digests
        self.columns = list(range(len(engines)))
        self.only: set[int] | None = None
        self.blind = False
        self.last: LastQuestion | None = None
        self.notes: list[str] = []

    def asked(self) -> list[int]:
        """The models that answer now, from left to right."""
        return [model for model in self.columns if self.only is None or model in self.only]

    def letter(self, model: int) -> str:
        """A model's letter now."""
        return letter_of(self.columns, model)

    def ask(self, user: str, results: tuple[str, ...] = ()) -> Turn | None:
        """Put a question to the models.

        Args:
            user: the question.
            results: instead of it, what the tools answered; only models that called some are asked.

        Returns:
            The turn; None if nobody said a word, and the question was not kept.
        """
        return self._run(user, attempt=0, results=results)

    def again(self, user: str | None = None) -> Turn | None:
        """Ask the last question again with other random numbers, or another question in its place.

        If the question is the same, old answers stay of models that are not asked now or say nothing.

        Returns:
            The new turn; None if nobody said a word, and the old turn stands.
        """
        turns = self.conversation.turns
        old, before = turns[-1], len(turns) - 1
        del turns[before:]
        tried = self.last.attempt if self.last else 0
        done = None
        try:
            again = (old.user, tried + 1, old.results) if user is None else (user, 0, ())
            done = self._run(*again)
        finally:
            if done is None:  # also if an error ends the program's try
                turns[before:] = [old]
        if done is not None and done.user == old.user and self.last is not None:
            self.last.kept = done.carry_over(old)
        return done

    def _turn(self, user: str, sampling: Sampling, results: tuple[str, ...]) -> Turn:
        """A question as it is asked now, its answers empty; sides are shuffled while names are hidden."""
        asked, conversation = self.asked(), self.conversation
        if results:
            asked = self.calling()
        if self.blind:
            random.SystemRandom().shuffle(asked)
        return Turn(
            user,
            {model: Answer(seed=sampling.seed) for model in asked},
            asked if self.blind else list(self.columns),
            self.blind,
            system=conversation.system,
            follow=conversation.follow,
            results=results,
        )

    def calling(self) -> list[int]:
        """The models that answer now and whose history ends with calls, from left to right."""
        return [model for model in self.asked() if self.conversation.waiting(model)]

    def _run(self, user: str, attempt: int, results: tuple[str, ...] = ()) -> Turn | None:
        # One seed for all models of a turn, so that a difference is the models' own.
        sampling = seeded(self.conversation.sampling, attempt)
        turn, cancel = self._turn(user, sampling, results), Cancel()
        self.conversation.turns.append(turn)
        self.last = LastQuestion(turn, attempt)
        requests = {
            model: Request(self.engines[model], self.conversation.messages(model), sampling)
            for model in turn.asked
        }
        abouts = [engine.about for engine in self.engines]
        with cancelled_by_ctrl_c(cancel):
            self.view.begin(heads(abouts, self.digests, turn))
            try:
                for happened in answer_all(requests, cancel):
                    if happened is None:
                        self.view.tick()
                    else:
                        self._show(turn, *happened)
            finally:
                self.view.end(turn)
                self.last.cancelled = cancel.is_set()
        if not any(answer.text or answer.reasoning or answer.calls for answer in turn.answers.values()):
            self.conversation.turns.pop()
            return None
        return turn

    def _show(self, turn: Turn, model: int, event: Event | Exception) -> None:
        """Take in what happened to a model's answer, and show it."""
        answer = turn.answers[model]
        if text := answer.take(event):
            self.view.feed(model, text)
        elif isinstance(event, Thought):
            self.view.think(model, event.text)
        if answer.reason:
            self.view.finish(model, answer)


def control_notes(engines: Sequence[Engine], text: str) -> list[str]:
    """What to say if a question holds the text of a control token: who reads it how.

    Args:
        engines: the models that will be asked.
        text: the question.

    Returns:
        Sentences; none for an ordinary question.
    """
    notes = []
    question = [{"role": "user", "content": text}]
    local = frozenset[str]().union(*(engine.controls or () for engine in engines))
    if plain := control_text(question, local):
        notes.append(f"{_quoted(plain)}: sent as plain text, not as a control token")
    servers = [engine.about.name for engine in engines if engine.controls is None]
    if servers and (obeyed := usual_control_text(text)):
        notes.append(f"{_quoted(obeyed)}: the server of {', '.join(servers)} may take it as a control token")
    return notes


def _quoted(tokens: Sequence[str]) -> str:
    return ", ".join(repr(token) for token in tokens[:5]) + (", …" if len(tokens) > 5 else "")
