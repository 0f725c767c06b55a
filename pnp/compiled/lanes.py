"""Cells side by side: numbers of numba that are vectors of float64, one for each of sixteen cells.

A kernel written for one cell becomes one for sixteen: `+ - * /` and comparisons act on every lane, :func:`where`
chooses lane by lane, and the compiler emits the vector instructions of the processor, whatever their width.
Loops over lanes, from which a compiler would have to find that out by itself, it vectorises here and there.

Lanes live in a flat float64 array of *rows* of :data:`LANES` numbers, see :func:`load` and :func:`store`.
"""

import hashlib
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 16


def inlined(function: Callable) -> Any:
    """Compile as a part of the kernels that call it, with what is constant there."""
    return njit(forceinline=True, nogil=True, error_model="numpy")(function)


def _digest() -> str:
    """Of the sources of this package."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_DIGEST = _digest()


def kernel(function: Callable) -> Any:
    """Compile at the first call and keep the machine code on disk for the next process.

    numba looks only at the file that a function is in to see whether what it kept is out of date; a kernel is made
    of several.
    """
    # Sums may be taken in any order, as vectors need it.
    dispatcher = njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})(function)
    dispatcher._cache._cache_file._source_stamp = _DIGEST
    return dispatcher


_DOUBLE, _BITS = ir.DoubleType(), ir.IntType(64)
_VECTOR, _MASK = ir.VectorType(_DOUBLE, LANES), ir.VectorType(ir.IntType(1), LANES)
_CONTRACT = ("contract",)


class Lanes(types.Type):
    """Float64, one a cell."""

    def __init__(self) -> None:
        super().__init__(name=f"Lanes({LANES})")


class Mask(types.Type):
    """Truth values, one a cell."""

    def __init__(self) -> None:
        super().__init__(name=f"Mask({LANES})")


lanes, mask = Lanes(), Mask()


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, _VECTOR)


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, _MASK)


def _broadcast(builder: Any, value: Any) -> Any:
    one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), zeros)


def _cast(context: Any, builder: Any, value: Any, type_: Any) -> Any:
    """A vector from lanes or from one number for all of them."""
    if type_ == lanes:
        return value
    return _broadcast(builder, context.cast(builder, value, type_, types.float64))


def _is_operand(type_: Any) -> bool:
    return isinstance(type_, Lanes | types.Number)


def _elementwise(result: Any, emit: Callable) -> Any:
    """An intrinsic of two operands of which at least one is of lanes."""

    @intrinsic
    def operation(_typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return emit(
                builder,
                *(_cast(context, builder, *one) for one in zip(arguments, signature.args, strict=True)),
            )

        return result(a, b), generate

    return operation


def _register(function: Any, result: Any, emit: Callable) -> None:
    operation = _elementwise(result, emit)

    @overload(function, strict=False)
    def implementation(a: Any, b: Any) -> Any:
        if _is_operand(a) and _is_operand(b) and lanes in (a, b):
            return lambda a, b: operation(a, b)
        return None


for _function, _emit in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register(
        _function, lanes, lambda builder, a, b, emit=_emit: getattr(builder, emit)(a, b, flags=_CONTRACT)
    )
for _function, _emit in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
):
    _register(_function, mask, lambda builder, a, b, emit=_emit: builder.fcmp_ordered(emit, a, b))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


largest, smallest = _elementwise(lanes, _larger), _elementwise(lanes, _smaller)


@overload(operator.neg, strict=False)
def _negative(a: Any) -> Any:
    return (lambda a: 0.0 - a) if isinstance(a, Lanes) else None


@intrinsic
def _both(_typing: Any, a: Any, b: Any) -> Any:
    return mask(a, b), lambda context, builder, signature, arguments: builder.and_(*arguments)


@intrinsic
def _either(_typing: Any, a: Any, b: Any) -> Any:
    return mask(a, b), lambda context, builder, signature, arguments: builder.or_(*arguments)


@intrinsic
def _opposite(_typing: Any, a: Any) -> Any:
    return mask(a), lambda context, builder, signature, arguments: builder.not_(arguments[0])


@overload(operator.and_, strict=False)
def _and(a: Any, b: Any) -> Any:
    return (lambda a, b: _both(a, b)) if isinstance(a, Mask) and isinstance(b, Mask) else None


@overload(operator.or_, strict=False)
def _or(a: Any, b: Any) -> Any:
    return (lambda a, b: _either(a, b)) if isinstance(a, Mask) and isinstance(b, Mask) else None


@overload(operator.invert, strict=False)
def _not(a: Any) -> Any:
    return (lambda a: _opposite(a)) if isinstance(a, Mask) else None


@intrinsic
def where(_typing: Any, condition: Any, a: Any, b: Any) -> Any:
    """`a` in the lanes where `condition` holds, else `b`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        choice = (
            _cast(context, builder, *one) for one in zip(arguments[1:], signature.args[1:], strict=True)
        )
        return builder.select(arguments[0], *choice)

    return lanes(condition, a, b), generate


