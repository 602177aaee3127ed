"""ggml's own quantization, called in place: float32 row blocks in, GGUF row bytes out, and back.

The functions live in the `ggml-base` library that llama-cpp-python installs beside its package; it is loaded
by path through ctypes, so that the `llama_cpp` package itself (0.2 s) is never imported. ctypes releases the
GIL around each call and ggml keeps no state but lazily built, locked tables: threads may call at once.

Specification: `ggml.h` of the installed library (`ggml_quantize_chunk`, `ggml_row_size`,
`ggml_quantize_requires_imatrix`) and gguf-py's block sizes. ggml aborts the whole process on a type, width or
weights it does not expect, so everything it asserts is checked here first.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.errors import InputError, NumericError, SystemFault

INSTALL = "pip install llama-cpp-python"

# What `ggml_quantize_chunk` has a case for; any other type aborts inside it.
QUANTIZABLE = frozenset(
    {
        *(Type.F32, Type.F16, Type.BF16),
        *(Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0),
        *(Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K),
        *(Type.IQ1_S, Type.IQ1_M, Type.IQ2_XXS, Type.IQ2_XS, Type.IQ2_S),
        *(Type.IQ3_XXS, Type.IQ3_S, Type.IQ4_NL, Type.IQ4_XS),
        *(Type.TQ1_0, Type.TQ2_0, Type.MXFP4),
    }
)

# Types that ggml quantizes by search in a grid. It asserts that the search finds something, which fails
# when sums overflow: seen from values of 1e15 on, and from 1e4 on with weights of 1e37.
GRIDDED = frozenset(type for type in QUANTIZABLE if type.name.startswith(("IQ1", "IQ2", "IQ3")))
_STRONGEST = 1e15  # largest value squared times largest weight; its square is far from overflow

_LIBRARY_NAMES = {
    "darwin": ("libggml-base.dylib", "libggml-base.so"),
    "win32": ("ggml-base.dll", "libggml-base.dll"),
}


def quantize(
    block: NDArray[np.float32], type: Type, weights: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """Quantize rows with ggml's own code.

    Args:
        block: (rows, cols) float32, C-contiguous, finite.
        type: what to write.
        weights: (cols,) float32, finite and not negative: the importance of each column, or None.

    Returns:
        (rows, `row_size(type, cols)`) uint8: the rows as they stand in a GGUF file.

    Raises:
        InputError: a type that cannot be written, a width that its blocks do not divide, or no weights for a
            type that needs them.
        NumericError: values or weights so large that ggml's search would abort the process.
        SystemFault: ggml's library is missing.
    """
    rows, cols = check_arguments(block, type, weights)
    library = _library()
    out = np.empty((rows, row_size(type, cols)), np.uint8)
    if type == Type.F32:
        return block.view(np.uint8).reshape(out.shape).copy()
    if out.size == 0:
        return out
    if type in GRIDDED:
        largest = float(np.abs(block).max())
        # Written so that NaN fails too.
        if not largest * largest * (1.0 if weights is None else float(weights.max())) <= _STRONGEST:
            raise NumericError(
                f"values up to {largest:g} are too large for {type.name}",
                fix="choose a type of 4 bits or more",
            )
    source = block.ctypes.data_as(ctypes.c_void_p)
    importance = None if weights is None else weights.ctypes.data_as(ctypes.c_void_p)
    written = library.ggml_quantize_chunk(
        int(type), source, out.ctypes.data_as(ctypes.c_void_p), 0, rows, cols, importance
    )
    if written != out.size:
        raise SystemFault(
            f"ggml wrote {written} bytes of {type.name} where {out.size} were expected",
            at=library._name,
            fix=f"reinstall llama-cpp-python: {INSTALL} --force-reinstall",
        )
    return out


def dequantize(rows: NDArray[np.uint8], type: Type, cols: int) -> NDArray[np.float32]:
    """The values that quantized rows stand for, as ggml computes them.

    Args:
        rows: (rows, `row_size(type, cols)`) uint8, C-contiguous.
        type: what the bytes are.
        cols: values in a row.

    Returns:
        (rows, cols) float32.

    Raises:
        InputError: a type that ggml cannot expand, or bytes that are not rows of `cols` values.
        SystemFault: ggml's library is missing.
    """
    count, nbytes = rows.shape
    if rows.dtype != np.uint8 or not rows.flags.c_contiguous:
        raise TypeError(f"expected C-contiguous uint8 rows, got {rows.dtype}")
    if nbytes != row_size(type, cols):
        raise InputError(
            f"a row of {cols} {type.name} values takes {row_size(type, cols)} bytes, got {nbytes}",
            fix="download or export the file again",
        )
    if type == Type.F32:
        return rows.view(np.float32).copy()
    out = np.empty((count, cols), np.float32)
    if out.size:
        expand = _expander(type)
        expand(rows.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), out.size)
    return out


def row_size(type: Type, cols: int) -> int:
    """Bytes of one row of `cols` values; agrees with `ggml_row_size` without loading the library.

    Raises:
        InputError: the type's blocks do not divide the width.
    """
    values, nbytes = block_size(type)
    if cols <= 0 or cols % values:
        raise InputError(
            f"{type.name} stores blocks of {values} values, which do not divide a row of {cols}",
            fix="choose another type for this tensor (Q8_0 divides by 32, F16 takes any width)",
        )
    return cols // values * nbytes


def block_size(type: Type) -> tuple[int, int]:
    """(values, bytes) of one block of a type; a row is a whole number of blocks."""
    values, nbytes = gguf.GGML_QUANT_SIZES[type]
    return int(values), int(nbytes)


IGNORES_IMATRIX = frozenset({Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.MXFP4})
"""Types that ggml writes with the same bytes whatever the importance weights are."""


def requires_imatrix(type: Type) -> bool:
    """Whether ggml refuses (by aborting the process) to write this type without importance weights."""
    # IQ1_M and IQ2_S are not in ggml's own list, but llama.cpp's quantizer asks for weights there too; here
    # the library is followed, and the recipes decide what is sensible.
    return bool(_library().ggml_quantize_requires_imatrix(int(type)))


def find_library() -> Path:
    """The `ggml-base` library in use.

    Raises:
        SystemFault: llama-cpp-python is not installed, or its library is not where it should be.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        raise SystemFault("llama-cpp-python, whose ggml quantizes, is not installed", fix=INSTALL)
    # llama_cpp itself follows this variable: both must speak to the same library.
    override = os.environ.get("LLAMA_CPP_LIB_PATH")
    folders = [Path(override)] if override else [Path(p) / "lib" for p in spec.submodule_search_locations]
    names = _LIBRARY_NAMES.get(sys.platform, ("libggml-base.so",))
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    raise SystemFault(
        f"no ggml library ({' or '.join(names)})", at=folders[0], fix=f"{INSTALL} --force-reinstall"
    )


