"""The lens: each token of one model's answer, and how much less likely another model finds it.

What the fine-tune taught stands out: tokens that the tuned model expects and the original does not. The mean
Kullback-Leibler divergence along the answer says the same as one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorafold.chat.sandbox import Message
from lorafold.errors import LorafoldError, UsageError
from lorafold.serve.conversation import Answer
from lorafold.serve.protocol import Engine, Scorer


@dataclass(frozen=True, slots=True)
class LensToken:
    """A token, or a few if the models cut the text differently.

    Attributes:
        text: its characters.
        own: natural logarithm of its probability under the model that wrote it.
        other: the same under the other model.
    """

    text: str
    own: float
    other: float

    @property
    def ratio(self) -> float:
        """log p(own) - log p(other), in nats: above 0 the other model is surprised."""
        return self.own - self.other


@dataclass(frozen=True, slots=True)
class Lens:
    """One answer seen by two models.

    Attributes:
        tokens: in order; their texts joined are the answer.
        kl: mean over the tokens of KL(own || other) in nats, or None if the vocabularies differ.
    """

    tokens: list[LensToken]
    kl: float | None

    @property
    def mean_ratio(self) -> float:
        """Mean log-probability ratio per token in nats."""
        return sum(token.ratio for token in self.tokens) / max(1, len(self.tokens))


def look_through(
    own: Scorer, other: Scorer, messages: Sequence[Message], text: str, ids: Sequence[int] = ()
) -> Lens:
    """Score an answer with the model that wrote it and with another.

    Args:
        own: of the model that wrote the answer.
        other: of the other model.
        messages: the conversation before the answer.
        text: the answer.
        ids: its tokens as the first model wrote them; tokenized from the text if not known.

    Returns:
        The lens.
    """
    ids = list(ids) or own.tokenize(text)
    if not ids:
        return Lens([], None)
    if own.vocabulary == other.vocabulary:
        return _same_vocabulary(own, other, messages, ids)
    return _by_text(_scored(own, messages, ids), _scored(other, messages, other.tokenize(text)))


def look_at_scored(
    own: Sequence[tuple[str, float]], other: Scorer, messages: Sequence[Message], text: str
) -> Lens:
    """Score an answer whose log-probabilities are known, such as a server's, with another model.

    Args:
        own: texts and log-probabilities of its tokens.
        other: of the other model.
        messages: the conversation before the answer.
        text: the answer.

    Returns:
        The lens, without a divergence: the server's other probabilities are not known.
    """
    pieces = [(piece.encode(), value) for piece, value in own]
    return _by_text(pieces, _scored(other, messages, other.tokenize(text)))


def lens_of(
    engines: Sequence[Engine], index: int, messages: Sequence[Message], answer: Answer
) -> Lens | None:
    """The answer seen by the counterpart: the original by the first tuned model, others by the original.

    None if there is no counterpart, or one of the two keeps its probabilities to itself.
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
    fix = "look at another answer, or open the model from its file"
    if other.scorer is None:
        problem = f"{other.about.name} answers through a server, which scores only what it writes itself"
        raise UsageError(problem, fix="look at its own answer, or open the model from its file")
    if own.scorer is not None:
        return look_through(own.scorer, other.scorer, messages, answer.text, answer.ids)
    if answer.reasoning:
        problem = f"{own.about.name} reasoned first, and the other model has not read that"
        raise UsageError(problem, fix=fix)
    if answer.scored is None:
        problem = f"the server of {own.about.name} gave no log-probabilities with this answer"
        raise UsageError(problem, fix=fix)
    return look_at_scored(answer.scored, other.scorer, messages, answer.text)


def _same_vocabulary(own: Scorer, other: Scorer, messages: Sequence[Message], ids: Sequence[int]) -> Lens:
    import numpy as np

    tokens: list[tuple[float, float]] = []
    divergence = 0.0
    pairs = zip(own.log_probabilities(messages, ids), other.log_probabilities(messages, ids), strict=True)
    for token, (p, q) in zip(ids, pairs, strict=True):
        # Converters pad vocabularies differently; what both have decides.
        size = min(len(p), len(q))
        p, q = p[:size], q[:size]
        divergence += float(np.dot(np.exp(p), p - q))
        tokens.append((float(p[token]), float(q[token])))
    texts = _texts(own.pieces(ids))
    found = [LensToken(text, *pair) for text, pair in zip(texts, tokens, strict=True)]
    return Lens(_whole(found), max(0.0, divergence / len(ids)))


def _texts(pieces: Sequence[bytes]) -> list[str]:
    """The characters that each token completes."""
    import codecs

    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts = [decoder.decode(piece) for piece in pieces]
    texts[-1] += decoder.decode(b"", final=True)
    return texts


def _whole(tokens: Sequence[LensToken]) -> list[LensToken]:
    """Tokens without characters of their own (parts of one character) joined to the next one."""
    found: list[LensToken] = []
    own = other = 0.0
    for token in tokens:
        own, other = own + token.own, other + token.other
        if token.text:
            found.append(LensToken(token.text, own, other))
            own = other = 0.0
    return found


def _by_text(ours: Sequence[tuple[bytes, float]], theirs: Sequence[tuple[bytes, float]]) -> Lens:
    """Vocabularies differ: each model's tokens, joined where both have a border at the same byte."""
    tokens: list[LensToken] = []
    pending, own_sum, other_sum = b"", 0.0, 0.0
    end_own = end_other = border = 0
    their = iter(theirs)
    for piece, value in ours:
        pending, own_sum, end_own = pending + piece, own_sum + value, end_own + len(piece)
        while end_other < end_own:
            following = next(their, None)
            if following is None:
                break
            other_sum, end_other = other_sum + following[1], end_other + len(following[0])
        if end_other == end_own and end_own > border:
            tokens.append(LensToken(pending.decode("utf-8", errors="replace"), own_sum, other_sum))
            pending, own_sum, other_sum, border = b"", 0.0, 0.0, end_own
    if pending:
        tokens.append(LensToken(pending.decode("utf-8", errors="replace"), own_sum, other_sum))
    return Lens(tokens, None)


def _scored(scorer: Scorer, messages: Sequence[Message], ids: Sequence[int]) -> list[tuple[bytes, float]]:
    values = (
        float(row[token]) for token, row in zip(ids, scorer.log_probabilities(messages, ids), strict=True)
    )
    return list(zip(scorer.pieces(ids), values, strict=True))
