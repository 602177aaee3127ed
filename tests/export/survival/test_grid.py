"""Grids are found in weights that were quantized, by others' code, and not in trained ones."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from lorafold.export.fold.changes import round_to
from lorafold.export.survival.grid import GridSearch, Levels, find_levels

NF4 = np.array(
    (
        *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
    ),
    np.float32,
)  # QLoRA (arXiv:2305.14314), appendix E


def drawn(cols: int = 1536) -> Any:
    return (np.random.default_rng(5).standard_normal((4, cols)) * 0.02).astype(np.float32)


def by_gguf(kind: Type) -> Any:
    return gguf.dequantize(gguf.quantize(drawn(), kind), kind)


def nf4() -> Any:
    blocks = drawn().reshape(-1, 64)
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    nearest = np.abs((blocks / scale)[:, :, None] - NF4).argmin(axis=2)
    return (NF4[nearest] * scale).reshape(4, -1)


def grouped(bits: int, width: int) -> Any:
    """As GPTQ and AWQ store them: whole numbers times a group's scale."""
    blocks = drawn().reshape(-1, width)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    return (np.round(blocks / scale) * scale).reshape(4, -1).astype(np.float32)


def fp8() -> Any:
    """E4M3 with a scale for all: three bits of mantissa."""
    mantissa, exponent = np.frexp(drawn() * 2000)
    return np.ldexp(np.round(mantissa * 16) / 16, exponent).astype(np.float32) / np.float32(2000)


GRIDS = {
    "Q4_0": (lambda: by_gguf(Type.Q4_0), Levels(4, 32)),
    "Q4_1": (lambda: by_gguf(Type.Q4_1), Levels(4, 32)),
    "Q5_0": (lambda: by_gguf(Type.Q5_0), Levels(5, 32)),
    "NF4": (nf4, Levels(4, 64)),
    "GPTQ": (lambda: grouped(4, 128), Levels(4, 128)),
    "int3": (lambda: grouped(3, 64), Levels(3, 64)),
    "int4 rows": (lambda: grouped(4, 1536), Levels(4, 0)),
    "FP8": (fp8, Levels(8, 0)),
    "MXFP4": (lambda: by_gguf(Type.MXFP4), Levels(4, 32, "MXFP4")),
}


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_weights_that_were_quantized_are_recognised(name: str, dtype: str) -> None:
    """Also once they are stored in 16 bit, as a dequantized model is."""
    make, levels = GRIDS[name]
    assert find_levels(round_to(dtype, np.array(make(), np.float32))) == levels


@pytest.mark.parametrize("cols", [64, 576, 896, 1536, 4096, 18944])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_trained_weights_lie_on_none(cols: int, dtype: str) -> None:
    rows = round_to(dtype, drawn(cols))
    assert find_levels(rows) is None
    rows[np.abs(rows) < 0.015] = 0  # pruned
    assert find_levels(rows) is None
    assert find_levels(np.zeros((4, cols), np.float32)) is None


def test_most_tensors_decide() -> None:
    search = GridSearch()
    assert search.found() is None
    search.add("norm", drawn()[:1])
    search.add("a", by_gguf(Type.Q4_1))
    search.add("b", by_gguf(Type.Q4_1))
    search.add("head", drawn())
    found = search.found()
    assert found is not None and (found.levels, found.tensors, found.of) == (Levels(4, 32), 2, 3)
    search.add("c", drawn())
    search.add("d", drawn())
    assert search.found() is None
    assert str(Levels(4, 32, "MXFP4")) == "4 bits in blocks of 32, MXFP4" and "whole rows" in str(
        Levels(2, 0)
    )
