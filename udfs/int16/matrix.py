"""Memory that kernels may touch: rows of numbers, with their bounds.

What is here and in `layers` hands addresses to native code, which would write anywhere. So an
address comes from a tensor looked at here, is kept together with it, and is used within its rows.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Self

import torch

from udfs.int16.kernels import kernels
from udfs.int16.limits import COLUMNS

# Rows of integers lie this much farther apart than they are long, or the rows of a tile would
# share the few places of the nearest cache where a power of two has them meet.
_GAP: Final = 32  # int16


class Matrix(NamedTuple):
    """Rows of a tensor, as kernels take them."""

    tensor: torch.Tensor  # whose memory this is; here to keep it
    address: int  # of the first row
    ld: int  # elements from one row to the next
    step: int  # the same in bytes
    rows: int
    columns: int

    @classmethod
    def of(cls, tensor: torch.Tensor, kind: torch.dtype = torch.float32) -> Self:
        """All rows of a tensor [rows, columns], which may be a view.

        Raises:
            ValueError: if it is on another device, of another type, or its rows are not contiguous.
        """
        if tensor.dim() != 2 or tensor.dtype != kind or tensor.device.type != "cpu":
            raise ValueError(
                f"kernels take {kind} of two dimensions on the CPU, not {tensor.dtype} of "
                f"{tuple(tensor.shape)} on {tensor.device}"
            )
        rows, columns = tensor.shape
        ld, between = tensor.stride()
        if between != 1 or ld < columns:
            raise ValueError(f"rows of {columns} with strides {ld}, {between} are not contiguous")
        return cls(tensor, tensor.data_ptr(), ld, ld * tensor.element_size(), rows, columns)

    def part(self, first: int, rows: int) -> Matrix:
        """Some of the rows.

        Raises:
            ValueError: if they are not all there.
        """
        if not 0 <= first <= first + rows <= self.rows:
            raise ValueError(f"rows {first} to {first + rows} of {self.rows}")
        address = self.address + first * self.step
        return Matrix(self.tensor, address, self.ld, self.step, rows, self.columns)


class Rows(NamedTuple):
    """Tokens between two layers: [T, H] in float32, and the same in integers times a scale."""

    exact: Matrix  # float32[T, H]
    integers: Matrix  # int16[T, H]
    scales: Matrix  # float32[T, 1]

    @classmethod
    def empty(cls, rows: int, columns: int) -> Self:
        """Memory for rows that are computed before they are read."""
        _check_columns(columns)
        integers = torch.empty(rows, columns + _GAP, dtype=torch.int16)[:, :columns]
        return cls(
            Matrix.of(torch.empty(rows, columns)),
            Matrix.of(integers, torch.int16),
            Matrix.of(torch.empty(rows, 1)),
        )

    def part(self, first: int, rows: int) -> Rows:
        """Some of them, in the same memory."""
        return Rows(
            self.exact.part(first, rows),
            self.integers.part(first, rows),
            self.scales.part(first, rows),
        )

    def chosen(self, numbers: torch.Tensor) -> Rows:
        """A copy of some rows of the tensors: int64[R], of which none is outside."""
        few = Rows.empty(len(numbers), self.exact.columns)
        for target, source in zip(few, self, strict=True):
            target.tensor.copy_(source.tensor[numbers])
        return few

    def quantise(self, source: Matrix) -> None:
        """Take the integers and scales of float32[R, H], R at most T.

        Raises:
            ValueError: if it has other columns, or more rows than there are here.
        """
        integers = self.integers
        if source.columns != integers.columns or not 0 < source.rows <= integers.rows:
            raise ValueError(
                f"{source.rows} x {source.columns} into {integers.rows} x {integers.columns}"
            )
        kernels().quantise(
            source.address, source.ld, integers.address, integers.ld, self.scales.address,
            source.rows, source.columns,
        )  # fmt: skip


def _check_columns(columns: int) -> None:
    if columns < 1 or columns % COLUMNS:
        raise ValueError(f"kernels take columns in multiples of {COLUMNS}, not {columns}")
