"""SIMD lanes as values in numba code: `LANES` numbers that go through each operation at once.

The serial sums of ggml's quantizers keep a compiler from vectorizing them, and reordering a float sum
changes bytes. So the kernels give each SIMD lane a super-block of its own and write the scalar algorithm
once, with these lanes in the place of numbers: every lane then performs exactly the scalar's operations in
the scalar's order.

What comes in are float32 arrays, what goes out are LLVM vectors (`<16 x float>`), which LLVM splits for the
machine at hand: two AVX2 registers, one of AVX-512, four of NEON. None of the operations carries a
fast-math flag, so nothing is contracted into a fused multiply-add or reassociated.

Built on numba's low-level extension API (numba.extending). Importing this module imports numba: only
kernels do.
"""
# numba has no type stubs: its decorators and types are Any to mypy.
# mypy: disable-error-code="misc, untyped-decorator, no-untyped-call"

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

LANES = 16

# How the kernels' annotations name these values; numba infers the types itself.
FloatLanes: TypeAlias = Any
Ints: TypeAlias = Any
Mask: TypeAlias = Any
Array: TypeAlias = Any

# numba's disk cache looks at the file of the outermost function alone. Kernels take this as the default of
# their last argument, which makes it part of the cache's key: a change in any kernel module compiles again.
SOURCES = int.from_bytes(
    hashlib.sha256(
        b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    ).digest()[:7],
    "little",
)


