"""Cells side by side: numbers of numba that are vectors of float64, one lane for each of several cells.

A kernel written for one cell becomes one for many: `+ - * /` and comparisons act on every lane, :func:`where`
chooses lane by lane, and the compiler emits the vector instructions of the processor, whatever their width.
Loops over lanes, from which a compiler would have to find that out by itself, it vectorises here and there.

Lanes live in *rows*, see :func:`load` and :func:`store`. How many there are in one is said by the type of the array,
:func:`rows_of`: the same kernel is compiled for sixteen cells at a time, for a few, and for a single one, whose rows
are plain numbers (on a GPU each thread has such a cell). A flat float64 array stands for rows of :data:`LANES`.
"""

import hashlib
import math
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, overload, register_model

LANES = 16
"""As many cells as are solved together where there are many."""


def rows_of(lanes: int) -> np.dtype:
    """The type of an array whose entries are rows of that many lanes."""
    return np.dtype([("lanes", np.float64, (lanes,))])


CACHE_LINE = 64
"""Bytes; as many as eight lanes have."""


def new_rows(*shape: int, lanes: int, lend: Callable[[int], np.ndarray] | None = None) -> np.ndarray:
    """Rows, of zeros or in bytes that a function is to `lend`, the first at the beginning of a cache line.

    Rows that numpy lays down as it finds room lie across two lines each.
    """
    size = math.prod(shape) * rows_of(lanes).itemsize
    room = lend(size + CACHE_LINE) if lend else np.zeros(size + CACHE_LINE, np.uint8)
    first = -room.ctypes.data % CACHE_LINE
    return room[first : first + size].view(rows_of(lanes)).reshape(shape)


class _PartLibrary(JITCodeLibrary):
    """Code of a function that only kernels call, which is optimised and becomes machine code as a part of them.

    numba would do both for every function by itself, and once more for each function on the way to the kernel.
    """

    @property
    def codegen(self) -> Any:
        return self

    def set_env(self, name: str, environment: Any) -> None:
        """There is no code to run in that environment."""

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return 0

    def _optimize_functions(self, module: Any) -> None:
        """Left to kernels, like what follows."""
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None: ...

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


class _PartCompiler(Compiler):
    def compile_extra(self, function: Callable) -> Any:
        self.state.library = _PartLibrary(self.state.targetctx.codegen(), function.__qualname__)
        return super().compile_extra(function)


SETTINGS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
PART = SETTINGS | {"no_cpython_wrapper": True, "pipeline_class": _PartCompiler}


def inlined(function: Callable) -> Any:
    """Compile as a part of the kernels that call it, with what is constant there; Python cannot call it."""
    return njit(forceinline=True, **PART)(function)


def _digest() -> str:
    """Of the sources of this package."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


DIGEST = _digest()


# Sums may be taken in any order, as vectors need it.
REORDERED = {"reassoc", "contract"}


def part(function: Callable) -> Any:
    """Compile as a function of kernels alone; Python cannot call it."""
    return njit(fastmath=REORDERED, **PART)(function)


def kernel(function: Callable) -> Any:
    """Compile at the first call and keep the machine code on disk for the next process.

    numba looks only at the file that a function is in to see whether what it kept is out of date; a kernel is made
    of several.
    """
    dispatcher = njit(cache=True, fastmath=REORDERED, **SETTINGS)(function)
    dispatcher._cache._cache_file._source_stamp = DIGEST
    return dispatcher


def lanes_in(rows: Any) -> int:
    """How many lanes the rows of an array have; in kernels, where it is a constant."""
    raise NotImplementedError(rows)


_DOUBLE, _BITS, _INDEX = ir.DoubleType(), ir.IntType(64), ir.IntType(32)
_CONTRACT = ("contract",)


class Lanes(types.Type):
    """Float64, one a cell."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Lanes({count})")


