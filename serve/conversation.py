"""A conversation with several models: what was asked, what each answered, who won.

Every question is one turn for all models, so their histories stay in step by construction: a model that
failed, was left out or was interrupted before its first word simply has no answer in that turn.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from lorafold.artifacts import write_atomic
from lorafold.chat.call_spellings import split_calls
from lorafold.chat.dialogue import Dialogue, Tool, ToolCall, name_of
from lorafold.chat.sandbox import Message
from lorafold.errors import InputError, LorafoldError, UsageError
from lorafold.files.seals import MEANT, has_changed, sealed
from lorafold.records.tools import read_tools
from lorafold.serve.config import Sampling
from lorafold.serve.protocol import Event, Started, Thought, Token


@dataclass(slots=True)
class Answer:
    """What one model answered in one turn; it grows while the model speaks.

    Attributes:
        text: the answer.
        reasoning: what the model thought before it, if a server told that apart; no part of the history.
        ids: its tokens, if the engine numbers them.
        logprobs: natural logarithms of their probabilities, if the engine says.
        pieces: their texts, if the engine has log-probabilities but no numbers (servers).
        tokens: how many it has.
        prompt_tokens: how many the prompt had.
        reused: how many of those were in memory.
        dropped: messages that no longer fitted.
        first: seconds to the first token.
        elapsed: seconds in all.
        reason: why it ended: stop, length, context, cancelled, failed, or a server's word; "" while it grows.
        error: what went wrong.
        seed: of its random numbers.
        under: the system message and `follow` it was asked under, if /retry kept it in a turn of others.
        calls: of tools. If a local model made them they also stand in `text`, as it wrote them.
    """

    text: str = ""
    reasoning: str = ""
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
    calls: list[ToolCall] = field(default_factory=list)

    def take(self, event: Event | Exception) -> str:
        """Take in what an engine reported; returns the text that it adds."""
        added = ""
        if isinstance(event, Exception):
            self.reason = "failed"
            known = isinstance(event, LorafoldError)
            self.error = str(event) if known else f"{type(event).__name__}: {event}"
        elif isinstance(event, Started):
            self.prompt_tokens, self.reused, self.dropped = event.prompt_tokens, event.reused, event.dropped
        elif isinstance(event, Thought):
            self.reasoning += event.text
            self._count(event.elapsed)
        elif isinstance(event, Token):
            added = event.text
            self._count(event.elapsed)
            if event.id is not None:
                self.ids.append(event.id)
            if event.logprob is not None:
                self.logprobs.append(event.logprob)
                if event.id is None:
                    self.pieces.append(event.text)
        else:
            added, self.reason, self.elapsed = event.text, event.reason, event.elapsed
            self.calls = list(event.calls)
            self.tokens = self.tokens if event.tokens is None else event.tokens
            self.prompt_tokens = self.prompt_tokens if event.prompt_tokens is None else event.prompt_tokens
        self.text += added
        return added

    def _count(self, elapsed: float) -> None:
        """Count a token that has come."""
        self.tokens += 1
        self.first = self.first or elapsed
        self.elapsed = elapsed

    @property
    def stands(self) -> bool:
        """Whether it counts: something was said, and it was not cut off by a failure."""
        return bool(self.text or self.calls) and self.reason != "failed"

    def message(self) -> Message:
        """It as a turn of the history, with its calls told apart from its text."""
        if not self.calls:
            return {"role": "assistant", "content": self.text}
        return {"role": "assistant", "content": split_calls(self.text)[0], "tool_calls": self.calls}

    @property
    def scored(self) -> list[tuple[str, float]] | None:
        """Its tokens' texts and log-probabilities as the server told them, if it told them all.

        None if reasoning came before it: the probabilities follow from that, and nobody else has read it.
        """
        whole = bool(self.pieces) and not self.reasoning and "".join(self.pieces) == self.text
        return list(zip(self.pieces, self.logprobs, strict=True)) if whole else None

    @property
    def rate(self) -> float:
        """Tokens per second after the first one; 0 if there are too few to tell."""
        seconds = self.elapsed - self.first
        return (self.tokens - 1) / seconds if self.tokens > 1 and seconds > 0 else 0.0


LETTERS = "ABCDEF"  # what users call the models by: A stands in the first column
TIE = -1  # a vote for no model


def letter_of(columns: Sequence[int], model: int) -> str:
    """The letter of a model's place in columns."""
    return LETTERS[columns.index(model)]


def model_with(columns: Sequence[int], letter: str) -> int | None:
    """The model that has a letter, or None."""
    return dict(zip(LETTERS, columns, strict=False)).get(letter.upper())


