"""Layers with their weights packed for the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Self

import torch

from udfs.int16.kernels import kernels
from udfs.int16.limits import COLUMNS, DEEPEST, LARGEST, NORM, ROWS
from udfs.int16.matrix import Matrix, Rows

_SMALLEST: Final = 1e-30  # scale of a column of zeros


class Int16Linear:
    """One or more linear layers with the same input, scaled for each output and packed.

    Attributes:
        weight: int16[N / 16, K / 2, 16, 2].
        scales: float32[N], by which each column of integers is to be multiplied.
        bias: float32[N].
    """

    def __init__(self, weight: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor) -> None:
        """Keep the parts, which `of` makes.

        Raises:
            ValueError: if they do not lie in memory as the kernels read them.
        """
        panels, pairs = weight.shape[:2]
        kinds = weight.dtype, scales.dtype, bias.dtype
        if (
            weight.shape != (panels, pairs, COLUMNS, 2)
            or scales.shape != (panels * COLUMNS,)
            or bias.shape != (panels * COLUMNS,)
            or kinds != (torch.int16, torch.float32, torch.float32)
            or not all(t.is_contiguous() and t.is_cpu for t in (weight, scales, bias))
            or not 0 < 2 * pairs <= DEEPEST
            or 2 * pairs % COLUMNS
        ):
            raise ValueError(f"{tuple(weight.shape)} of {weight.dtype} is no packed weight")
        self.weight, self.scales, self.bias = weight, scales, bias
        self.inputs, self.outputs = 2 * pairs, panels * COLUMNS
        self._addresses = weight.data_ptr(), scales.data_ptr(), bias.data_ptr()

    @classmethod
    def of(cls, *layers: torch.nn.Linear) -> Self:
        """Pack layers, their outputs side by side; they can be dropped then.

        Raises:
            ValueError: if inputs or outputs are not multiples of 16, or inputs more than 4096.
        """
        weight = torch.cat([layer.weight.detach() for layer in layers]).float()
        outputs, inputs = weight.shape
        if outputs % COLUMNS or inputs % COLUMNS or inputs > DEEPEST:
            raise ValueError(f"a layer of {inputs} x {outputs} is not one for these kernels")
        biases = [
            weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias.detach()
            for layer in layers
        ]
        norm, largest = weight.norm(dim=1) / NORM, weight.abs().amax(1) / LARGEST
        scales = torch.maximum(norm, largest).clamp(min=_SMALLEST)
        rounded = (weight / scales[:, None]).round().to(torch.int16)
        packed = rounded.view(outputs // COLUMNS, COLUMNS, inputs // 2, 2).permute(0, 2, 1, 3)
        return cls(packed.contiguous(), scales, torch.cat(biases).float())

    def part(self, first: int, last: int) -> Int16Linear:
        """Outputs from `first` to before `last`, multiples of 16, in the same memory."""
        panels = self.weight[first // COLUMNS : last // COLUMNS]
        return Int16Linear(panels, self.scales[first:last], self.bias[first:last])

    def __call__(
        self, rows: Rows, out: Matrix, kernel: Literal["linear", "linear_gelu"] = "linear"
    ) -> None:
        """The integers [M, K] of rows -> float32[M, N]; M is a multiple of 6.

        Raises:
            ValueError: if the shapes are others.
        """
        getattr(kernels(), kernel)(*self._arguments(rows, out))

    def plus(self, rows: Rows, former: Matrix, out: Matrix) -> None:
        """The same, added to float32[M, N]."""
        if former.rows < rows.integers.rows or former.columns != self.outputs:
            raise ValueError(f"{former.rows} x {former.columns} to add to {self.outputs} columns")
        kernels().linear_plus(*self._arguments(rows, out), former.address, former.ld)

    def _arguments(self, rows: Rows, out: Matrix) -> tuple[int, ...]:
        given = rows.integers
        if not (
            given.columns == self.inputs
            and out.columns == self.outputs
            and 0 < given.rows <= out.rows
            and given.rows % ROWS == 0
        ):
            raise ValueError(
                f"{given.rows} x {given.columns} into {out.rows} x {out.columns} by a layer of "
                f"{self.inputs} x {self.outputs}, {ROWS} rows at a time"
            )
        return (
            given.address, given.ld, rows.scales.address, *self._addresses, out.address, out.ld,
            given.rows, self.inputs, self.outputs,
        )  # fmt: skip


class Int16Norm:
    """LayerNorm, with its result in integers as well."""

    def __init__(self, layer: torch.nn.LayerNorm) -> None:
        """Copy the parameters; the layer can be dropped then."""
        self._weight, self._bias = layer.weight.detach().clone(), layer.bias.detach().clone()
        self._columns = len(self._weight)
        for part in (self._weight, self._bias):
            if Matrix.of(part[None]).columns != self._columns or self._columns % COLUMNS:
                raise ValueError(f"LayerNorm of {self._columns} is not one for these kernels")
        self._arguments = self._weight.data_ptr(), self._bias.data_ptr(), layer.eps

    def __call__(self, source: Matrix, rows: Rows) -> None:
        """float32[M, H] -> `rows`, M of them.

        Raises:
            ValueError: if the shapes are others.
        """
        exact, integers = rows.exact, rows.integers
        if not (exact.columns == source.columns == self._columns and 0 < exact.rows <= source.rows):
            raise ValueError(f"{source.rows} x {source.columns} normalised to {self._columns}")
        kernels().layer_norm(
            source.address, source.ld, *self._arguments, exact.address, exact.ld,
            integers.address, integers.ld, rows.scales.address, exact.rows, exact.columns,
        )  # fmt: skip


@dataclass(frozen=True)
class Pairs:
    """Where the tokens of pairs lie among rows: end to end, from the first row on.

    Attributes:
        firsts: int64[B], the first row of each.
        lengths: int64[B], how many there are.
        end: the row behind the last.
        longest: the largest of `lengths`.
    """

    firsts: torch.Tensor
    lengths: torch.Tensor
    end: int
    longest: int

    @classmethod
    def of(cls, lengths: torch.Tensor) -> Pairs:
        """Pairs of these lengths, int64[B].

        Raises:
            ValueError: if there is none, or one without a token.
        """
        if lengths.dim() != 1 or lengths.dtype != torch.int64 or not lengths.is_cpu:
            raise ValueError(f"lengths are int64[B] on the CPU, not {lengths.dtype}")
        if not len(lengths) or int(lengths.min()) < 1:
            raise ValueError("a batch has one pair at least, and a pair one token")
        ends = lengths.cumsum(0)
        return cls(ends - lengths, lengths.contiguous(), int(ends[-1]), int(lengths.max()))


def attend(
    queries: Matrix, asked: Pairs, keys: Matrix, values: Matrix, pairs: Pairs, heads: int,
    out: Matrix,
) -> None:  # fmt: skip
    """Attention of each pair's queries, where `asked` says, to its keys, where `pairs` says.

    All are float32[R, H]. Rows behind the last pair are read and, up to five, written: every matrix
    has to be `BEHIND` rows longer than its pairs.

    Raises:
        ValueError: if it is not, or the shapes are others.
    """
    width = out.columns
    size, rest = divmod(width, heads)
    padded = -(-pairs.longest // COLUMNS) * COLUMNS
    if not (
        rest == size % COLUMNS == 0 < size
        and queries.columns == keys.columns == values.columns == width
        and keys.ld == values.ld
        and len(asked.firsts) == len(pairs.firsts)
        and asked.end + ROWS - 1 <= min(queries.rows, out.rows)
        and pairs.end + COLUMNS - 1 <= min(keys.rows, values.rows)
    ):
        raise ValueError(
            f"attention of {asked.end} tokens in {queries.rows} and {out.rows} rows to {pairs.end} "
            f"in {keys.rows} and {values.rows}, {heads} heads in {width} columns"
        )
    work = torch.empty((2 * size + ROWS) * padded + ROWS * (COLUMNS + 1))
    kernels().attention(
        queries.address, queries.ld, asked.firsts.data_ptr(), asked.lengths.data_ptr(),
        keys.address, values.address, keys.ld, pairs.firsts.data_ptr(), pairs.lengths.data_ptr(),
        out.address, out.ld, work.data_ptr(), size**-0.5, len(pairs.firsts), heads, size,
    )  # fmt: skip
