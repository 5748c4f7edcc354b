"""A builder of LLVM's instructions with the few forms that the kernels are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from llvmlite import ir

I16, I32, I64, F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
I16X16, I32X8, F32X8 = (
    ir.VectorType(I16, 16), ir.VectorType(I32, 8), ir.VectorType(F32, 8)
)  # fmt: skip
Values = list[Any]
_STACK: Final = 32  # bytes, as long as a register
_ALIGNED: Final = 2  # bytes; tensors are int16 and float32, and AVX2 does not mind


class Builder(ir.IRBuilder):  # type: ignore[misc]
    """llvmlite's builder. Values have the type `Any`, as llvmlite has no types of its own."""

    def loop(
        self, stop: Any, step: int, carried: Values, body: Callable[[Any, Values], Values]
    ) -> Values:
        """`for i in range(0, stop, step)`, at least once; `body`: what is carried, in and out."""
        before = self.block
        inside, after = self.append_basic_block(), self.append_basic_block()
        self.branch(inside)
        self.position_at_end(inside)
        index = self.phi(I64)
        index.add_incoming(i64(0), before)
        kept = [self.phi(value.type) for value in carried]
        results = body(index, list(kept))
        following = self.add(index, i64(step), flags=["nsw", "nuw"])
        index.add_incoming(following, self.block)
        for phi, first, result in zip(kept, carried, results, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(result, self.block)
        self.cbranch(self.icmp_signed("<", following, stop), inside, after)
        self.position_at_end(after)
        return results

    def at(self, base: Any, *offsets: Any) -> Any:
        """The address of base[sum of offsets]."""
        for offset in offsets:
            base = self.gep(base, [i64(offset) if isinstance(offset, int) else offset])
        return base

    def get(self, address: Any, kind: Any) -> Any:
        """A value of another type than the address has, from wherever its elements may lie."""
        value = self.load(self.bitcast(address, kind.as_pointer()))
        value.align = _ALIGNED
        return value

    def put(self, value: Any, address: Any) -> None:
        """Store it at an address of any type."""
        self.store(value, self.bitcast(address, value.type.as_pointer())).align = _ALIGNED

    def two(self, address: Any) -> Values:
        """float32[16] in two halves."""
        return [self.get(self.at(address, 8 * j), F32X8) for j in range(2)]

    def splat(self, value: Any) -> Any:
        """The value in eight lanes."""
        kind = ir.VectorType(value.type, 8)
        nothing = ir.Constant(kind, ir.Undefined)
        one = self.insert_element(nothing, value, ir.Constant(I32, 0))
        return self.shuffle_vector(one, nothing, lanes([0] * 8))

    def call_intrinsic(self, name: str, result: Any, *arguments: Any) -> Any:
        """One of LLVM's or the processor's instructions by its name in LLVM."""
        module = self.module
        if name not in module.globals:
            ir.Function(module, ir.FunctionType(result, [a.type for a in arguments]), name)
        return self.call(module.globals[name], arguments)

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """float32[8]: a b + c, rounded once."""
        return self.call_intrinsic("llvm.fma.v8f32", F32X8, a, b, c)

    def larger(self, a: Any, b: Any) -> Any:
        """The larger one; b if one is not a number."""
        return self.select(self.fcmp_ordered(">", a, b), a, b)

    def folded(self, vector: Any, combine: Callable[[Any, Any], Any]) -> Any:
        """All eight lanes combined, in every lane."""
        for order in ([4, 5, 6, 7, 0, 1, 2, 3], [2, 3, 0, 1, 6, 7, 4, 5], [1, 0, 3, 2, 5, 4, 7, 6]):
            other = self.shuffle_vector(vector, vector, lanes(order))
            vector = combine(vector, other)
        return vector

    def to_integers(self, values: Any) -> Any:
        """float32[8] -> int32[8], to the nearest."""
        return self.call_intrinsic("llvm.x86.avx.cvt.ps2dq.256", I32X8, values)

    def lane(self, vector: Any) -> Any:
        """The first one."""
        return self.extract_element(vector, ir.Constant(I32, 0))


def i64(value: int) -> Any:
    """A constant."""
    return ir.Constant(I64, value)


def f32x8(value: float) -> Any:
    """A constant, in eight lanes."""
    return ir.Constant(F32X8, [value] * 8)


def lanes(numbers: Sequence[int]) -> Any:
    """Constants of 32 bits: an order for `shuffle_vector`, or eight integers to compute with."""
    return ir.Constant(ir.VectorType(I32, len(numbers)), list(numbers))


def function(module: ir.Module, name: str, arguments: str) -> tuple[Builder, dict[str, Any]]:
    """A function of arguments such as "x:i16* ldx:i64", none of which overlap."""
    kinds = {"i16*": I16.as_pointer(), "f32*": F32.as_pointer(), "i64*": I64.as_pointer(),
             "i64": I64, "f32": F32}  # fmt: skip
    named = [part.split(":") for part in arguments.split()]
    types = [kinds[kind] for _, kind in named]
    made = ir.Function(module, ir.FunctionType(ir.VoidType(), types), name)
    # Or registers are put aside wherever the caller's stack ends: in half of all threads across two
    # cache lines, which made the innermost loop take 2.5 times as long.
    made.attributes.alignstack = _STACK
    made.attributes.add("nounwind")  # llvmlite writes the former only beside another
    for argument, kind in zip(made.args, types, strict=True):
        if isinstance(kind, ir.PointerType):
            argument.add_attribute("noalias")
    arguments_by_name = dict(zip((key for key, _ in named), made.args, strict=True))
    return Builder(made.append_basic_block()), arguments_by_name