class Mask(types.Type):
    """Truth values, one a cell."""

    def __init__(self, count: int) -> None:
        self.count = count
        super().__init__(name=f"Mask({count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, _vector(type_.count))


@register_model(Mask)
class _MaskModel(models.PrimitiveModel):
    def __init__(self, manager: Any, type_: Any) -> None:
        super().__init__(manager, type_, _vector(type_.count, ir.IntType(1)))


def _vector(count: int, of: ir.Type = _DOUBLE) -> ir.Type:
    return ir.VectorType(of, count)


def _lanes(count: int) -> types.Type:
    """What one row holds."""
    return types.float64 if count == 1 else Lanes(count)


def _mask(count: int) -> types.Type:
    """What says something of one row."""
    return types.boolean if count == 1 else Mask(count)


def _count(rows: types.Array) -> int:
    """How many lanes the rows of an array have."""
    return LANES if rows.dtype == types.float64 else rows.dtype.size // 8


@overload(lanes_in, strict=False)
def _lanes_in(rows: Any) -> Any:
    count = _count(rows)
    return lambda rows: count


def _broadcast(builder: Any, value: Any, count: int) -> Any:
    nothing = ir.Constant(_vector(count), ir.Undefined)
    one = builder.insert_element(nothing, value, ir.Constant(_INDEX, 0))
    return builder.shuffle_vector(one, nothing, ir.Constant(_vector(count, _INDEX), [0] * count))


def _cast(context: Any, builder: Any, value: Any, type_: Any, to: Any) -> Any:
    """Lanes from lanes or from one number for all of them."""
    if type_ == to:
        return value
    number = context.cast(builder, value, type_, types.float64)
    return _broadcast(builder, number, to.count) if isinstance(to, Lanes) else number


def _is_operand(type_: Any) -> bool:
    return isinstance(type_, Lanes | types.Number)


def _common(a: Any, b: Any) -> Any:
    """The type that two operands are brought to."""
    return next((one for one in (a, b) if isinstance(one, Lanes)), types.float64)


def _elementwise(result: Callable, emit: Callable) -> Any:
    """An intrinsic of two operands."""

    @intrinsic
    def operation(_typing: Any, a: Any, b: Any) -> Any:
        common = _common(a, b)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            given = zip(arguments, signature.args, strict=True)
            return emit(builder, *(_cast(context, builder, *one, common) for one in given))

        return result(getattr(common, "count", 1))(a, b), generate

    return operation


def _register(function: Any, accepts: Callable, result: Callable, generate: Callable) -> None:
    """Give an operator a meaning for operands that it `accepts`, with no function of numba's to compile for it."""

    @infer_global(function)
    class Typing(AbstractTemplate):
        # Asked before numba's own, of which there are many.
        metadata: ClassVar = {"target": "cpu"}

        def generic(self, operands: Any, keywords: Any) -> Any:
            return signature(result(*operands), *operands) if accepts(*operands) else None

    for operands in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes), (Mask, Mask), (Lanes,)):
        lower_builtin(function, *operands)(generate)


def _register_binary(function: Any, result: Callable, emit: Callable) -> None:
    def accepts(*operands: Any) -> bool:
        return all(map(_is_operand, operands)) and any(isinstance(one, Lanes) for one in operands)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        common = _common(*signature.args)
        given = zip(arguments, signature.args, strict=True)
        return emit(builder, *(_cast(context, builder, *one, common) for one in given))

    _register(function, accepts, lambda a, b: result(_common(a, b).count), generate)


for _function, _emit in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _register_binary(
        _function, _lanes, lambda builder, a, b, emit=_emit: getattr(builder, emit)(a, b, flags=_CONTRACT)
    )
for _function, _emit in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
):
    _register_binary(_function, _mask, lambda builder, a, b, emit=_emit: builder.fcmp_ordered(emit, a, b))


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered("<", a, b), a, b)


largest, smallest = _elementwise(_lanes, _larger), _elementwise(_lanes, _smaller)


