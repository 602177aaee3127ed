"""Drawing a token from logits, with the samplers of llama.cpp in its order.

penalties, top_k, top_p, min_p, temperature, then the dice; top_p and min_p look at the probabilities before
the temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorafold.serve.config import REPEAT_WINDOW, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def draw(
    logits: NDArray[np.float32], sampling: Sampling, said: Sequence[int], dice: np.random.Generator
) -> int:
    """Draw a token.

    Args:
        logits: (vocabulary,), not changed.
        sampling: how.
        said: the answer so far, for the repeat penalty.
        dice: random numbers.

    Returns:
        The token's id.
    """
    import numpy as np

    scores: NDArray[np.float64] = logits.astype(np.float64)
    recent = list(set(said[-REPEAT_WINDOW:]))
    if sampling.repeat_penalty != 1 and recent:
        values = scores[recent]
        scores[recent] = np.where(
            values > 0, values / sampling.repeat_penalty, values * sampling.repeat_penalty
        )
    if sampling.temperature == 0:
        return int(scores.argmax())
    order = np.argsort(-scores, kind="stable")
    if sampling.top_k:
        order = order[: sampling.top_k]
    probabilities = _softmax(scores[order])
    if sampling.top_p < 1:
        # The token that crosses the border stays in.
        order = order[: int(np.searchsorted(np.cumsum(probabilities), sampling.top_p)) + 1]
        probabilities = _softmax(scores[order])
    order = order[probabilities >= sampling.min_p * probabilities[0]]
    probabilities = _softmax(scores[order] / sampling.temperature)
    return int(dice.choice(order, p=probabilities))


def _softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    powers: NDArray[np.float64] = np.exp(logits - logits.max())
    powers /= powers.sum()
    return powers
