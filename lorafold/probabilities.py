"""Log-probabilities from logits, for the proof and for chat."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Natural logarithms of the probabilities.

    In float32, as the logits are: with a vocabulary of 150,000 these arrays take much of a proof's time.
    numpy's sums are pairwise, so the error stays near the last bit.

    Args:
        logits: (vocabulary,) or (places, vocabulary).
    """
    import numpy as np

    shifted: NDArray[np.float32] = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
