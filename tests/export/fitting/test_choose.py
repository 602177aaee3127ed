"""The choice of types: the best of all on small cases, never too large, and what is left is spent."""

from __future__ import annotations

import itertools

import pytest
from gguf import GGMLQuantizationType as Type
from hypothesis import given
from hypothesis import strategies as st

from lorafold.export.fitting.choose import Option, choose, largest, size_of, smallest

KINDS = (Type.Q3_K, Type.Q4_K, Type.Q6_K)


def options(losses: list[list[float]], sizes: list[list[int]]) -> dict[str, dict[Type, Option]]:
    return {
        f"t{number}": {
            kind: Option(loss, size) for kind, loss, size in zip(KINDS, each[0], each[1], strict=True)
        }
        for number, each in enumerate(zip(losses, sizes, strict=True))
    }


TWO = options([[8.0, 2.0, 1.0], [4.0, 3.0, 2.9]], [[10, 20, 40], [10, 20, 40]])


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (20, (Type.Q3_K, Type.Q3_K)),
        (30, (Type.Q4_K, Type.Q3_K)),  # the first gains 6 for 10 bytes, the second 1
        (40, (Type.Q4_K, Type.Q4_K)),
        (60, (Type.Q6_K, Type.Q4_K)),
        (79, (Type.Q6_K, Type.Q4_K)),
        (80, (Type.Q6_K, Type.Q6_K)),
    ],
)
def test_by_hand(room: int, expected: tuple[Type, Type]) -> None:
    assert tuple(choose(TWO, room).values()) == expected


def test_a_smaller_type_pays_for_a_better_one_elsewhere() -> None:
    """In the same size as two Q4_K: what matters gets Q6_K and what does not Q3_K."""
    uneven = options([[9.0, 5.0, 0.1], [0.012, 0.011, 0.01]], [[10, 20, 30], [10, 20, 30]])
    assert tuple(choose(uneven, 40).values()) == (Type.Q6_K, Type.Q3_K)


@given(
    st.lists(st.lists(st.floats(0, 10), min_size=3, max_size=3), min_size=1, max_size=5),
    st.lists(st.lists(st.integers(1, 50), min_size=3, max_size=3), min_size=5, max_size=5),
    st.integers(0, 100),
)
def test_it_fits_and_is_near_the_best_of_all(
    losses: list[list[float]], sizes: list[list[int]], more: int
) -> None:
    """Against every combination: no worse than the best of one tensor's largest step less room."""
    given_ = options(losses, sizes[: len(losses)])
    room = size_of(given_, smallest(given_)) + more
    types = choose(given_, room)
    assert size_of(given_, types) <= room

    def loss(chosen: dict[str, Type]) -> float:
        return sum(given_[name][kind].loss for name, kind in chosen.items())

    step = max(each.size for kinds in given_.values() for each in kinds.values())
    combinations = [
        dict(zip(given_, kinds, strict=True)) for kinds in itertools.product(KINDS, repeat=len(given_))
    ]
    reachable = [loss(each) for each in combinations if size_of(given_, each) <= room - step]
    assert not reachable or loss(types) <= min(reachable) + 1e-6
    if room >= size_of(given_, largest(given_)):
        assert loss(types) == pytest.approx(min(map(loss, combinations)))
