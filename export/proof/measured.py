"""One figure at every token of some answers, and what is said of it: means, extremes, how sure they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Answers = list[NDArray[np.float32]]
"""Log-probabilities (tokens, vocabulary) at the answer of each conversation."""

_RESAMPLES = 2000  # of the bootstrap
_SURE = 0.95  # the share of resamples that an interval holds


@dataclass(frozen=True, slots=True)
class PerToken:
    """A figure at each token of each answer.

    Attributes:
        values: for each conversation one for each token of its answer.
    """

    values: Sequence[NDArray[np.float64]]

    def joined(self, other: PerToken) -> PerToken:
        """With those of further conversations."""
        return PerToken([*self.values, *other.values])

    @property
    def all(self) -> NDArray[np.float64]:
        """Every value, conversation after conversation."""
        return np.concatenate(self.values)

    @property
    def mean(self) -> float:
        """Mean over all tokens; none of the figures is below zero but by a rounding error."""
        mean = float(self.all.mean())
        return mean if np.isnan(mean) else max(mean, 0.0)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the mean lies with 95% confidence; None with one conversation alone.

        Tokens of one answer depend on each other, so whole conversations are drawn: a bootstrap with a fixed
        seed (Efron, 1979; percentiles).
        """
        count = len(self.values)
        if count < 2:
            return None
        sums = np.array([each.sum() for each in self.values])
        lengths = np.array([len(each) for each in self.values])
        drawn = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
        means = sums[drawn].sum(1) / lengths[drawn].sum(1)
        low, high = np.quantile(means, [(1 - _SURE) / 2, (1 + _SURE) / 2])
        return float(low), float(high)

    @property
    def by_position(self) -> list[float]:
        """Mean at the first token of the answers, at the second, …"""
        longest = max(map(len, self.values), default=0)
        return [
            float(np.mean([each[place] for each in self.values if place < len(each)]))
            for place in range(longest)
        ]

    def quantile(self, share: float) -> float:
        """The value that this share of the tokens does not exceed."""
        return float(np.quantile(self.all, share))


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two models that both take their likeliest token begin to say something else.

    What was read is one answer. It tells what each would say as long as both would say just that.

    Attributes:
        same: how many tokens both say first.
        reference: the token that the reference says next; None if it is not known that they part.
        file: the token that the file says next, if it is another one.
    """

    same: int
    reference: int | None = None
    file: int | None = None


def parting(reference: NDArray[np.float32], other: NDArray[np.float32], answer: NDArray[np.int64]) -> Parting:
    """Greedy answers side by side, as far as one answer shows them.

    Args:
        reference: log-probabilities (tokens, vocabulary) at the answer.
        other: those of a file.
        answer: the answer's tokens.
    """
    for place, token in enumerate(answer.tolist()):
        wanted, got = int(reference[place].argmax()), int(other[place].argmax())
        if wanted != got:
            return Parting(place, wanted, got)
        if wanted != token:  # both leave the answer, for the same token
            return Parting(place + 1)
    return Parting(len(answer))


def kl(reference: Answers, other: Answers) -> list[NDArray[np.float64]]:
    """KL(reference || other) = sum p (log p - log q) at each token, in nats."""
    return [(np.exp(p) * (p - q)).sum(1).astype(np.float64) for p, q in zip(reference, other, strict=True)]


def agreement(reference: Answers, other: Answers) -> list[NDArray[np.float64]]:
    """1 where both would choose the same token, else 0."""
    return [(p.argmax(1) == q.argmax(1)).astype(np.float64) for p, q in zip(reference, other, strict=True)]


def surprise(answered: Answers, answers: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
    """-log p of the answer's own tokens, in nats; the perplexity is the exponential of their mean."""
    return [-p[np.arange(len(ids)), ids].astype(np.float64) for p, ids in zip(answered, answers, strict=True)]
