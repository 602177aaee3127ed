"""Between flat numpy arrays and lanes: loads, stores, narrow stores, and the transposition of a square.

Specification: LLVM's vector loads and stores at the alignment of one element. Offsets count elements of the
array.
"""
# numba has no type stubs.
# mypy: disable-error-code="misc, untyped-decorator, no-untyped-call"

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic

from lorafold.export.quant.kernels.lanes import FLOAT_LANES, INTS, LANES, Array, FloatLanes, vector


def _address(context: Any, builder: Any, array: Any, value: Any, offset: Any) -> Any:
    """Pointer to element `offset` of a flat C-contiguous array, as LANES values."""
    pointer = builder.gep(context.make_array(array)(context, builder, value).data, [offset])
    return builder.bitcast(pointer, vector(pointer.type.pointee).as_pointer())


@intrinsic
def load(typing: Any, array: Array, offset: int) -> Any:
    """LANES consecutive values of a flat float32 or int32 array, from element `offset` on."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _address(context, builder, sig.args[0], args[0], args[1])
        return builder.load(pointer, align=4)

    result = {types.float32: FLOAT_LANES, types.int32: INTS}[array.dtype]
    return result(array, types.intp), emit


@intrinsic
def store(typing: Any, array: Array, offset: int, lanes: FloatLanes) -> Any:
    """Put all lanes into a flat array of their type, from element `offset` on."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = _address(context, builder, sig.args[0], args[0], args[1])
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), emit


def _define_narrow_store(name: str, bits: int) -> Any:
    def function(typing: Any, array: Any, offset: Any, lanes: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            narrow = vector(ir.IntType(bits))
            pointer = _address(context, builder, sig.args[0], args[0], args[1])
            pointer = builder.bitcast(pointer, narrow.as_pointer())
            builder.store(builder.trunc(args[2], narrow), pointer, align=1)
            return context.get_dummy_value()

        return types.void(array, types.intp, lanes), emit

    function.__name__ = name
    return intrinsic(function)


# store_bytes(array, offset, ints): the low 8 bits of each lane into a flat uint8 array, from byte `offset`
# on; store_halves the low 16, little-endian.
store_bytes = _define_narrow_store("store_bytes", 8)
store_halves = _define_narrow_store("store_halves", 16)


@intrinsic
def transpose(typing: Any, source: Array, start: int, stride: int, target: Array) -> Any:
    """Turn a square of LANES x LANES float32 around: row l begins at `source[start + l * stride]`.

    Afterwards `target[i * LANES + l] == source[start + l * stride + i]` for all i, l below LANES.
    """

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, start, stride, target = args
        rows = []
        for lane in range(LANES):
            offset = builder.add(start, builder.mul(stride, stride.type(lane)))
            pointer = _address(context, builder, sig.args[0], value, offset)
            rows.append(builder.load(pointer, align=4))
        # log2(LANES) rounds; each exchanges the off-diagonal halves of squares half the size of the last.
        half = LANES // 2
        while half:
            low = [i if i & half == 0 else LANES + (i ^ half) for i in range(LANES)]
            high = [i ^ half if i & half == 0 else LANES + i for i in range(LANES)]
            turned = list(rows)
            for i in range(LANES):
                if i & half == 0:
                    pair = rows[i], rows[i | half]
                    turned[i] = builder.shuffle_vector(*pair, ir.Constant(vector(ir.IntType(32)), low))
                    turned[i | half] = builder.shuffle_vector(
                        *pair, ir.Constant(vector(ir.IntType(32)), high)
                    )
            rows = turned
            half //= 2
        for i, row in enumerate(rows):
            builder.store(
                row, _address(context, builder, sig.args[3], target, start.type(i * LANES)), align=4
            )
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target), emit


SUPER = 256


@njit
def gather_values(x: Array, group: int, total: int, size: int, rest: Array, values: Array) -> Any:
    """Bring super-blocks `group`, `group + 1`, ... into the lanes.

    Args:
        x: (total, size) float32, flat.
        group: the super-block of lane 0.
        total: super-blocks in `x`.
        size: values in a super-block, a multiple of LANES.
        rest: room for LANES super-blocks: the last group is copied there when it does not fill all lanes.
        values: to be filled: (size, LANES) float32, flat.

    Returns:
        The array and element where the super-blocks lie one after the other, and how many lanes are used.
    """
    used = min(LANES, total - group)
    source, at = x, group * size
    if used < LANES:
        for i in range(used * size):
            rest[i] = x[at + i]
        for i in range(used * size, LANES * size):
            rest[i] = 0.0
        source, at = rest, 0
    for i in range(0, size, LANES):
        transpose(source, at + i, size, values[i * LANES :])
    return source, at, used


@njit
def gather_importance(importance: Array, group: int, size: int, spread: Array, columns: Array) -> None:
    """Bring each lane the importance of its own columns.

    Args:
        importance: (cols,) float32; super-block b of the matrix has columns from `b * size % cols` on.
        group: the super-block of lane 0.
        size: values in a super-block, a multiple of LANES.
        spread: scratch for LANES super-blocks.
        columns: to be filled: (size, LANES) float32, flat.
    """
    for lane in range(LANES):
        first = (group + lane) * size % importance.size
        for i in range(size):
            spread[lane * size + i] = importance[first + i]
    for i in range(0, size, LANES):
        transpose(spread, i, size, columns[i * LANES :])


@njit
def store_half(out: Array, to: int, half: int) -> None:
    """Two bytes, little-endian."""
    out[to] = half & 255
    out[to + 1] = half >> 8
