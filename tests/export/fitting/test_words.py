"""What was chosen, in a sentence."""

from __future__ import annotations

from gguf import GGMLQuantizationType as Type

from lorafold.export.fitting.fit import Fitted, Tried
from lorafold.export.fitting.share import Calibrated, Judged
from lorafold.export.fitting.words import describe_calibrated, describe_fitted

TRIED = (Tried("Q4_K_M", 1000, 0.04), Tried("Q4_K_M, fitted", 990, 0.03))


def test_what_has_no_choice_is_counted() -> None:
    changed = {(Type.Q4_K, Type.Q5_K): 3}
    told = [
        describe_fitted(
            "m.gguf", Fitted("Q4_K_M", TRIED, TRIED[1], changed, True, "20 chats", {}, count), 990, 1000, None
        )
        for count in (0, 2)
    ]
    assert told[0] == (
        "fit",
        "m.gguf is Q4_K_M with 3 other types (3 from Q4_K to Q5_K); 990 of 1,000 bytes; mean KL 0.0300 "
        "beside 0.0400 of Q4_K_M in 1,000 bytes, on chats that nothing was learnt from (20 chats)",
    )
    assert told[1][1] == (
        told[0][1] + "; 2 tensors have the recipe's type, because their cost cannot be measured"
    )


def test_what_was_not_tried_without_a_matrix_is_not_called_better() -> None:
    """A type that needs a matrix is never tried without one."""
    judged = [Judged(0.0, 0.3, 0.2), Judged(0.5, 0.2, 0.2)]
    told = [
        describe_calibrated(Calibrated(0.5, None, {"IQ2_XXS": tried}, (5, 5)))[1]
        for tried in (judged, [Judged(None, 0.4, 0.3), *judged])
    ]
    assert "improve" not in told[0] and told[1].endswith("; it improved general texts too")