@dataclass(slots=True)
class Turn:
    """One question and its answers. A model is known by its index; letters follow from the columns.

    Attributes:
        user: the question.
        answers: model -> answer, for the models that were asked.
        columns: models from left to right, as they stood then; a model that was not asked may keep its place.
        blind: the names were hidden.
        vote: the better model, `TIE`, or None if nobody voted.
        system: the system message in force.
        follow: the model whose answers were everybody's history; None: each followed its own.
        results: what the tools answered that the turn before called, in the order of the calls; () if a
            person asks.
    """

    user: str
    answers: dict[int, Answer] = field(default_factory=dict)
    columns: list[int] = field(default_factory=list)
    blind: bool = False
    vote: int | None = None
    system: str | None = None
    follow: int | None = None
    results: tuple[str, ...] = ()

    @property
    def asked(self) -> list[int]:
        """The models that were asked, from left to right."""
        return [model for model in self.columns if model in self.answers]

    @property
    def hidden(self) -> bool:
        """Whether nobody may know yet who answered what."""
        return self.blind and self.vote is None

    def letter(self, model: int) -> str:
        """A model's letter when this was asked, whatever /swap did since."""
        return letter_of(self.columns, model)

    def standing(self) -> list[int]:
        """The models whose answers count, from left to right."""
        return [model for model in self.asked if self.answers[model].stands]

    def carry_over(self, old: Turn) -> list[int]:
        """Take over answers of an earlier attempt if this one brought none.

        The vote is kept if all that it compared are; names stay hidden only if nobody knows them.

        Args:
            old: the same question, asked before.

        Returns:
            The models whose old answers stand.
        """
        kept = [
            model
            for model, answer in old.answers.items()
            if (answer.text or answer.calls) and not (model in self.answers and self.answers[model].stands)
        ]
        for model in kept:
            answer = self.answers[model] = old.answers[model]
            under = answer.under or (old.system, old.follow)
            answer.under = under if under != (self.system, self.follow) else None
        self.columns += [model for model in kept if model not in self.columns]
        if old.vote is not None and set(kept) >= set(old.standing()):
            self.vote, self.blind = old.vote, old.blind
        elif kept:
            self.blind = self.blind and old.hidden
        return kept


_FORMAT = "lorafold-session-1"


def utf8(text: str) -> bytes:
    """Text for a file; lone surrogates, which servers and file names may hold, as JSON writes them."""
    return text.encode("utf-8", errors="backslashreplace")


@dataclass(slots=True)
class Conversation:
    """A conversation and how it goes on.

    Attributes:
        models: names of the models, by index.
        sampling: how tokens are drawn.
        system: the system message of the next question, or None.
        turns: what was said.
        follow: index of the model whose answers are the next question's history; None: each follows its own.
        file: where it was saved to or loaded from, and may be saved again.
        tools: that the models may call.
    """

    models: list[str]
    sampling: Sampling
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    follow: int | None = None
    file: Path | None = field(default=None, compare=False)
    tools: tuple[Tool, ...] = ()

    def messages(self, model: int, turn: int | None = None) -> Sequence[Message]:
        """What a model is asked in a turn (the last one by default): its history and the question.

        Calls that nobody answered stand in the history as the text that the model wrote.
        """
        last = len(self.turns) - 1 if turn is None else turn
        asked = self.turns[last]
        own = asked.answers.get(model)
        system, follow = own.under if own and own.under else (asked.system, asked.follow)
        messages: list[Message] = []
        if system:
            messages.append({"role": "system", "content": system})
        calls: list[ToolCall] = []
        for past, following in pairwise(self.turns[: last + 1]):
            answer = past.answers.get(model if follow is None else follow)
            if answer is not None and answer.stands:
                messages += _asked(past, calls)
                calls = answer.calls if following.results else []
                messages.append(answer.message() if calls else {"role": "assistant", "content": answer.text})
        messages += _asked(asked, calls)
        return Dialogue(messages, self.tools) if self.tools else messages

    def waiting(self, model: int) -> list[ToolCall]:
        """The calls that wait for results: of its own last answer, or of the followed model's."""
        followed = model if self.follow is None else self.follow
        answer = self.turns[-1].answers.get(followed) if self.turns else None
        return answer.calls if answer is not None and answer.stands else []

    def votes(self) -> tuple[dict[int, int], int]:
        """Wins per model, and ties."""
        wins = dict.fromkeys(range(len(self.models)), 0)
        ties = 0
        for turn in self.turns:
            if turn.vote == TIE:
                ties += 1
            elif turn.vote is not None:
                wins[turn.vote] += 1
        return wins, ties

    def as_json(self) -> dict[str, Any]:
        """The session as plain data."""
        return {
            "format": _FORMAT,
            "models": self.models,
            "system": self.system,
            "sampling": asdict(self.sampling),
            "follow": self.follow,
            "tools": list(self.tools),
            "turns": [asdict(turn) for turn in self.turns],
        }

    def save(self, path: Path) -> None:
        """Write the session as JSON, atomically."""
        write_atomic(path, sealed(self.as_json(), indent=1))
        self.file = path.resolve()

    @staticmethod
    def load(path: Path, models: Sequence[str]) -> Conversation:
        """Read a saved session, to go on with its models in whatever order, or with others in their places.

        Raises:
            InputError: the file is missing or is no session.
        """
        fix = "give a file that /save wrote"
        try:
            text = path.read_text(encoding="utf-8")
            data = json.loads(text)
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", at=path, fix=fix) from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"not JSON ({error})", at=path, fix=fix) from error
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise InputError(f"not a session of the form {_FORMAT}", at=path, fix=fix)
        if has_changed(text):
            raise InputError(
                "the session changed since it was saved (its sha256 is another)", at=path, fix=MEANT
            )
        try:
            places = _places(data["models"], models)
            # Turns that were saved before they had these of their own were all asked under the last ones.
            usual = {"system": data["system"], "follow": data["follow"]}
            turns = [_turn({**usual, **row}, places) for row in data["turns"]]
            sampling = replace(Sampling(), **data["sampling"])
            system, follow = _under((data["system"], data["follow"]), places)
            whole = set(range(len(data["models"]))) <= set(places)  # else saving would lose answers
            tools = read_tools({"tools": data.get("tools") or []}, str(path))
        except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
            raise InputError(f"an incomplete session ({error!r})", at=path, fix=fix) from error
        file = path.resolve() if whole else None
        return Conversation(list(models), sampling, system, turns, follow, file, tools)