@intrinsic
def any_lane(_typing: Any, condition: Any) -> Any:
    """Whether a condition holds in any lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(LANES)
        return builder.icmp_unsigned("!=", builder.bitcast(arguments[0], word), ir.Constant(word, 0))

    return types.boolean(condition), generate


@intrinsic
def splat(_typing: Any, value: Any) -> Any:
    """The same number in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _cast(context, builder, arguments[0], signature.args[0])

    return lanes(value), generate


def _row_pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, value=arguments[0])
    first = builder.mul(arguments[1], context.get_constant(types.int64, LANES))
    return builder.bitcast(builder.gep(array.data, [first]), ir.PointerType(_VECTOR))


@intrinsic
def load(_typing: Any, work: Any, row: Any) -> Any:
    """Row `row` of a flat array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        instruction = builder.load(_row_pointer(context, builder, signature, arguments))
        instruction.align = 8
        return instruction

    return lanes(work, types.int64), generate


@intrinsic
def store(_typing: Any, work: Any, row: Any, value: Any) -> Any:
    """Put a value into row `row` of a flat array."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = _cast(context, builder, arguments[2], signature.args[2])
        instruction = builder.store(value, _row_pointer(context, builder, signature, arguments))
        instruction.align = 8
        return context.get_dummy_value()

    return types.void(work, types.int64, value), generate


def _unary(name: str) -> Any:
    """An intrinsic of LLVM that takes and gives a vector."""

    @intrinsic
    def operation(_typing: Any, a: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            type_ = ir.FunctionType(_VECTOR, [_VECTOR])
            function = cgutils.get_or_insert_function(builder.module, type_, f"{name}.v{LANES}f64")
            return builder.call(function, arguments)

        return lanes(a), generate

    return operation


absolute, square_root, logarithm = _unary("llvm.fabs"), _unary("llvm.sqrt"), _unary("llvm.log")


@intrinsic
def total(_typing: Any, a: Any) -> Any:
    """Sum over the lanes, in any order."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        type_ = ir.FunctionType(_DOUBLE, [_DOUBLE, _VECTOR])
        name = f"llvm.vector.reduce.fadd.v{LANES}f64"
        function = cgutils.get_or_insert_function(builder.module, type_, name)
        return builder.call(function, [ir.Constant(_DOUBLE, 0.0), arguments[0]], fastmath=("reassoc",))

    return types.float64(a), generate


@intrinsic
def _power_of_two(_typing: Any, shifted: Any) -> Any:
    """2ⁿ from n + 1.5·2⁵², whose last bits are those of n."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        words = ir.VectorType(_BITS, LANES)
        bits = builder.bitcast(arguments[0], words)
        biased = builder.add(bits, ir.Constant(words, [1023] * LANES))
        return builder.bitcast(builder.shl(biased, ir.Constant(words, [52] * LANES)), _VECTOR)

    return lanes(shifted), generate


_ROUND = 1.5 * 2.0**52
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.4426950408889634, 0.693147180369123816490, 1.90821492927058770002e-10


@inlined
def exponential(x: Any) -> Any:
    """:math:`e^x` to rounding for |x| < 708: :math:`2^n e^r` with |r| < 0.35 and Taylor's series of :math:`e^r`."""
    shifted = x * _LOG2_E + _ROUND
    n = shifted - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = r * (1 / 6227020800) + 1 / 479001600
    p = p * r + 1 / 39916800
    p = p * r + 1 / 3628800
    p = p * r + 1 / 362880
    p = p * r + 1 / 40320
    p = p * r + 1 / 5040
    p = p * r + 1 / 720
    p = p * r + 1 / 120
    p = p * r + 1 / 24
    p = p * r + 1 / 6
    p = p * r + 0.5
    p = p * r + 1.0
    p = p * r + 1.0
    return p * _power_of_two(shifted)


@kernel
def scalar_product(a: Any, b: Any) -> float:
    """Of `a` and as many numbers of `b`."""
    product = splat(0.0)
    rows = a.size // LANES
    for row in range(rows):
        product = product + load(a, row) * load(b, row)
    result = total(product)
    for k in range(rows * LANES, a.size):
        result += a[k] * b[k]
    return result