def compiled(*settings: object) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function that is made inside another one, under a name of its own.

    numba calls machine code by the function's qualified name and a number that it counts from one in each
    process. A cached kernel brings the code of the functions that it calls, so two kernels that were compiled
    in different processes could bring different functions of one name, and one of the two would be called
    for both: wrong bytes, or memory overwritten.

    Args:
        settings: what the function was made for, different for each that is made in the same place.
    """

    def compile(function: Callable[..., Any]) -> Any:
        function.__qualname__ = "_".join([function.__qualname__, *map(str, settings)])
        return njit(function)

    return compile


class LanesType(types.Type):
    """The numba type of `LANES` numbers of one scalar type."""

    def __init__(self, scalar: Any) -> None:
        self.scalar = scalar
        super().__init__(name=f"lanes({scalar} x {LANES})")


@register_model(LanesType)
class LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: LanesType) -> None:
        super().__init__(manager, lanes, vector(LANE_SCALARS[lanes.scalar]))


FLOAT_LANES = LanesType(types.float32)
INTS = LanesType(types.int32)
MASK = LanesType(types.boolean)

_FLOAT, _INT, _BIT = ir.FloatType(), ir.IntType(32), ir.IntType(1)
LANE_SCALARS = {types.float32: _FLOAT, types.int32: _INT, types.boolean: _BIT}


def vector(scalar: Any) -> Any:
    return ir.VectorType(scalar, LANES)


def _splat(builder: Any, scalar: Any) -> Any:
    first = builder.insert_element(ir.Constant(vector(scalar.type), ir.Undefined), scalar, _INT(0))
    return builder.shuffle_vector(first, first, ir.Constant(vector(_INT), [0] * LANES))


def _widen(context: Any, builder: Any, value: Any, given: Any, wanted: Any) -> Any:
    """A scalar operand beside lanes stands for itself in every lane."""
    if given == wanted:
        return value
    return _splat(builder, context.cast(builder, value, given, wanted.scalar))


# --- operators ---

Emit: TypeAlias = Callable[[Any, Any, Any], Any]


def _define_operator(symbol: Any, operand: LanesType, result: LanesType, emit: Emit) -> None:
    @type_callable(symbol)
    def typer(context: Any) -> Any:
        def infer(left: Any, right: Any) -> LanesType | None:
            pair = (left, right)
            fits = all(side == operand or isinstance(side, types.Number) for side in pair)
            return result if operand in pair and fits else None

        return infer

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        left, right = (
            _widen(context, builder, value, given, operand)
            for value, given in zip(args, sig.args, strict=True)
        )
        return emit(builder, left, right)

    for pair in ((operand, operand), (operand, types.Number), (types.Number, operand)):
        lower_builtin(symbol, *pair)(lower)


for _symbol, _float, _int in (
    (operator.add, "fadd", "add"),
    (operator.sub, "fsub", "sub"),
    (operator.mul, "fmul", "mul"),
    (operator.truediv, "fdiv", None),
    (operator.and_, None, "and_"),
    (operator.or_, None, "or_"),
    (operator.lshift, None, "shl"),
    (operator.rshift, None, "ashr"),
):
    if _float:
        _define_operator(
            _symbol, FLOAT_LANES, FLOAT_LANES, lambda b, x, y, name=_float: getattr(b, name)(x, y)
        )
    if _int:
        _define_operator(_symbol, INTS, INTS, lambda b, x, y, name=_int: getattr(b, name)(x, y))

# Ordered comparisons, as C's: false if an operand is NaN; `!=` is the one that is then true.
for _symbol, _sign in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
):
    _define_operator(_symbol, FLOAT_LANES, MASK, lambda b, x, y, sign=_sign: b.fcmp_ordered(sign, x, y))
    _define_operator(_symbol, INTS, MASK, lambda b, x, y, sign=_sign: b.icmp_signed(sign, x, y))
_define_operator(operator.ne, FLOAT_LANES, MASK, lambda b, x, y: b.fcmp_unordered("!=", x, y))
_define_operator(operator.ne, INTS, MASK, lambda b, x, y: b.icmp_signed("!=", x, y))
_define_operator(operator.and_, MASK, MASK, lambda b, x, y: b.and_(x, y))
_define_operator(operator.or_, MASK, MASK, lambda b, x, y: b.or_(x, y))


# --- functions ---


@intrinsic
def select(typing: Any, mask: Mask, true: Any, false: Any) -> Any:
    """`true` in the lanes where the mask is set, else `false`; either may be a scalar."""
    result = true if isinstance(true, LanesType) else false

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        sides = (_widen(context, builder, args[i], sig.args[i], result) for i in (1, 2))
        return builder.select(args[0], *sides)

    return result(mask, true, false), emit


def _define_call(name: str, operand: LanesType, result: LanesType, emit: Callable[[Any, Any], Any]) -> Any:
    def function(typing: Any, lanes: Any) -> Any:
        if lanes != operand:
            return None
        return result(lanes), lambda context, builder, sig, args: emit(builder, args[0])

    function.__name__ = name
    return intrinsic(function)


def _call(builder: Any, name: str, *args: Any) -> Any:
    kind = ir.FunctionType(args[0].type, [a.type for a in args])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, args)


sqrt = _define_call("sqrt", FLOAT_LANES, FLOAT_LANES, lambda b, v: _call(b, f"llvm.sqrt.v{LANES}f32", v))
round_even = _define_call(
    "round_even", FLOAT_LANES, FLOAT_LANES, lambda b, v: _call(b, f"llvm.roundeven.v{LANES}f32", v)
)
absolute = _define_call(
    "absolute", FLOAT_LANES, FLOAT_LANES, lambda b, v: _call(b, f"llvm.fabs.v{LANES}f32", v)
)
bits = _define_call("bits", FLOAT_LANES, INTS, lambda b, v: b.bitcast(v, vector(_INT)))
from_bits = _define_call("from_bits", INTS, FLOAT_LANES, lambda b, v: b.bitcast(v, vector(_FLOAT)))
to_float = _define_call("to_float", INTS, FLOAT_LANES, lambda b, v: b.sitofp(v, vector(_FLOAT)))
truncate = _define_call("truncate", FLOAT_LANES, INTS, lambda b, v: b.fptosi(v, vector(_INT)))
flip = _define_call("flip", MASK, MASK, lambda b, v: b.not_(v))


def define_choice(name: str, bounds: Sequence[float], choices: Sequence[float]) -> Any:
    """Compile a step function: `choices[k]` if k of the ascending `bounds` are at or below the value.

    The result is INTS if all choices are from a range, else FLOAT_LANES. A NaN counts as below every bound.
    """
    result = INTS if isinstance(choices, range) else FLOAT_LANES
    scalar = LANE_SCALARS[result.scalar]

    def constant(scalar: Any, value: float) -> Any:
        return ir.Constant(vector(scalar), [scalar(value)] * LANES)

    def emit(builder: Any, value: Any) -> Any:
        # Bisection in all lanes at once: the bound to compare with next is itself selected by what is known.
        known: list[Any] = []

        def pick(options: Sequence[Any]) -> Any:
            for mask in reversed(known):
                options = [
                    builder.select(mask, high, low) for low, high in zip(*[iter(options)] * 2, strict=True)
                ]
            return options[0]

        step = len(choices)
        while step > 1:
            bound = pick([constant(_FLOAT, b) for b in bounds[step // 2 - 1 :: step]])
            known.append(builder.fcmp_ordered(">=", value, bound))
            step //= 2
        return pick([constant(scalar, choice) for choice in choices])

    return _define_call(name, FLOAT_LANES, result, emit)


@intrinsic
def any_lane(typing: Any, mask: Mask) -> Any:
    """Whether the mask is set in at least one lane, as an ordinary bool."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.icmp_unsigned("!=", builder.bitcast(args[0], ir.IntType(LANES)), ir.IntType(LANES)(0))

    return types.boolean(mask), emit


@intrinsic
def floats(typing: Any, value: Any) -> Any:
    """The same float32 in every lane."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _widen(context, builder, args[0], sig.args[0], FLOAT_LANES)

    return FLOAT_LANES(value), emit


@intrinsic
def ints(typing: Any, value: Any) -> Any:
    """The same int32 in every lane."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _widen(context, builder, args[0], sig.args[0], INTS)

    return INTS(value), emit


@intrinsic
def highest(typing: Any, lanes: FloatLanes) -> Any:
    """The largest of the lanes as one float32; none may be NaN."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        best, width = args[0], LANES
        while width > 1:
            width //= 2
            swap = ir.Constant(vector(_INT), [(i + width) % LANES for i in range(LANES)])
            other = builder.shuffle_vector(best, best, swap)
            best = builder.select(builder.fcmp_ordered(">", best, other), best, other)
        return builder.extract_element(best, _INT(0))

    return types.float32(lanes), emit
