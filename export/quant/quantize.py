"""The one entry to quantization: float32 row blocks in, GGUF row bytes out, as fast as this machine allows.

For the types in `_KERNELS` there are numba kernels that run several times faster than ggml's and write the
same bytes. Each is checked against ggml when it is first needed; if it differs, does not compile, or
numba is missing, ggml itself does the work and `kernel_report` says why. All other types are ggml's.

numba is imported when the first kernel is needed, and machine code is kept on disk (numba's cache: beside
this module, or in the user's cache folder if that is read-only). Any number of threads may call at once;
while one compiles a kernel, the others go on with ggml.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

from lorafold.errors import InputError, NumericError
from lorafold.export.quant import ggml
from lorafold.stopwatch import doing

# What numba compiles, for importance weights and for None instead: (x, importance, out, odd), all flat.
# `odd` has a flag for each block of the type; a row with one set holds values (subnormal, or nearly
# overflowing) for which only ggml itself has the bytes.
Kernel: TypeAlias = Callable[[Any, Any, Any, Any], None]

# type -> module, function, and whether importance weights make a difference.
_KERNELS: dict[Type, tuple[str, str, bool]] = {
    Type.F16: ("plain", "f16", False),
    Type.Q8_0: ("plain", "q8_0", False),
    Type.IQ4_XS: ("iq4", "iq4_xs", True),
    Type.IQ4_NL: ("iq4", "iq4_nl", True),
    Type.Q2_K: ("affine", "q2_k", True),
    Type.Q3_K: ("symmetric", "q3_k", True),
    Type.Q4_K: ("affine", "q4_k", True),
    Type.Q5_K: ("affine", "q5_k", True),
    Type.Q6_K: ("symmetric", "q6_k", True),
}

_INFINITE_IN_F16 = 65520.0  # the smallest magnitude that rounds to infinity
# A block's scale is F16, and its largest value is so many times that, or is stored as it is (the least value
# of Q4_1 and Q5_1). All others have scales of scales, and at least 15 times.
_STEPS = {Type.Q4_0: 8, Type.Q5_0: 16, Type.Q8_0: 127, Type.Q4_1: 1, Type.Q5_1: 1}
_UNBOUNDED = (Type.F32, Type.BF16, Type.MXFP4)


@dataclass(frozen=True, slots=True)
class KernelState:
    """What became of one kernel.

    Attributes:
        type: the quantization type.
        weighted: whether this is the variant for importance weights.
        backend: "numba" or "ggml".
        reason: why it is ggml; empty for numba.
        seconds: what it took to compile or load the kernel and check it.
    """

    type: Type
    weighted: bool
    backend: str
    reason: str
    seconds: float


_states: dict[tuple[Type, bool], tuple[Kernel | None, KernelState]] = {}
_compiling = threading.Lock()


def quantize(
    block: NDArray[np.float32],
    type: Type,
    weights: NDArray[np.float32] | None = None,
    *,
    at: str | None = None,
    first_row: int = 0,
) -> NDArray[np.uint8]:
    """Quantize rows; the bytes are those that ggml writes.

    Args:
        block: (rows, cols) float32, C-contiguous.
        type: what to write.
        weights: (cols,) float32, the importance of each column, or None.
        at: the tensor, for error messages. What goes into a file has one: then a value that makes a scale
            infinite is refused, of which ggml writes NaN or zeros.
        first_row: the row of the tensor at which the block begins, for error messages.

    Returns:
        (rows, `ggml.row_size(type, cols)`) uint8.

    Raises:
        InputError: a type that cannot be written, does not divide the width, or needs weights.
        NumericError: a value is NaN or infinite, or too large for F16, for the type's scales, or for a search
            of ggml's.
        SystemFault: ggml's library is missing.
    """
    try:
        ggml.check_arguments(block, type, weights)
        if block.size:
            _check_values(block, type, at, first_row)
            kernel = _kernel(type, weights is not None, wait=False)
            if kernel:
                return _run(kernel, block, type, weights)
        return ggml.quantize(block, type, weights)
    except (InputError, NumericError) as error:
        if error.at or not at:
            raise
        raise error.__class__(error.problem, at=at, fix=error.fix) from None


def compile_kernels(types: Iterable[Type], weighted: bool = False) -> None:
    """Compile or load the kernels of some types ahead of need, say while headers are still being read."""
    for type in types:
        _kernel(type, weighted, wait=True)


def import_compiler(types: Iterable[Type]) -> None:
    """Import numba, most of a second, if one of these types has a kernel; nothing if it is missing.

    On a worker thread it would stand in the way of all others: they share the interpreter.
    """
    if any(type in _KERNELS for type in types):
        with contextlib.suppress(ImportError):
            importlib.import_module("numba")


def kernel_report() -> list[KernelState]:
    """The kernels needed so far, in the order of need, each with its backend and the reason for it."""
    return [state for _, state in _states.values()]


def _check_values(block: NDArray[np.float32], type: Type, at: str | None, first_row: int) -> None:
    low, high = block.min(), block.max()  # NaN if there is one
    limit = _INFINITE_IN_F16 if type == Type.F16 else _limit(type) if at is not None else np.inf
    if high < limit and low > -limit:
        return
    row, col = (int(i) for i in np.argwhere(~(np.abs(block) < limit))[0])
    value = block[row, col]
    place = f"{at or 'tensor'}, row {first_row + row}, column {col}"
    if np.isfinite(value):
        if type == Type.F16:
            raise NumericError(
                f"{value:g} does not fit F16", at=place, fix="choose BF16, F32 or a quantized type"
            )
        raise NumericError(
            f"{value:g} does not fit {type.name}, whose scales are F16",
            at=place,
            fix="check the base's files and the adapter, or choose BF16",
        )
    raise NumericError(
        f"the value is {value}",
        at=place,
        fix="check the base's files and the adapter; a training run that diverged leaves NaN behind",
    )


def _limit(type: Type) -> float:
    """From which size on a value makes an infinite scale: scales are F16."""
    return np.inf if type in _UNBOUNDED else _INFINITE_IN_F16 * _STEPS.get(type, 8)


def _run(
    kernel: Kernel, block: NDArray[np.float32], type: Type, weights: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    if not block.flags.writeable:
        block = block.copy()  # numba would compile another kernel for a read-only array
    importance = weights if _KERNELS[type][2] else None
    if importance is not None and not importance.flags.writeable:
        importance = importance.copy()
    rows, cols = block.shape
    values = ggml.block_size(type)[0]
    out = np.empty((rows, ggml.row_size(type, cols)), np.uint8)
    odd = np.zeros((rows, cols // values if values > 1 else 0), np.uint8)  # F16 has no blocks and no flags
    kernel(block.reshape(-1), importance, out.reshape(-1), odd.reshape(-1))
    for row in np.flatnonzero(odd.any(axis=1)):
        out[row] = ggml.quantize(block[row : row + 1], type, weights)
    return out


def _kernel(type: Type, weighted: bool, wait: bool) -> Kernel | None:
    """The kernel to use now; None is ggml: for good or, not told to wait, while another thread compiles."""
    if type not in _KERNELS:
        return None
    key = (type, weighted and _KERNELS[type][2])
    state = _states.get(key)
    if state is None:
        if not _compiling.acquire(blocking=wait):
            return None
        try:
            with doing("compile"):
                state = _states.get(key) or _states.setdefault(key, _build(*key))
        finally:
            _compiling.release()
    return state[0]


def _build(type: Type, weighted: bool) -> tuple[Kernel | None, KernelState]:
    start = time.perf_counter()
    kernel: Kernel | None = None
    try:
        kernel = _compile(type, weighted)
        reason = "" if _agrees(kernel, type, weighted) else "its bytes differ from ggml's on this machine"
    except ImportError as error:
        reason = f"{error}; install it with: pip install numba"
    except Exception as error:
        # Whatever a compiler may stumble over on some machine: ggml is always there, and the report keeps
        # the cause.
        reason = f"{error.__class__.__name__}: {error}"
    seconds = time.perf_counter() - start
    backend = "ggml" if reason else "numba"
    return (None if reason else kernel), KernelState(type, weighted, backend, reason, seconds)


def _compile(type: Type, weighted: bool) -> Kernel:
    import numba

    module, name, _ = _KERNELS[type]
    function = getattr(importlib.import_module(f"lorafold.export.quant.kernels.{module}"), name)
    values = ggml.block_size(type)[0]
    zeros, weights = np.zeros((1, values), np.float32), np.ones(values, np.float32) if weighted else None
    try:
        kernel: Kernel = numba.njit(nogil=True, cache=True)(function)
        _run(kernel, zeros, type, weights)
    except Exception:
        # No folder to cache in, a full disk, a broken cache file: compile for this process alone.
        kernel = numba.njit(nogil=True)(function)
        _run(kernel, zeros, type, weights)
    return kernel


def _agrees(kernel: Kernel, type: Type, weighted: bool) -> bool:
    """Whether a kernel writes ggml's bytes for normal, zero, outlying, tiny and mixed rows, tail included."""
    random = np.random.default_rng(20261123)
    rows, cols = 21, 512
    block = random.standard_normal((rows, cols)).astype(np.float32) * np.float32(0.02)
    block[4] = 0
    block[5, ::97] *= 1000
    block[6:8] *= np.float32(1e-28)
    block[8:10] = -np.abs(block[8:10])
    block[10] = 0.25
    block[11:15] *= (10.0 ** random.uniform(-4, 1, (4, cols // 16))).astype(np.float32).repeat(16, axis=1)
    block[15:18] *= (10.0 ** random.uniform(-6, 3, (3, cols))).astype(np.float32)
    weights = None
    if weighted:
        weights = (random.random(cols) ** 4).astype(np.float32)
        weights[random.random(cols) < 0.1] = 0
    return np.array_equal(_run(kernel, block, type, weights), ggml.quantize(block, type, weights))
