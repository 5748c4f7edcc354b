"""Kernels that look at one row at a time: to integers, and LayerNorm with integers behind it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from udfs.int16.ir import (
    F32,
    F32X8,
    I16X16,
    I64,
    Builder,
    Values,
    f32x8,
    function,
    lanes,
)  # fmt: skip
from udfs.int16.limits import LARGEST, NORM


def add_quantise(module: ir.Module, name: str) -> None:
    """Add to a module what scales rows of float32 to integers."""
    b, a = function(module, name, "x:f32* ldx:i64 q:i16* ldq:i64 scales:f32* rows:i64 columns:i64")

    def row(at: Any, _: Values) -> Values:
        x = b.at(a["x"], b.mul(at, a["ldx"]))
        found = b.loop(
            a["columns"], 16, [f32x8(0.0)] * 4,
            lambda i, carried: _squares_and_largest(b, b.two(b.at(x, i)), carried),
        )  # fmt: skip
        _put_integers(b, a, at, x, found)
        return []

    b.loop(a["rows"], 1, [], row)
    b.ret_void()


def add_layer_norm(module: ir.Module, name: str) -> None:
    """Add LayerNorm to a module, with its result in float32 and in integers."""
    b, a = function(
        module, name,
        "x:f32* ldx:i64 weight:f32* bias:f32* epsilon:f32 out:f32* ldo:i64 q:i16* ldq:i64 "
        "scales:f32* rows:i64 columns:i64",
    )  # fmt: skip
    share = b.splat(b.fdiv(ir.Constant(F32, 1.0), b.sitofp(a["columns"], F32)))
    epsilon = b.splat(a["epsilon"])

    def row(at: Any, _: Values) -> Values:
        x = b.at(a["x"], b.mul(at, a["ldx"]))
        out = b.at(a["out"], b.mul(at, a["ldo"]))
        mean, variance = _moments(b, x, a["columns"], share)
        root = b.call_intrinsic("llvm.sqrt.v8f32", F32X8, b.fadd(variance, epsilon))
        inverse = b.fdiv(f32x8(1.0), root)

        def normalised(i: Any, carried: Values) -> Values:
            values = []
            for j, value in enumerate(b.two(b.at(x, i))):
                weight = b.get(b.at(a["weight"], i, 8 * j), F32X8)
                bias = b.get(b.at(a["bias"], i, 8 * j), F32X8)
                value = b.fmul(b.fsub(value, mean), inverse)
                values.append(b.multiply_add(value, weight, bias))
                b.put(values[-1], b.at(out, i, 8 * j))
            return _squares_and_largest(b, values, carried)

        found = b.loop(a["columns"], 16, [f32x8(0.0)] * 4, normalised)
        _put_integers(b, a, at, out, found)
        return []

    b.loop(a["rows"], 1, [], row)
    b.ret_void()


def _moments(b: Builder, x: Any, columns: Any, share: Any) -> tuple[Any, Any]:
    """float32[8] twice, all lanes alike: mean and variance of a row; share: 1 / columns."""

    def total(values: Values) -> Any:
        return b.fmul(b.folded(b.fadd(values[0], values[1]), b.fadd), share)

    def summed(i: Any, carried: Values) -> Values:
        return [b.fadd(c, v) for c, v in zip(carried, b.two(b.at(x, i)), strict=True)]

    mean = total(b.loop(columns, 16, [f32x8(0.0)] * 2, summed))

    def spread(i: Any, carried: Values) -> Values:
        off = [b.fsub(v, mean) for v in b.two(b.at(x, i))]
        return [b.multiply_add(v, v, c) for c, v in zip(carried, off, strict=True)]

    return mean, total(b.loop(columns, 16, [f32x8(0.0)] * 2, spread))


def _put_integers(b: Builder, a: dict[str, Any], row: Any, x: Any, found: Values) -> None:
    """Store a row of float32 as integers with their scale; found: see `_squares_and_largest`."""
    scale, inverse = _scale(b, found)
    b.put(b.lane(scale), b.at(a["scales"], row))
    q = b.at(a["q"], b.mul(row, a["ldq"]))

    def rounded(i: Any, _: Values) -> Values:
        _put_rounded(b, b.two(b.at(x, i)), inverse, b.at(q, i))
        return []

    b.loop(a["columns"], 16, [], rounded)


def _squares_and_largest(b: Builder, values: Values, carried: Values) -> Values:
    """Carry two sums of squares and two largest magnitudes on."""
    squares = [b.multiply_add(v, v, c) for v, c in zip(values, carried[:2], strict=True)]
    sizes = [b.call_intrinsic("llvm.fabs.v8f32", F32X8, v) for v in values]
    return squares + [b.larger(s, c) for s, c in zip(sizes, carried[2:], strict=True)]


def _scale(b: Builder, carried: Values) -> tuple[Any, Any]:
    """float32[8] twice, all lanes alike: the scale of a row, and one over it."""
    total = b.folded(b.fadd(carried[0], carried[1]), b.fadd)
    largest = b.folded(b.larger(carried[2], carried[3]), b.larger)
    norm = b.call_intrinsic("llvm.sqrt.v8f32", F32X8, total)
    # What is not a number is in the norm, which `larger` hands on.
    scale = b.larger(b.fmul(largest, f32x8(1 / LARGEST)), b.fmul(norm, f32x8(1 / NORM)))
    scale = b.larger(f32x8(1e-30), scale)
    return scale, b.fdiv(f32x8(1.0), scale)


def _put_rounded(b: Builder, values: Values, inverse: Any, address: Any) -> None:
    """float32[16] -> int16[16], to the nearest."""
    integers = [b.to_integers(b.fmul(v, inverse)) for v in values]
    packed = b.call_intrinsic("llvm.x86.avx2.packssdw", I16X16, *integers)
    # It packs each half of a register by itself, which leaves the quarters out of order.
    quarters = b.bitcast(packed, ir.VectorType(I64, 4))
    ordered = b.shuffle_vector(quarters, quarters, lanes([0, 2, 1, 3]))
    b.put(b.bitcast(ordered, I16X16), address)