def _places(saved: Sequence[str], models: Sequence[str]) -> dict[int, int]:
    """Index in the file -> index now: by name if all are known by it, else in the order given."""
    if len(set(saved)) == len(saved) and set(saved) <= set(models):
        return {index: models.index(name) for index, name in enumerate(saved)}
    return {index: index for index in range(len(models))}


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("text", "reasoning", "reason", "error"), str),
    **dict.fromkeys(("tokens", "reused", "dropped"), int),
    **dict.fromkeys(("first", "elapsed"), (int, float)),
}


def _turn(row: Mapping[str, Any], places: Mapping[int, int]) -> Turn:
    found = ((places.get(int(index)), answer) for index, answer in row["answers"].items())
    answers = {index: _answer(answer, places) for index, answer in found if index is not None}
    vote, blind = row["vote"], bool(row["blind"])
    if not isinstance(row["user"], str) or not (vote is None or isinstance(vote, int)):
        raise TypeError("user")
    # A file of an earlier version may have "order" instead: the models that were asked, as shown.
    usual = row.get("order", []) if blind else sorted(places)
    columns = _indices(row.get("columns", usual), places)
    columns += [model for model in answers if model not in columns]
    vote = vote if vote in (None, TIE) else places.get(vote)
    under = _under((row["system"], row["follow"]), places)
    return Turn(row["user"], answers, columns, blind, vote, *under, tuple(map(str, row.get("results", ()))))


def _asked(turn: Turn, calls: Sequence[ToolCall]) -> list[Message]:
    """What a turn asks: a question, or the results of calls."""
    if not turn.results:
        return [{"role": "user", "content": turn.user}]
    return [
        {"role": "tool", "content": result, "name": name_of(call), "tool_call_id": str(call.get("id"))}
        for call, result in zip(calls, turn.results, strict=False)
    ]


def _indices(saved: Sequence[int], places: Mapping[int, int]) -> list[int]:
    return list(dict.fromkeys(places[index] for index in saved if index in places))


def _under(pair: Sequence[Any], places: Mapping[int, int]) -> tuple[str | None, int | None]:
    """The system message and `follow` of a saved turn."""
    system, follow = pair
    if not (system is None or isinstance(system, str)):
        raise TypeError("system")
    return system, places.get(follow)


def _answer(row: Mapping[str, Any], places: Mapping[int, int]) -> Answer:
    answer = Answer(**row)
    for name, kind in _KINDS.items():
        if not isinstance(getattr(answer, name), kind):
            raise TypeError(name)
    answer.calls = [call for call in answer.calls if name_of(call)]
    answer.ids = []  # they number another model's tokens, if other models go on
    answer.logprobs, answer.pieces = list(map(float, answer.logprobs)), list(map(str, answer.pieces))
    if answer.pieces and len(answer.pieces) != len(answer.logprobs):
        raise ValueError("pieces")
    answer.under = None if answer.under is None else _under(answer.under, places)
    return answer


def share_interval(wins: int, ties: int, losses: int) -> tuple[float, float, float]:
    """The share of votes for one side, a tie as half a vote, with its 95% interval.

    Wilson's score interval (Wilson 1927, JASA 22): it stays inside 0..1 and is honest for few votes.

    Returns:
        (share, low, high); (0.5, 0, 1) without votes.
    """
    count = wins + ties + losses
    if not count:
        return 0.5, 0.0, 1.0
    z = 1.959963984540054
    share = (wins + ties / 2) / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return share, max(0.0, centre - half), min(1.0, centre + half)


def cleaned(text: str) -> tuple[str, int]:
    """A question without control characters (but newlines and tabs), and how many were taken out."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    kept = "".join(
        char
        for char in text
        if char in "\n\t" or not (ord(char) < 32 or 127 <= ord(char) < 160 or 0xD800 <= ord(char) < 0xE000)
    )
    return kept, len(text) - len(kept)
