"""The fold's inner loop in any blocking, rounding as torch's, factors kept in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lorafold.export.fold.changes import round_to
from lorafold.export.fold.factors import FactorCache
from lorafold.export.fold.kernel import compiled


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    cols=st.integers(1, 70),
    rank=st.integers(1, 13),
    cut=st.integers(1, 70),
    seed=st.integers(0),
)
def test_the_kernel_depends_on_no_blocking(rows: int, cols: int, rank: int, cut: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    left = random.standard_normal((rows, rank), dtype=np.float32)
    right = random.standard_normal((rank, cols), dtype=np.float32)
    block = random.standard_normal((rows, cols), dtype=np.float32)
    scale = np.float32(random.uniform(-3, 3))
    whole = block.copy()
    compiled()(whole, left, right, scale)
    pieces = block.copy()
    for start in range(0, rows, cut):
        compiled()(pieces[start : start + cut], left[start : start + cut], right, scale)
    assert np.array_equal(whole, pieces)
    # The chain of fused multiply-adds by hand: float64 holds a product of two float32 exactly.
    chain = np.zeros_like(block)
    for k in range(rank):
        chain = (left[:, k : k + 1].astype(np.float64) * right[k] + chain).astype(np.float32)
    assert np.abs(whole - (block + chain * scale)).max() <= 1e-6 * np.abs(whole).max()


def test_the_kernel_by_hand() -> None:
    block = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    compiled()(
        block, np.array([[1.0], [10.0]], np.float32), np.array([[0.5, -1.0]], np.float32), np.float32(2)
    )
    assert block.tolist() == [[2.0, 0.0], [13.0, -16.0]]


def test_bfloat16_is_rounded_half_to_even() -> None:
    torch = pytest.importorskip("torch")
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 0.0], np.float32)
    wanted = torch.from_numpy(values.copy()).bfloat16().float().numpy()
    assert np.array_equal(round_to("BF16", values), wanted)
    assert wanted.tolist() == [1.0, 1.0, 1.015625, 1.0078125, -1.0, 0.0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0), exponent=st.integers(-30, 30), dtype=st.sampled_from(["BF16", "F16"]))
def test_rounding_equals_torch(seed: int, exponent: int, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    values = np.random.default_rng(seed).standard_normal(500, dtype=np.float32)
    values *= np.float32(2.0 ** (exponent if dtype == "BF16" else exponent / 3))
    torch_type = torch.bfloat16 if dtype == "BF16" else torch.float16
    wanted = torch.from_numpy(values.copy()).to(torch_type).float().numpy()
    assert np.array_equal(round_to(dtype, values.copy()), wanted)


def test_factors_of_layers_that_are_done_leave_the_cache() -> None:
    """A model's layers one after the other: what is kept does not grow with their number."""
    cache = FactorCache()
    built: list[str] = []

    def ask(key: str) -> NDArray[np.float32]:
        return cache.get(key, lambda: built.append(key) or np.ones(1000, np.float32))  # type: ignore[func-returns-value]

    for layer in range(50):
        for _ in range(100):
            ask(f"{layer}.a")
            ask(f"{layer}.b")
    assert built == [f"{layer}.{part}" for layer in range(50) for part in "ab"]  # each once
    assert len(cache._kept) <= 6 and cache._bytes == 4000 * len(cache._kept)


def test_the_cache_keeps_to_its_limit_but_always_holds_the_last() -> None:
    cache = FactorCache(limit=5000)
    for key in "abcab":
        cache.get(key, lambda: np.ones(1000, np.float32))
        assert cache._bytes <= 5000
    cache.get("large", lambda: np.ones(10_000, np.float32))
    assert cache.get("large", lambda: np.zeros(1, np.float32)).size == 10_000
