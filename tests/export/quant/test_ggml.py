"""ggml through ctypes: values against gguf-py's independent code, and every refusal before an abort."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from lorafold.errors import InputError, NumericError, SystemFault
from lorafold.export.quant import ggml

ALL_TYPES = sorted(ggml.QUANTIZABLE, key=lambda t: t.name)
# ggml builds large tables when it first meets one of these.
TABLED = ("IQ1", "IQ2", "IQ3")


def random_block(rows: int, cols: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((rows, cols)).astype(np.float32)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=300,
    )


@pytest.mark.parametrize("type", ALL_TYPES, ids=lambda t: t.name)
def test_types_mean_the_same_to_gguf_and_to_the_library(type: Type) -> None:
    library = ggml._library()
    assert library.ggml_type_name(int(type)).decode().upper() == type.name.upper()
    assert library.ggml_row_size(int(type), 1024) == ggml.row_size(type, 1024)


@pytest.mark.parametrize(
    "type",
    [pytest.param(t, marks=[pytest.mark.slow] * t.name.startswith(TABLED)) for t in ALL_TYPES],
    ids=lambda t: t.name,
)
def test_dequantize_is_gguf_pys_and_close_to_the_values(type: Type) -> None:
    block = random_block(3, 512)
    weights = np.ones(512, np.float32) if ggml.requires_imatrix(type) else None
    rows = ggml.quantize(block, type, weights)
    values = ggml.dequantize(rows, type, 512)
    assert rows.shape == (3, ggml.row_size(type, 512))
    np.testing.assert_array_equal(values, gguf.dequantize(rows, type))
    # Bits per value, or of a float's mantissa. Rate-distortion theory allows an error of 2^-bits for normal
    # values; every type stays within 4 times of it.
    bits = {Type.F16: 11, Type.BF16: 8}.get(type, 8 * rows.size / block.size)
    assert np.sqrt(np.mean((values - block) ** 2)) < 4 * 2.0**-bits


def test_q8_0_by_hand() -> None:
    # d = 254 / 127 = 2; levels are x / 2, ties away from zero.
    block = np.array([[254, -254, 1, -1, 3, 5, 0.9, *[0] * 25]], np.float32)
    levels = np.array([127, -127, 1, -1, 2, 3, 0, *[0] * 25], np.int8)
    expected = np.float16(2).tobytes() + levels.tobytes()
    assert ggml.quantize(block, Type.Q8_0).tobytes() == expected


def test_f32_and_empty_blocks() -> None:
    block = random_block(2, 7)
    assert ggml.quantize(block, Type.F32).tobytes() == block.tobytes()
    np.testing.assert_array_equal(ggml.dequantize(ggml.quantize(block, Type.F32), Type.F32, 7), block)
    assert ggml.quantize(np.empty((0, 256), np.float32), Type.Q4_K).shape == (0, 144)
    assert ggml.dequantize(np.empty((0, 144), np.uint8), Type.Q4_K, 256).shape == (0, 256)


def test_a_type_that_requires_weights_is_refused_not_aborted_on() -> None:
    assert ggml.requires_imatrix(Type.IQ2_XXS) and not ggml.requires_imatrix(Type.Q4_K)
    with pytest.raises(InputError, match=r"IQ2_XXS needs an importance matrix; fix: pass --imatrix"):
        ggml.quantize(random_block(1, 256), Type.IQ2_XXS)


def test_a_width_that_blocks_do_not_divide_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"Q4_K stores blocks of 256 values, which do not divide a row of 288"
    ):
        ggml.quantize(random_block(1, 288), Type.Q4_K)
    with pytest.raises(InputError, match="row of 0"):
        ggml.row_size(Type.F16, 0)


@pytest.mark.parametrize("type", [Type.Q8_K, Type.Q8_1, Type.I32, Type.F64], ids=lambda t: t.name)
def test_a_type_that_ggml_cannot_write_is_refused(type: Type) -> None:
    with pytest.raises(InputError, match=rf"cannot quantize to {type.name}; fix: choose one of BF16 "):
        ggml.quantize(random_block(1, 256), type)


def test_bytes_that_are_not_rows_are_refused() -> None:
    with pytest.raises(InputError, match="row of 256 Q4_K values takes 144 bytes, got 143"):
        ggml.dequantize(np.zeros((1, 143), np.uint8), Type.Q4_K, 256)
    with pytest.raises(TypeError, match="uint8"):
        ggml.dequantize(np.zeros((1, 144), np.int8), Type.Q4_K, 256)
    with pytest.raises(InputError, match="ggml cannot expand I8"):
        ggml.dequantize(np.zeros((1, 256), np.uint8), Type.I8, 256)


@pytest.mark.parametrize(
    "block",
    [np.zeros((2, 256)), np.zeros(256, np.float32), np.zeros((256, 2), np.float32).T],
    ids=["float64", "one axis", "columns first"],
)
def test_a_block_of_another_kind_is_a_bug_of_the_caller(block: np.ndarray) -> None:
    with pytest.raises(TypeError, match=r"expected C-contiguous float32 \(rows, cols\)"):
        ggml.quantize(block, Type.Q4_K)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0])
def test_weights_must_be_finite_and_not_negative(bad: float) -> None:
    weights = np.ones(256, np.float32)
    weights[17] = bad
    with pytest.raises(InputError, match="importance weights must be finite and not negative"):
        ggml.quantize(random_block(1, 256), Type.Q4_K, weights)
    with pytest.raises(TypeError, match=r"float32 \(256,\)"):
        ggml.quantize(random_block(1, 256), Type.Q4_K, np.ones(255, np.float32))


def test_neither_llama_cpp_nor_numba_is_imported() -> None:
    done = run_python(
        "import sys, numpy as np; from lorafold.export.quant import ggml\n"
        "from lorafold.export.quant import quantize as kernels\n"
        "ggml.quantize(np.ones((1, 256), np.float32), ggml.Type.Q4_K)\n"
        "kernels.quantize(np.ones((1, 256), np.float32), ggml.Type.Q4_0)\n"
        "assert not {'llama_cpp', 'numba', 'torch'} & set(sys.modules)"
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_library_names_the_install_command(tmp_path: Path) -> None:
    code = "from lorafold.export.quant import ggml; ggml.requires_imatrix(ggml.Type.Q4_K)"
    absent = run_python("import sys; sys.modules['llama_cpp'] = None; " + code)
    assert "SystemFault" in absent.stderr and "fix: pip install llama-cpp-python" in absent.stderr
    elsewhere = run_python(code, LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert f"{tmp_path}: no ggml library" in elsewhere.stderr and "--force-reinstall" in elsewhere.stderr
    name = ggml.find_library().name
    (tmp_path / name).write_bytes(b"not a library")
    broken = run_python(code, LLAMA_CPP_LIB_PATH=str(tmp_path))
    assert "SystemFault" in broken.stderr and "ggml's library does not load" in broken.stderr
    assert SystemFault.exit_code == 5


def test_the_gil_is_released_while_ggml_works() -> None:
    block = random_block(64, 4096)
    steps, done = 0, threading.Event()

    def work() -> None:
        ggml.quantize(block, Type.IQ4_XS)  # about 0.1 s
        done.set()

    worker = threading.Thread(target=work)
    worker.start()
    while not done.is_set():
        steps += 1
    worker.join()
    assert steps > 1000


def test_values_that_ggml_would_abort_on_are_refused() -> None:
    block = random_block(1, 256) * np.float32(1e15)
    with pytest.raises(
        NumericError, match=r"values up to .*e\+15 are too large for IQ3_XXS; fix: choose a type"
    ):
        ggml.quantize(block, Type.IQ3_XXS)
    with pytest.raises(NumericError, match="too large for IQ2_XS"):
        ggml.quantize(random_block(1, 256), Type.IQ2_XS, np.full(256, 1e16, np.float32))
    with pytest.raises(NumericError, match="values up to nan"):
        ggml.quantize(np.full((1, 256), np.nan, np.float32), Type.IQ3_S)


PROVOKE = """
import numpy as np
from lorafold.export.quant import ggml
random = np.random.default_rng(0)
normal, ones = random.standard_normal((4, 512)), np.ones(512)
shapes = [
    normal,
    normal * (random.random(normal.shape) < 0.05),
    np.ones((4, 512)),
    normal * 10.0 ** random.uniform(-9, 0, normal.shape),
]
sizes = (0, 1e-41, 1e-12, 1, 1e3, 1e6)
for type in sorted(ggml.GRIDDED):
    for block in [(shape * size).astype(np.float32) for shape in shapes for size in sizes]:
        strongest = min(0.99e15 / max(float(np.abs(block).max()) ** 2, 1e-15), 1e30)
        sparse, halves = random.random(512) < 0.04, np.arange(512) // 64 % 2
        for weights in (ones * strongest, ones * 1e-42, ones * 0, sparse, halves):
            ggml.quantize(block, type, weights.astype(np.float32))
        if not ggml.requires_imatrix(type) and strongest > 1:
            ggml.quantize(block, type)
"""


@pytest.mark.slow
def test_what_is_not_refused_does_not_abort() -> None:
    done = run_python(PROVOKE)
    assert done.returncode == 0, done.stderr[-500:]
