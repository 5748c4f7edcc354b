"""The encoder of BERT and its relatives: tokens of some pairs -> the first token of each.

What follows attention looks at one token at a time, up to the queries, keys and values of the next
layer. It is computed for one block of rows after the other, so that a block stays in the cache from
one kernel to the next. Attention takes each pair where it lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import torch

from udfs.int16.layers import Int16Linear, Int16Norm, Pairs, attend
from udfs.int16.limits import BEHIND, ROWS
from udfs.int16.matrix import Matrix, Rows

_BLOCK: Final = 96  # rows, a multiple of `ROWS`


@dataclass(frozen=True)
class EncoderLayer:
    """One layer of the encoder, packed."""

    mixing: Int16Linear  # queries, keys and values side by side
    after: Int16Linear
    after_norm: Int16Norm
    inner: Int16Linear
    outer: Int16Linear
    outer_norm: Int16Norm

    @classmethod
    def of(cls, layer: Any) -> Self:
        """Pack a layer of transformers' BERT or one of its relatives; it can be dropped then."""
        own, output = layer.attention.self, layer.attention.output
        return cls(
            mixing=Int16Linear.of(own.query, own.key, own.value),
            after=Int16Linear.of(output.dense),
            after_norm=Int16Norm(output.LayerNorm),
            inner=Int16Linear.of(layer.intermediate.dense),
            outer=Int16Linear.of(layer.output.dense),
            outer_norm=Int16Norm(layer.output.LayerNorm),
        )

    def after_attention(self, mixed: Matrix, rows: Rows, work: _Work) -> None:
        """Attention's output [R, H] and the layer's input `rows` [R, H] -> `rows`; R <= _BLOCK."""
        count = mixed.rows
        own, inner = work.mixed.part(0, count), work.inner.part(0, count)
        own.quantise(mixed)
        self.after.plus(own, rows.exact, own.exact)
        self.after_norm(own.exact, rows)
        self.inner(rows, inner.exact, "linear_gelu")
        inner.quantise(inner.exact)
        self.outer.plus(inner, rows.exact, own.exact)
        self.outer_norm(own.exact, rows)


class _Work:
    """What one block of rows needs between two kernels, used again for the next."""

    def __init__(self, layer: EncoderLayer) -> None:
        self.mixed = Rows.empty(_BLOCK, layer.after.inputs)
        self.inner = Rows.empty(_BLOCK, layer.outer.inputs)


class Encoder:
    """All layers; the last one for the first token of each pair only."""

    def __init__(self, layers: Sequence[EncoderLayer], heads: int) -> None:
        """Take one layer at least."""
        self._layers, self._heads = list(layers), heads
        self._width = width = layers[0].after.inputs
        # The last layer is asked for few queries.
        self._last_queries = layers[-1].mixing.part(0, width)
        self._last_keys = layers[-1].mixing.part(width, 3 * width)

    def __call__(self, rows: Rows, pairs: Pairs) -> torch.Tensor:
        """Tokens, of which `rows` keeps nothing -> float32[B, H], the first of each pair.

        Args:
            rows: `exact` alone is read; as many as the pairs' tokens, filled up to a multiple of 6.
            pairs: where they lie.

        Raises:
            ValueError: if there are other rows than that.
        """
        width, count = self._width, rows.exact.rows
        if count != filled(pairs.end):
            raise ValueError(f"{count} rows for {pairs.end} tokens; {ROWS} at a time are computed")
        rows.quantise(rows.exact)
        mixture, mixed = _zero_behind(count, 3 * width, pairs), _zero_behind(count, width, pairs)
        all_at, mixed_at = Matrix.of(mixture), Matrix.of(mixed)
        queries, keys, values = (
            Matrix.of(mixture[:, at : at + width]) for at in (0, width, 2 * width)
        )
        both_at = Matrix.of(mixture[:, width:])  # keys and values
        work = _Work(self._layers[0])
        self._layers[0].mixing(rows, all_at)
        for number, layer in enumerate(self._layers[:-1], start=1):
            attend(queries, pairs, keys, values, pairs, self._heads, mixed_at)
            last = number == len(self._layers) - 1
            mixing = self._last_keys if last else self._layers[number].mixing
            target = both_at if last else all_at
            for first, size in _blocks(count):
                block = rows.part(first, size)
                layer.after_attention(mixed_at.part(first, size), block, work)
                mixing(block, target.part(first, size))
        return self._last(rows, keys, values, pairs, work)

    def _last(
        self, rows: Rows, keys: Matrix, values: Matrix, pairs: Pairs, work: _Work
    ) -> torch.Tensor:
        """float32[B, H]: the last layer, of the first token of each pair."""
        pair_count, asked = len(pairs.firsts), Pairs.of(torch.ones_like(pairs.lengths))
        missing = filled(pair_count) - pair_count
        few = rows.chosen(torch.cat([pairs.firsts, pairs.firsts.new_zeros(missing)]))
        count = few.exact.rows
        queries, mixed = (Matrix.of(_zero_behind(count, self._width, asked)) for _ in range(2))
        self._last_queries(few, queries)
        attend(queries, asked, keys, values, pairs, self._heads, mixed)
        for first, size in _blocks(count):
            block = few.part(first, size)
            self._layers[-1].after_attention(mixed.part(first, size), block, work)
        return few.exact.tensor[:pair_count]


def filled(tokens: int) -> int:
    """Rows that the kernels compute for so many tokens."""
    return -(-tokens // ROWS) * ROWS


def _blocks(rows: int) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each block."""
    return ((first, min(_BLOCK, rows - first)) for first in range(0, rows, _BLOCK))


def _zero_behind(rows: int, columns: int, pairs: Pairs) -> torch.Tensor:
    """float32[rows + BEHIND, columns], with zeros in those that no pair has."""
    made = torch.empty(rows + BEHIND, columns)
    made[pairs.end :] = 0
    return made
