"""The figures of the proof, against values computed by hand and by other ways."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lorafold.export.proof.measured import Parting, PerToken, agreement, kl, parting, surprise
from lorafold.export.proof.sample import FEWEST, LEAST_TOKENS, estimated_seconds, rounds, tokens_for


def logs(*rows: tuple[float, ...]) -> np.ndarray:
    return np.log(np.array(rows, np.float32))


def test_by_hand() -> None:
    """Two answers of two and one tokens over a vocabulary of three."""
    reference = [logs((0.5, 0.25, 0.25), (0.1, 0.8, 0.1)), logs((0.25, 0.25, 0.5))]
    other = [logs((0.25, 0.25, 0.5), (0.1, 0.8, 0.1)), logs((0.5, 0.25, 0.25))]
    found = PerToken(kl(reference, other))
    # 0.5 ln 2 + 0.25 ln 0.5 = 0.25 ln 2; equal ones: nothing.
    np.testing.assert_allclose(found.all, [0.25 * np.log(2), 0.0, 0.25 * np.log(2)], atol=1e-7)
    assert found.mean == pytest.approx(np.log(2) / 6)
    assert found.quantile(1.0) == pytest.approx(0.25 * np.log(2)) and found.quantile(0.0) == 0.0
    assert found.by_position == pytest.approx([0.25 * np.log(2), 0.0], abs=1e-7)
    assert PerToken(agreement(reference, other)).mean == pytest.approx(1 / 3)
    answers = [np.array([0, 1]), np.array([2])]
    assert np.exp(PerToken(surprise(reference, answers)).mean) == pytest.approx((2 * 1.25 * 2) ** (1 / 3))
    joined = found.joined(found)
    assert joined.mean == pytest.approx(found.mean) and len(joined.values) == 4


def test_where_greedy_answers_part() -> None:
    """By hand: rows of log-probabilities with one likeliest token each, over an answer of three tokens."""

    def saying(*tokens: int) -> NDArray[np.float32]:
        return np.log(np.where(np.arange(4) == np.array(tokens)[:, None], 0.7, 0.1)).astype(np.float32)

    answer = np.array([2, 0, 3])
    assert parting(saying(2, 0, 3), saying(2, 0, 3), answer) == Parting(3)
    assert parting(saying(2, 1, 3), saying(2, 0, 3), answer) == Parting(1, 1, 0)
    assert parting(saying(2, 0, 3), saying(1, 0, 3), answer) == Parting(0, 2, 1)
    # Both leave the answer for the same token: what either would say after it was not asked.
    assert parting(saying(2, 1, 3), saying(2, 1, 0), answer) == Parting(2)


def test_an_interval_is_that_of_the_normal_distribution_where_that_holds() -> None:
    """With many conversations of one token each: 1.96 standard errors to both sides of the mean."""
    values = np.random.default_rng(0).standard_normal(400) + 5
    low, high = PerToken([np.array([each]) for each in values]).interval or (0.0, 0.0)
    error = 1.96 * values.std(ddof=1) / np.sqrt(400)
    assert low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.1 * error)
    assert PerToken([values]).interval is None, "one conversation says nothing of others"


def test_tokens_of_one_conversation_do_not_count_as_many() -> None:
    """Repeating every token of a conversation makes a figure no surer."""
    few = [np.full(1, value) for value in (1.0, 2.0, 4.0, 3.0)]
    assert PerToken(few).interval == PerToken([np.repeat(each, 50) for each in few]).interval


@given(st.lists(st.integers(2, 500), min_size=1, max_size=30), st.integers(10, 2000))
def test_rounds_ask_every_conversation_once(lengths: list[int], tokens: int) -> None:
    parts = rounds(lengths, tokens)
    assert sorted(number for part in parts for number in part) == list(range(len(lengths)))
    for part in parts:
        assert part == sorted(part)
        assert len(part) * max(lengths[number] for number in part) <= tokens or len(part) <= FEWEST


def test_a_round_is_spread_over_all_conversations() -> None:
    assert rounds([100] * 12, 400)[0] == [0, 3, 6, 9]
    assert rounds([100] * 12, 1200) == [list(range(12))]
    assert rounds([500, 90, 500, 70, 80], 100)[0] == [1, 3, 4], "the shortest ones, if none fit"
    # One long conversation would make all four as long; those between are spread as well.
    assert rounds([60, 60, 60, 60, 90, 60, 60, 60], 256)[0] == [1, 3, 5, 7]


def test_tokens_follow_the_size_of_the_model() -> None:
    assert tokens_for(7_000_000_000) == LEAST_TOKENS
    assert tokens_for(100_000_000) > 4 * LEAST_TOKENS


def test_the_estimate_follows_the_work() -> None:
    """By estimate, two cores: some 11 s for 0.49 G weights and one file, more for more of either."""
    assert 8 < estimated_seconds(494_000_000, 1, 2) < 16
    assert 20 < estimated_seconds(1_544_000_000, 1, 2) < 40
    assert estimated_seconds(494_000_000, 3, 2) > 1.5 * estimated_seconds(494_000_000, 1, 2)
    assert estimated_seconds(494_000_000, 1, 8) < estimated_seconds(494_000_000, 1, 2)
    assert estimated_seconds(494_000_000, 1, 2, minutes=2) == 120