def check_arguments(
    block: NDArray[np.float32], type: Type, weights: NDArray[np.float32] | None
) -> tuple[int, int]:
    """Refuse what ggml would abort on; values are not looked at except in `weights`.

    Returns:
        (rows, cols) of the block.

    Raises:
        InputError: the type cannot be written, does not divide the width, or needs weights.
        TypeError: a wrong dtype, shape or memory layout (a mistake of the caller, not of the user).
    """
    if block.ndim != 2 or block.dtype != np.float32 or not block.flags.c_contiguous:
        raise TypeError(f"expected C-contiguous float32 (rows, cols), got {block.dtype} {block.shape}")
    rows, cols = block.shape
    if type not in QUANTIZABLE:
        names = " ".join(sorted(t.name for t in QUANTIZABLE))
        raise InputError(f"cannot quantize to {Type(type).name}", fix=f"choose one of {names}")
    row_size(type, cols)
    if weights is None:
        if requires_imatrix(type):
            raise InputError(
                f"{type.name} needs an importance matrix",
                fix="pass --imatrix, or choose a type of 3 bits or more",
            )
    else:
        if weights.shape != (cols,) or weights.dtype != np.float32 or not weights.flags.c_contiguous:
            raise TypeError(
                f"expected C-contiguous float32 ({cols},) weights, got {weights.dtype} {weights.shape}"
            )
        # NaN fails the first comparison, infinity the second.
        if not (weights.min() >= 0 and weights.max() < np.inf):
            raise InputError(
                "importance weights must be finite and not negative", fix="make it again with llama-imatrix"
            )
    return rows, cols


@functools.cache
def _library() -> ctypes.CDLL:
    path = find_library()
    if sys.platform == "win32":
        os.add_dll_directory(str(path.parent))
    try:
        library = ctypes.CDLL(str(path))
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        library.ggml_quantize_chunk.argtypes = [
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_int64,
            ctypes.c_void_p,
        ]
        library.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
        library.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
        library.ggml_type_name.restype = ctypes.c_char_p
        library.ggml_type_name.argtypes = [ctypes.c_int]
        library.ggml_row_size.restype = ctypes.c_size_t
        library.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    except (OSError, AttributeError) as error:
        raise SystemFault(
            f"ggml's library does not load: {error}", at=path, fix=f"{INSTALL} --force-reinstall"
        ) from error
    return library


@functools.cache
def _expander(type: Type) -> Callable[[Any, Any, int], None]:
    """ggml's `void dequantize_row_TYPE(const void * rows, float * out, int64_t values)`."""
    library = _library()
    name = "" if type not in QUANTIZABLE else library.ggml_type_name(int(type)).decode()
    symbol = {
        Type.F16: "ggml_fp16_to_fp32_row",
        Type.BF16: "ggml_bf16_to_fp32_row",
    }.get(type, f"dequantize_row_{name}")
    try:
        function = getattr(library, symbol)
    except AttributeError:
        raise InputError(
            f"ggml cannot expand {type.name}", at=library._name, fix="update llama-cpp-python"
        ) from None
    function.restype = None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return function  # type: ignore[no-any-return]