def _negative(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    return builder.fsub(ir.Constant(arguments[0].type, [0.0] * signature.args[0].count), arguments[0])


def _are_masks(*operands: Any) -> bool:
    return len(operands) == 2 and all(isinstance(one, Mask) for one in operands)


_register(
    operator.neg, lambda *given: isinstance(given[0], Lanes) and len(given) == 1, lambda a: a, _negative
)
for _function, _emit in ((operator.and_, "and_"), (operator.or_, "or_")):
    _register(
        _function,
        _are_masks,
        lambda a, b: a,
        lambda context, builder, signature, given, emit=_emit: getattr(builder, emit)(*given),
    )


@intrinsic
def opposite(_typing: Any, a: Any) -> Any:
    """Where a condition does not hold."""
    return a(a), lambda context, builder, signature, arguments: builder.not_(arguments[0])


@intrinsic
def where(_typing: Any, condition: Any, a: Any, b: Any) -> Any:
    """`a` in the lanes where `condition` holds, else `b`."""
    result = _lanes(getattr(condition, "count", 1))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        given = zip(arguments[1:], signature.args[1:], strict=True)
        return builder.select(arguments[0], *(_cast(context, builder, *one, result) for one in given))

    return result(condition, a, b), generate


@intrinsic
def any_lane(_typing: Any, condition: Any) -> Any:
    """Whether a condition holds in any lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if condition == types.boolean:
            return arguments[0]
        word = ir.IntType(condition.count)
        return builder.icmp_unsigned("!=", builder.bitcast(arguments[0], word), ir.Constant(word, 0))

    return types.boolean(condition), generate


@intrinsic
def splat(_typing: Any, rows: Any, value: Any) -> Any:
    """The same number in every lane of a row."""
    result = _lanes(_count(rows))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _cast(context, builder, arguments[1], value, result)

    return result(rows, value), generate


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any, lane: Any = None) -> Any:
    """Where a row begins, or one of its lanes is."""
    array = context.make_array(signature.args[0])(context, builder, value=arguments[0])
    numbers = builder.bitcast(array.data, ir.PointerType(_DOUBLE))
    place = builder.mul(arguments[1], context.get_constant(types.int64, _count(signature.args[0])))
    return builder.gep(numbers, [place if lane is None else builder.add(place, lane)])


@intrinsic
def load(_typing: Any, rows: Any, row: Any) -> Any:
    """Row `row` of an array."""
    result = _lanes(_count(rows))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _pointer(context, builder, signature, arguments)
        type_ = ir.PointerType(context.get_value_type(result))
        instruction = builder.load(builder.bitcast(place, type_))
        instruction.align = 8
        return instruction

    return result(rows, types.int64), generate


def _storing(prepare: Callable) -> Any:
    """An intrinsic that puts a value into a row with an instruction that is `prepare`d."""

    @intrinsic
    def operation(_typing: Any, rows: Any, row: Any, value: Any) -> Any:
        type_ = _lanes(_count(rows))

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            given = _cast(context, builder, arguments[2], value, type_)
            place = _pointer(context, builder, signature, arguments)
            instruction = builder.store(given, builder.bitcast(place, ir.PointerType(given.type)))
            instruction.align = 8
            prepare(builder, instruction, 8 * _count(rows))
            return context.get_dummy_value()

        return types.void(rows, types.int64, value), generate

    return operation


def _past_caches(builder: Any, instruction: Any, size: int) -> None:
    # As far as both numpy's rows of ours and numba's arrays are aligned.
    instruction.align = min(size, 32)
    instruction.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_INDEX, 1)]))


store = _storing(lambda *_: None)
"""Put a value into row `row` of an array."""
stream = _storing(_past_caches)
"""The same for what is not looked at soon: it goes to memory at once and drives nothing else from the caches."""


@intrinsic
def get(_typing: Any, rows: Any, row: Any, lane: Any) -> Any:
    """What a lane of a row holds."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(context, builder, signature, arguments, arguments[2]))

    return types.float64(rows, types.int64, types.int64), generate


@intrinsic
def put(_typing: Any, rows: Any, row: Any, lane: Any, value: Any) -> Any:
    """Put a number into a lane of a row."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _pointer(context, builder, signature, arguments, arguments[2])
        builder.store(arguments[3], place)
        return context.get_dummy_value()

    return types.void(rows, types.int64, types.int64, types.float64), generate


def _turned(builder: Any, vectors: list[Any]) -> list[Any]:
    """As many vectors as each has entries, of which rows and columns change places."""
    count, size = len(vectors), 1
    while size < count:
        # Of both vectors of a pair every other run of so many entries, from which each takes those of one kind.
        first, second = (
            [e + part * size if not e & size else count + e + (part - 1) * size for e in range(count)]
            for part in (0, 1)
        )
        for i in range(count):
            if not i & size:
                a, b = vectors[i], vectors[i + size]
                for place, mask in ((i, first), (i + size, second)):
                    vectors[place] = builder.shuffle_vector(a, b, ir.Constant(_vector(count, _INDEX), mask))
        size *= 2
    return vectors


def _places(
    context: Any, builder: Any, of: Any, array: Any, indices: Any, count: int, cells: Any
) -> list[Any]:
    """Where vectors lie in an array whose last axis is in one piece, one for every one of the cells."""
    whole = context.make_array(of)(context, builder, value=array)
    strides = cgutils.unpack_tuple(builder, whole.strides, of.ndim)
    start = builder.ptrtoint(whole.data, _BITS)
    for index, stride in zip(indices, strides[1:], strict=True):
        start = builder.add(start, builder.mul(index, stride))
    numbers = context.make_array(types.Array(types.int64, 1, "A"))(context, builder, value=cells)
    step = cgutils.unpack_tuple(builder, numbers.strides, 1)[0]
    places = []
    for lane in range(count):
        at = builder.add(builder.ptrtoint(numbers.data, _BITS), builder.mul(step, ir.Constant(_BITS, lane)))
        cell = builder.load(builder.inttoptr(at, ir.PointerType(_BITS)))
        place = builder.add(start, builder.mul(cell, strides[0]))
        places.append(builder.inttoptr(place, ir.PointerType(_vector(count))))
    return places


def _turning(inwards: bool) -> Any:
    """An intrinsic that puts as many nodes of as many cells as there are lanes into rows, or takes them from there."""

    @intrinsic
    def operation(
        _typing: Any, rows: Any, row: Any, fields: Any, array: Any, cells: Any, s: Any, node: Any
    ) -> Any:
        count = _count(rows)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            work, row, fields, array, cells, s, node = arguments
            indices = [node] if signature.args[3].ndim == 2 else [s, node]
            there = _places(context, builder, signature.args[3], array, indices, count, cells)
            here = []
            for lane in range(count):
                at = builder.add(row, builder.mul(fields, builder.add(node, ir.Constant(_BITS, lane))))
                place = _pointer(context, builder, signature, (work, at))
                here.append(builder.bitcast(place, ir.PointerType(_vector(count))))
            given, wanted = (there, here) if inwards else (here, there)
            vectors = [builder.load(place, align=8) for place in given]
            for value, place in zip(_turned(builder, vectors), wanted, strict=True):
                builder.store(value, place, align=8)
            return context.get_dummy_value()

        return types.void(rows, types.int64, types.int64, array, cells, types.int64, types.int64), generate

    return operation


_turn_in, _turn_out = _turning(True), _turning(False)


@inlined
def put_nodes(work: Any, row: int, fields: int, array: Any, cells: Any, s: int) -> None:
    """Put numbers of all nodes into the rows `row`, `row + fields`, and so on, for each lane those of one of `cells`.

    They are those of `array` `(B, N)`, or of species `s` in one `(B, S, N)`.
    """
    nodes = array.shape[array.ndim - 1]
    together = lanes_in(work)
    whole = nodes - nodes % together
    for k in range(0, whole, together):
        _turn_in(work, row, fields, array, cells, s, k)
    for k in range(whole, nodes):
        for lane in range(together):
            number = array[cells[lane], k] if array.ndim == 2 else array[cells[lane], s, k]
            put(work, row + k * fields, lane, number)


@inlined
def take_nodes(work: Any, row: int, fields: int, array: Any, cells: Any, s: int) -> None:
    """The other way round: from the rows to `array`."""
    nodes = array.shape[array.ndim - 1]
    together = lanes_in(work)
    whole = nodes - nodes % together
    for k in range(0, whole, together):
        _turn_out(work, row, fields, array, cells, s, k)
    for k in range(whole, nodes):
        for lane in range(together):
            number = get(work, row + k * fields, lane)
            if array.ndim == 2:
                array[cells[lane], k] = number
            else:
                array[cells[lane], s, k] = number


def _unary(name: str) -> Any:
    """An intrinsic of LLVM that takes and gives a vector."""

    @intrinsic
    def operation(_typing: Any, a: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            type_ = arguments[0].type
            suffix = f"v{a.count}f64" if isinstance(a, Lanes) else "f64"
            function = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(type_, [type_]), f"{name}.{suffix}"
            )
            return builder.call(function, arguments)

        return a(a), generate

    return operation


absolute, square_root, logarithm = _unary("llvm.fabs"), _unary("llvm.sqrt"), _unary("llvm.log")


@intrinsic
def total(_typing: Any, a: Any) -> Any:
    """Sum over the lanes, in any order."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        type_ = ir.FunctionType(_DOUBLE, [_DOUBLE, arguments[0].type])
        name = f"llvm.vector.reduce.fadd.v{a.count}f64"
        function = cgutils.get_or_insert_function(builder.module, type_, name)
        return builder.call(function, [ir.Constant(_DOUBLE, 0.0), arguments[0]], fastmath=("reassoc",))

    return types.float64(a), generate


@intrinsic
def _power_of_two(_typing: Any, shifted: Any) -> Any:
    """2ⁿ from n + 1.5·2⁵², whose last bits are those of n."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        count = getattr(shifted, "count", None)
        words = _vector(count, _BITS) if count else _BITS

        def same(number: int) -> Any:
            return ir.Constant(words, [number] * count if count else number)

        biased = builder.add(builder.bitcast(arguments[0], words), same(1023))
        return builder.bitcast(builder.shl(biased, same(52)), arguments[0].type)

    return shifted(shifted), generate


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


@part
def scalar_product(a: Any, b: Any) -> float:
    """Of `a` and as many numbers of `b`."""
    product = splat(a, 0.0)
    rows = a.size // LANES
    for row in range(rows):
        product = product + load(a, row) * load(b, row)
    result = total(product)
    for k in range(rows * LANES, a.size):
        result += a[k] * b[k]
    return result
