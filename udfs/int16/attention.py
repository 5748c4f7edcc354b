"""The kernel of attention, in float32, as softmax wants real numbers on both of its sides."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from udfs.int16.ir import F32X8, I32, Builder, Values, f32x8, function, i64, lanes
from udfs.int16.limits import COLUMNS, ROWS


def add_attention(module: ir.Module, name: str) -> None:
    """Add attention to a module: each pair by itself, each head by itself, six queries at a time.

    Rows behind the last query of a pair are computed along and overwritten by the next pair's.
    """
    b, a = function(
        module, name,
        "q:f32* ldq:i64 asked:i64* counts:i64* k:f32* v:f32* ldk:i64 starts:i64* lengths:i64* "
        "out:f32* ldo:i64 work:f32* factor:f32 pairs:i64 heads:i64 size:i64",
    )  # fmt: skip
    size, keys = a["size"], a["work"]  # keys: [padded / 16, size, 16]
    factor = b.splat(a["factor"])

    def pair(at: Any, _: Values) -> Values:
        start, length, count = (b.load(b.at(a[key], at)) for key in ("starts", "lengths", "counts"))
        padded = b.and_(b.add(length, i64(15)), i64(-16))
        values = b.at(keys, b.mul(size, padded))  # [size / 16, padded, 16]
        scores = b.at(values, b.mul(size, padded))  # [ROWS, ld]
        ld = b.add(padded, i64(COLUMNS))
        shares = b.at(scores, b.mul(ld, i64(ROWS)))  # [ROWS]
        asked = b.load(b.at(a["asked"], at))

        def head(number: Any, _: Values) -> Values:
            column = b.mul(number, size)
            here = b.add(b.mul(start, a["ldk"]), column)
            _transpose(b, b.at(a["k"], here), a["ldk"], padded, size, keys)
            _copy(b, b.at(a["v"], here), a["ldk"], length, padded, size, values)

            def tile(first: Any, _: Values) -> Values:
                row = b.add(asked, first)
                q = b.at(a["q"], b.mul(row, a["ldq"]), column)
                tops = _scores(b, q, a["ldq"], size, keys, length, padded, factor, scores, ld)
                _exponentials(b, scores, ld, padded, tops, shares)
                out = b.at(a["out"], b.mul(row, a["ldo"]), column)
                _mixture(b, scores, ld, length, padded, values, size, shares, out, a["ldo"])
                return []

            b.loop(count, ROWS, [], tile)
            return []

        b.loop(a["heads"], 1, [], head)
        return []

    b.loop(a["pairs"], 1, [], pair)
    b.ret_void()


def _transpose(b: Builder, x: Any, ldx: Any, rows: Any, columns: Any, out: Any) -> None:
    """float32[rows, columns] -> [columns, rows], in squares of eight."""
    patterns = (
        ([0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]),
        ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
        ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
    )

    def square(row: Any, column: Any) -> None:
        lines = [b.get(b.at(x, b.mul(b.add(row, i64(r)), ldx), column), F32X8) for r in range(8)]
        # Interleave lines, then pairs, then halves: rows 0..7 of the result in turn.
        one = [b.shuffle_vector(lines[i], lines[i + 1], lanes(p))
               for i in (0, 2, 4, 6) for p in patterns[0]]  # fmt: skip
        two = [b.shuffle_vector(one[i + j], one[i + 2 + j], lanes(p))
               for i in (0, 4) for j in (0, 1) for p in patterns[1]]  # fmt: skip
        three = [b.shuffle_vector(two[j], two[4 + j], lanes(p))
                 for p in patterns[2] for j in range(4)]  # fmt: skip
        for r, line in enumerate(three):
            place = b.add(b.mul(b.and_(row, i64(-16)), columns), b.and_(row, i64(15)))
            b.put(line, b.at(out, b.mul(b.add(column, i64(r)), i64(16)), place))

    def band(row: Any, _: Values) -> Values:
        def across(column: Any, _: Values) -> Values:
            square(row, column)
            return []

        b.loop(columns, 8, [], across)
        return []

    b.loop(rows, 8, [], band)


def _copy(b: Builder, x: Any, ldx: Any, rows: Any, padded: Any, columns: Any, out: Any) -> None:
    """float32[rows, columns] -> [columns / 16, padded, 16]."""

    def row(at: Any, _: Values) -> Values:
        source, target = b.at(x, b.mul(at, ldx)), b.at(out, b.mul(at, i64(16)))

        def sixteen(i: Any, _: Values) -> Values:
            for j, value in enumerate(b.two(b.at(source, i))):
                b.put(value, b.at(target, b.mul(i, padded), 8 * j))
            return []

        b.loop(columns, 16, [], sixteen)
        return []

    b.loop(rows, 1, [], row)


def _outer_products(b: Builder, rows: Values, depth: Any, columns: Any) -> Values:
    """float32[8], two of each of six rows: sums over i < depth of rows[r][i] columns[i, :16]."""

    def step(i: Any, sums: Values) -> Values:
        two = b.two(b.at(columns, b.mul(i, i64(16))))
        for r, row in enumerate(rows):
            value = b.splat(b.load(b.at(row, i)))
            for j in range(2):
                sums[2 * r + j] = b.multiply_add(value, two[j], sums[2 * r + j])
        return sums

    return b.loop(depth, 1, [f32x8(0.0)] * (2 * ROWS), step)


def _scores(
    b: Builder, q: Any, ldq: Any, size: Any, keys: Any, length: Any, padded: Any, factor: Any,
    scores: Any, lds: Any,
) -> Values:  # fmt: skip
    """Six queries times all keys, those that are none lowest; the largest of each query."""
    rows = [b.at(q, b.mul(ldq, i64(r))) for r in range(ROWS)]
    wide = b.splat(b.trunc(length, I32))

    def block(first: Any, tops: Values) -> Values:
        sums = _outer_products(b, rows, size, b.at(keys, b.mul(first, size)))
        here = b.splat(b.trunc(first, I32))
        real = [
            b.icmp_signed("<", b.add(here, lanes(range(8 * j, 8 * j + 8))), wide) for j in range(2)
        ]
        for at, total in enumerate(sums):
            r, j = divmod(at, 2)
            value = b.select(real[j], b.fmul(total, factor), f32x8(-1e30))
            b.put(value, b.at(scores, b.mul(lds, i64(r)), first, 8 * j))
            tops[r] = b.larger(value, tops[r])
        return tops

    tops = b.loop(padded, COLUMNS, [f32x8(-1e30)] * ROWS, block)
    return [b.folded(top, b.larger) for top in tops]


def _exponentials(
    b: Builder, scores: Any, lds: Any, columns: Any, tops: Values, shares: Any
) -> None:
    """float32[ROWS, columns] -> e to what each is below its row's top; one over their sums."""

    def powers(i: Any, sums: Values) -> Values:
        for r, top in enumerate(tops):
            address = b.at(scores, b.mul(lds, i64(r)), i)
            power = _exponential(b, b.fsub(b.get(address, F32X8), top))
            b.put(power, address)
            sums[r] = b.fadd(sums[r], power)
        return sums

    sums = b.loop(columns, 8, [f32x8(0.0)] * ROWS, powers)
    for r, total in enumerate(sums):
        whole = b.folded(total, b.fadd)
        b.put(b.lane(b.fdiv(f32x8(1.0), whole)), b.at(shares, r))


