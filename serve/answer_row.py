"""Models and answers as the plain data that reports and journals hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorafold.chat.sandbox import Message
from lorafold.errors import LorafoldError, UsageError
from lorafold.serve.engine import Engine
from lorafold.serve.lens import Lens, look_at_scored, look_through
from lorafold.serve.session import Answer

NOT_ASKED = "not asked"  # the reason of an answer that a conversation did not ask for (`/only`)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Which weights answered.

    Attributes:
        name: for headings.
        source: as the user spelled it.
        kind: the engine.
        quantization: or "" where not known.
        sha256: of the weights, base and adapters joined by a plus; "" where not known.
    """

    name: str
    source: str
    kind: str
    quantization: str
    sha256: str


def card_of(engine: Engine) -> ModelCard:
    """Which weights an engine answers with; reads them all for their digest."""
    about = engine.about
    return ModelCard(about.name, about.source, about.kind, about.quantization, about.digest())


def lens_of(
    engines: Sequence[Engine], index: int, messages: Sequence[Message], answer: Answer
) -> Lens | None:
    """The answer seen by the counterpart: the original by the first tuned model, others by the original.

    None where there is no counterpart, or one of the two keeps its probabilities to itself.
    """
    if len(engines) < 2 or not answer.text:
        return None
    try:
        return answer_seen(engines[index], engines[1 if index == 0 else 0], messages, answer)
    except LorafoldError:  # it does not fit the other model's context: the answer itself still counts
        return None


def answer_seen(own: Engine, other: Engine, messages: Sequence[Message], answer: Answer) -> Lens:
    """One model's answer as another sees it.

    Args:
        own: the model that wrote it; a server must have told its log-probabilities then.
        other: the model that looks; a server cannot.
        messages: the conversation before the answer.
        answer: not empty.

    Raises:
        UsageError: one of the two does not give the probabilities that this takes.
    """
    if other.scorer is None:
        problem = f"{other.about.name} answers through a server, which scores only what it writes itself"
        raise UsageError(problem, fix="look at its own answer, or open the model from its file")
    if own.scorer is not None:
        return look_through(own.scorer, other.scorer, messages, answer.text, answer.ids)
    if answer.scored is None:
        problem = f"the server of {own.about.name} gave no log-probabilities with this answer"
        raise UsageError(problem, fix="look at another answer, or open the model from its file")
    return look_at_scored(answer.scored, other.scorer, messages, answer.text)


def answer_row(answer: Answer, lens: Lens | None) -> dict[str, Any]:
    """An answer and its lens as plain data, for the journal, JSON lines and the page."""
    row: dict[str, Any] = {
        "text": answer.text,
        "reason": answer.reason,
        "tokens": answer.tokens,
        "seconds": round(answer.elapsed, 4),
        "first_token_seconds": round(answer.first, 4),
        "tokens_per_second": round(answer.rate, 2),
        "dropped": answer.dropped,
    }
    if answer.error:
        row["error"] = answer.error
    if lens is not None:
        row["kl"] = None if lens.kl is None else round(lens.kl, 5)
        row["mean_log_ratio"] = round(lens.mean_ratio, 5)
        row["lens"] = [[token.text, round(token.own, 3), round(token.other, 3)] for token in lens.tokens]
    return row


def cell_of(row: Mapping[str, Any]) -> str:
    """An answer's row as the text of a table's cell: what was said, and what a reader must know of it."""
    text, error, dropped = row["text"].strip(), row.get("error", ""), row.get("dropped", 0)
    parts = [text] if text else []
    if error:
        parts.append(f"(failed: {error})")
    elif not text:
        parts.append(f"({row['reason']})")
    if dropped:
        parts.append(f"({dropped} earlier message{'s' * (dropped != 1)} left out: the context was full)")
    return "\n".join(parts)


def comparable(row: Mapping[str, Any]) -> bool:
    """Whether an answer says something of its model: it was asked, and did not fail."""
    return row["reason"] != NOT_ASKED and not row.get("error")
