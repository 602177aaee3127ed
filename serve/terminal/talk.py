"""A conversation under way: engines, what was said, and how it is shown."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lorafold.chat.control_forms import usual_control_text
from lorafold.chat.controls import control_text
from lorafold.serve.answers import Request, answer_all, seeded
from lorafold.serve.config import Sampling
from lorafold.serve.engine import Cancel, Engine, Thought
from lorafold.serve.engines.digests import Digests
from lorafold.serve.session import Answer, Session, Turn
from lorafold.serve.terminal.tty import interruptible
from lorafold.serve.terminal.views import LETTERS, View, heads


class Talk:
    """Engines that answer one session.

    Args:
        engines: the models.
        session: what was said so far.
        view: where answers appear.
        digests: of the models' weights.
    """

    def __init__(self, engines: Sequence[Engine], session: Session, view: View, digests: Digests) -> None:
        self.engines = engines
        self.session = session
        self.view = view
        self.digests = digests
        self.order = list(range(len(engines)))  # as shown, left to right
        self.only: set[int] | None = None  # the models that answer; None: all
        self.blind = False
        self.attempt = 0  # of the last question, counted by /retry
        self.last: Turn | None = None  # asked last, whether it was kept or not
        self.kept: list[int] = []  # models whose answers to the last question are those of an earlier attempt
        self.cancelled = False  # the last question's answers were stopped

    def asked(self) -> list[int]:
        """The models that answer now, in their order."""
        return [index for index in self.order if self.only is None or index in self.only]

    def shown(self) -> list[int]:
        """The models that answer now, as shown: shuffled while names are hidden."""
        order = self.asked()
        if self.blind:
            random.SystemRandom().shuffle(order)
        return order

    def ask(self, user: str) -> Turn | None:
        """Put a question to the models.

        Args:
            user: the question.

        Returns:
            The turn; None where nobody said a word, and the question was not kept.
        """
        self.attempt, self.kept = 0, []
        return self._run(self._turn(user))

    def again(self, user: str | None = None) -> Turn | None:
        """Ask the last question anew with other random numbers, or another question in its place.

        Where the question is the same, old answers stay of models that are not asked now or say nothing.

        Returns:
            The new turn; None where nobody said a word, and the old turn stands.
        """
        turns = self.session.turns
        old, before = turns[-1], len(turns) - 1
        del turns[before:]
        self.attempt, self.kept = self.attempt + 1 if user is None else 0, []
        done = None
        try:
            done = self._run(self._turn(old.user if user is None else user))
        finally:
            if done is None:  # also where an error ends the program's try
                turns[before:] = [old]
        if done is not None and done.user == old.user:
            self.kept = done.carry_over(old)
        return done

    def _turn(self, user: str) -> Turn:
        """A question as it is asked now, without answers."""
        order, session = self.shown(), self.session
        columns = order if self.blind else self.order
        return Turn(
            user,
            order=order,
            blind=self.blind,
            columns=list(columns),
            system=session.system,
            follow=session.follow,
        )

    def _run(self, turn: Turn) -> Turn | None:
        self.session.turns.append(turn)
        self.last, cancel = turn, Cancel()
        requests = {}
        sampling = self._sampling()
        for index in turn.order:
            requests[index] = Request(self.engines[index], self.session.messages(index), sampling)
            turn.answers[index] = Answer(seed=sampling.seed)
        panes = {index: pane for pane, index in enumerate(turn.order)}
        abouts = [engine.about for engine in self.engines]
        with interruptible(cancel):
            self.view.begin(heads(abouts, self.digests, self.places(turn), turn.blind))
            try:
                for happened in answer_all(requests, cancel):
                    if happened is None:
                        self.view.tick()
                        continue
                    index, event = happened
                    answer = turn.answers[index]
                    if text := answer.take(event):
                        self.view.feed(panes[index], text)
                    elif isinstance(event, Thought):
                        self.view.think(panes[index], event.text)
                    if answer.reason:
                        self.view.finish(panes[index], answer)
            finally:
                self.view.end(turn)
                self.cancelled = cancel.is_set()
        if not any(answer.text or answer.reasoning for answer in turn.answers.values()):
            self.session.turns.pop()
            return None
        return turn

    def _sampling(self) -> Sampling:
        """One seed for all models of a turn, so that a difference is the models' own."""
        return seeded(self.session.sampling, self.attempt)

    def places(self, turn: Turn) -> list[tuple[str, int]]:
        """(letter, model) of a turn's answers as they stood above them, whatever /swap did since."""
        letters = dict(zip(turn.columns, LETTERS, strict=False))
        return [(letters[index], index) for index in turn.order]

    def letter(self, index: int) -> str:
        """A model's place in the columns."""
        return LETTERS[self.order.index(index)]

    def at(self, letter: str) -> int | None:
        """The model at a place in the columns, or None."""
        place = LETTERS.find(letter.upper()) if len(letter) == 1 else -1
        return self.order[place] if 0 <= place < len(self.order) else None


def control_notes(engines: Sequence[Engine], text: str) -> list[str]:
    """What to say where a question holds the text of a control token: who reads it how.

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
