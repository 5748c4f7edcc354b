"""Kernels of linear layers: integers times packed integers, scaled back to float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from llvmlite import ir

from udfs.int16.ir import F32X8, I16X16, I32, I32X8, Builder, Values, f32x8, function, i64
from udfs.int16.limits import COLUMNS, ROWS

_AT_ONCE: Final = 2  # pairs of inputs in one turn of the innermost loop


def add_linear(module: ir.Module, name: str, *, gelu: bool = False, plus: bool = False) -> None:
    """Add x W + bias to a module, followed by exact GELU or added to former values if wanted.

    Panels of weights stay in the nearest cache while the rows pass by in tiles.
    """
    b, a = function(
        module, name,
        "x:i16* ldx:i64 scales:f32* weight:i16* channels:f32* bias:f32* out:f32* ldo:i64 "
        "rows:i64 inputs:i64 columns:i64" + (" former:f32* ldf:i64" if plus else ""),
    )  # fmt: skip
    pairs = b.lshr(a["inputs"], i64(1))

    def panel(column: Any, _: Values) -> Values:
        weight = b.at(a["weight"], b.mul(column, a["inputs"]))

        def tile(row: Any, _: Values) -> Values:
            sums = _products(b, b.at(a["x"], b.mul(row, a["ldx"])), a["ldx"], weight, pairs)
            for r in range(ROWS):
                _put_row(b, a, b.add(row, i64(r)), column, sums[r], gelu=gelu, plus=plus)
            return []

        b.loop(a["rows"], ROWS, [], tile)
        return []

    b.loop(a["columns"], COLUMNS, [], panel)
    b.ret_void()


def _put_row(
    b: Builder, a: dict[str, Any], row: Any, column: Any, sums: Values, *, gelu: bool, plus: bool
) -> None:
    """Turn the int32 sums of a row and a panel into float32, and store them."""
    scale = b.splat(b.load(b.at(a["scales"], row)))
    for j in range(COLUMNS // 8):
        factor = b.fmul(scale, b.get(b.at(a["channels"], column, 8 * j), F32X8))
        bias = b.get(b.at(a["bias"], column, 8 * j), F32X8)
        value = b.multiply_add(b.sitofp(sums[j], F32X8), factor, bias)
        if gelu:
            value = _gelu(b, value)
        if plus:
            former = b.at(a["former"], b.mul(row, a["ldf"]), column, 8 * j)
            value = b.fadd(value, b.get(former, F32X8))
        b.put(value, b.at(a["out"], b.mul(row, a["ldo"]), column, 8 * j))


def _products(b: Builder, x: Any, ldx: Any, weight: Any, pairs: Any) -> list[Values]:
    """int32[8] of each row and half panel: the twelve sums, which stay in registers."""
    rows = [x]
    for _ in range(ROWS - 1):
        rows.append(b.at(rows[-1], ldx))
    halves = range(COLUMNS // 8)

    def step(pair: Any, sums: Values) -> Values:
        for turn in range(_AT_ONCE):
            here = b.at(weight, b.mul(pair, i64(2 * COLUMNS)), turn * 2 * COLUMNS)
            weights = [b.get(b.at(here, 16 * j), I16X16) for j in halves]
            for r, row in enumerate(rows):
                both = b.get(b.at(row, b.mul(pair, i64(2)), 2 * turn), I32)
                inputs = b.bitcast(b.splat(both), I16X16)
                for j in halves:
                    product = b.call_intrinsic("llvm.x86.avx2.pmadd.wd", I32X8, inputs, weights[j])
                    at = r * len(halves) + j
                    sums[at] = b.add(sums[at], product)
        return sums

    zeros = [ir.Constant(I32X8, [0] * 8)] * (ROWS * len(halves))
    sums = b.loop(pairs, _AT_ONCE, zeros, step)
    return [sums[r * len(halves) : (r + 1) * len(halves)] for r in range(ROWS)]


# erf(x) = x P(x^2) / Q(x^2) for |x| < 4, highest power first: Eigen's (MathFunctionsImpl.h), which
# is off by 4e-7 at most.
_P: Final = (
    -2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
    -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02,
)  # fmt: skip
_Q: Final = (
    -1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
    -1.42647390514189e-02,
)  # fmt: skip


def _gelu(b: Builder, value: Any) -> Any:
    """x / 2 (1 + erf(x / sqrt(2)))"""
    x = b.fmul(value, f32x8(0.5**0.5))
    x = b.select(b.fcmp_ordered(">", x, f32x8(4.0)), f32x8(4.0), x)
    x = b.select(b.fcmp_ordered("<", x, f32x8(-4.0)), f32x8(-4.0), x)
    square = b.fmul(x, x)

    def polynomial(factors: Sequence[float]) -> Any:
        total = f32x8(factors[0])
        for factor in factors[1:]:
            total = b.multiply_add(total, square, f32x8(factor))
        return total

    erf = b.fdiv(b.fmul(x, polynomial(_P)), polynomial(_Q))
    half = b.fmul(value, f32x8(0.5))
    return b.multiply_add(half, erf, half)
