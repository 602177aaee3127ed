"""Models, questions and answers as plain data: the rows of reports, journals and JSON lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorafold.chat.call_spellings import told
from lorafold.chat.dialogue import Tool, ToolCall
from lorafold.chat.sandbox import Message
from lorafold.files.shapes import Shape, require_shape
from lorafold.serve.conversation import Answer
from lorafold.serve.lens import Lens
from lorafold.serve.origin import Origin, origin_of
from lorafold.serve.protocol import Engine

NOT_ASKED = "not asked"  # the reason of an answer that a conversation did not ask for (`/only`)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Which weights answered.

    Attributes:
        name: for headings.
        source: as the user spelled it.
        kind: the engine.
        quantization: or "" if it is not known.
        sha256: of the weights, base and adapters joined by a plus; "" if it is not known.
        origin: what the file was exported from and what its proof said; None if no manifest beside it tells.
    """

    name: str
    source: str
    kind: str
    quantization: str
    sha256: str
    origin: Origin | None = None


def card_of(engine: Engine) -> ModelCard:
    """Which weights an engine answers with; reads them all for their digest."""
    about = engine.about
    digest = about.digest()
    origin = origin_of(about.source, digest) if about.kind == "llama.cpp" else None
    return ModelCard(about.name, about.source, about.kind, about.quantization, digest, origin)


@dataclass(frozen=True, slots=True)
class LensRow:
    """A lens, rounded.

    Attributes:
        kl: mean Kullback-Leibler divergence in nats, or None if the vocabularies differ.
        mean_log_ratio: mean log-probability ratio per token in nats.
        tokens: text, log-probability under the model that wrote it, and under the other.
    """

    kl: float | None
    mean_log_ratio: float
    tokens: Sequence[tuple[str, float, float]]

    @classmethod
    def of(cls, lens: Lens) -> LensRow:
        """A lens as a row."""
        tokens = [(token.text, round(token.own, 3), round(token.other, 3)) for token in lens.tokens]
        return cls(None if lens.kl is None else round(lens.kl, 5), round(lens.mean_ratio, 5), tokens)


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """What one model answered; seconds and tokens as in `Answer`.

    Attributes:
        text: the answer.
        reason: why it ended; `NOT_ASKED` if the model was not asked.
        dropped: messages that no longer fitted the context.
        reasoning: what a server told of the model's reasoning.
        error: what went wrong; "" if nothing did.
        lens: the answer as another model sees it, if one could look.
        calls: of tools.
    """

    text: str
    reason: str
    tokens: int = 0
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    tokens_per_second: float = 0.0
    dropped: int = 0
    reasoning: str = ""
    error: str = ""
    lens: LensRow | None = None
    calls: Sequence[ToolCall] = ()

    @classmethod
    def of(cls, answer: Answer | None, lens: Lens | None = None) -> AnswerRow:
        """An answer as a row; None for a model that was not asked."""
        if answer is None:
            return cls("", NOT_ASKED)
        return cls(
            text=answer.text,
            reason=answer.reason,
            tokens=answer.tokens,
            seconds=round(answer.elapsed, 4),
            first_token_seconds=round(answer.first, 4),
            tokens_per_second=round(answer.rate, 2),
            dropped=answer.dropped,
            reasoning=answer.reasoning,
            error=answer.error,
            lens=None if lens is None else LensRow.of(lens),
            calls=answer.calls,
        )

    @property
    def comparable(self) -> bool:
        """Whether it says something of its model: it was asked, and did not fail."""
        return self.reason != NOT_ASKED and not self.error

    @property
    def cell(self) -> str:
        """The text of a table's cell: what was said, and what a reader must know of it."""
        text = self.text.strip()
        parts = [text] * bool(text) + [f"→ {told(call)}" for call in self.calls]
        if self.error:
            parts.append(f"(failed: {self.error})")
        elif not parts:
            parts.append(f"({self.reason})")
        if self.dropped:
            left_out = f"{self.dropped} earlier message{'s' * (self.dropped != 1)} left out"
            parts.append(f"({left_out}: the context was full)")
        return "\n".join(parts)

    def as_json(self) -> dict[str, Any]:
        """Plain data; what is empty is left out."""
        row = asdict(self)
        del row["lens"]
        if self.reason == NOT_ASKED:
            return {key: row[key] for key in ("text", "reason", "tokens", "seconds")}
        for key in ("reasoning", "error", "calls"):
            if not row[key]:
                del row[key]
        if self.lens is not None:
            row["kl"], row["mean_log_ratio"] = self.lens.kl, self.lens.mean_log_ratio
            row["lens"] = list(map(list, self.lens.tokens))
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> AnswerRow:
        """What `as_json` wrote.

        Raises:
            InputError, KeyError, TypeError, ValueError: it is something else.
        """
        known = dict(row)
        lens = None
        if "lens" in known:
            tokens = [(str(text), float(own), float(other)) for text, own, other in known.pop("lens")]
            lens = LensRow(known.pop("kl"), known.pop("mean_log_ratio"), tokens)
        return cls(**known, lens=lens)


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """A question and every model's answer.

    Attributes:
        question: what was asked last.
        messages: the whole conversation up to it.
        expected: the answer that the data holds, or None.
        answers: in the order of the models.
        vote: of a conversation: index of the better model, "tie", or None.
        blind: of a conversation: whether the names were hidden; None in a comparison.
        tools: that the models could call.
    """

    question: str
    messages: Sequence[Message]
    expected: str | None
    answers: Sequence[AnswerRow]
    vote: int | str | None = None
    blind: bool | None = None
    tools: Sequence[Tool] = ()

    @property
    def failed(self) -> bool:
        """Whether a model failed at it."""
        return any(answer.error for answer in self.answers)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        row: dict[str, Any] = {
            "question": self.question,
            "messages": list(self.messages),
            "expected": self.expected,
            "answers": [answer.as_json() for answer in self.answers],
        }
        if self.tools:
            row["tools"] = list(self.tools)
        if self.blind is not None:
            row |= {"vote": self.vote, "blind": self.blind}
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> QuestionRow:
        """What `as_json` wrote (errors as in `AnswerRow.from_json`)."""
        require_shape(row, _ROW, "a row")
        return cls(**{**row, "answers": [AnswerRow.from_json(answer) for answer in row["answers"]]})


_SECONDS = dict.fromkeys(("seconds", "first_token_seconds", "tokens_per_second"), (int, float))
_ANSWER: dict[str, Shape] = {
    "text!": str,
    "reason!": str,
    "tokens": int,
    "dropped": int,
    "reasoning": str,
    "error": str,
    "calls": [dict],
    "kl": (int, float),
    "mean_log_ratio": (int, float),
    **_SECONDS,
}
_ROW: dict[str, Shape] = {
    "question!": str,
    "messages!": [{"role!": str}],
    "expected": str,
    "answers!": [_ANSWER],
    "tools": [dict],
}