def _exponential(b: Builder, x: Any) -> Any:
    """float32[8]: e^x for x <= 0, off by 2e-7 of it; 1e-38 for the lowest. Cephes' expf."""
    x = b.select(b.fcmp_ordered("<", x, f32x8(-87.0)), f32x8(-87.0), x)
    whole = b.to_integers(b.fmul(x, f32x8(1.4426950408889634)))
    times = b.sitofp(whole, F32X8)
    rest = b.multiply_add(times, f32x8(-0.693359375), x)
    rest = b.multiply_add(times, f32x8(2.12194440e-4), rest)
    total = f32x8(1.9875691500e-4)
    for factor in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5):
        total = b.multiply_add(total, rest, f32x8(factor))
    total = b.multiply_add(total, b.fmul(rest, rest), b.fadd(rest, f32x8(1.0)))
    power = b.shl(b.add(whole, lanes([127] * 8)), lanes([23] * 8))
    return b.fmul(total, b.bitcast(power, F32X8))


def _mixture(
    b: Builder, weights: Any, ldw: Any, length: Any, padded: Any, values: Any, size: Any,
    shares: Any, out: Any, ldo: Any,
) -> None:  # fmt: skip
    """Six rows of weights times all values, divided by the sum of the weights."""
    rows = [b.at(weights, b.mul(ldw, i64(r))) for r in range(ROWS)]

    def block(first: Any, _: Values) -> Values:
        sums = _outer_products(b, rows, length, b.at(values, b.mul(first, padded)))
        for r in range(ROWS):
            share = b.splat(b.load(b.at(shares, r)))
            for j in range(2):
                target = b.at(out, b.mul(ldo, i64(r)), first, 8 * j)
                b.put(b.fmul(sums[2 * r + j], share), target)
        return []

    b.loop(size, COLUMNS, [], block)
