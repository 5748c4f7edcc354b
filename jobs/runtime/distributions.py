"""Counts of values -> means, quantiles and histograms that are exact and need no second pass.

Spark's approximate quantiles depend on the partitions, and its exact ones hold every value in one
place. Here the values are whole numbers, or rounded to a step, of which there are few: they are
counted in Spark, and the rest is arithmetic on the counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Final

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

_NICE: Final = (1.0, 2.0, 5.0, 10.0)


@dataclass(frozen=True)
class Distribution:
    """Values in ascending order and how often each came.

    Attributes:
        values: float64[V], distinct.
        counts: int64[V].
    """

    values: NDArray[np.float64]
    counts: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Values counted."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Arithmetic mean; NaN of nothing."""
        return float(self.values @ self.counts / self.size) if self.size else math.nan

    def quantile(self, share: float) -> float:
        """The least value that at least this share of all reach not beyond; NaN of nothing."""
        if not self.size:
            return math.nan
        place = np.searchsorted(np.cumsum(self.counts), share * self.size - 1e-9)
        return float(self.values[min(int(place), len(self.values) - 1)])

    def summary(self, *shares: float) -> dict[str, float]:
        """`mean` and, for 0.95, `p95` and so on."""
        return {
            "mean": self.mean,
            **{f"p{share * 100:g}": self.quantile(share) for share in shares},
        }

    def histogram(self, bins: int) -> tuple[list[float], list[int]]:
        """Edges (one more than counts) at round numbers, and values in [edge, next edge)."""
        if not self.size:
            return [0.0, 1.0], [0]
        edges = round_edges(float(self.values[0]), float(self.values[-1]), bins)
        places = np.searchsorted(edges, self.values, side="right") - 1
        counts = np.bincount(places, weights=self.counts, minlength=len(edges) - 1)
        return edges, [int(count) for count in counts]


def distributions(
    rows: DataFrame,
    values: Mapping[str, Column],
    sums: Mapping[str, Column] | None = None,
    *,
    step: float = 1.0,
) -> tuple[dict[str, Distribution], dict[str, int]]:
    """Count the values of several columns, and add up others, in one pass over the rows.

    Args:
        rows: any table.
        values: what to count by name, rounded to a multiple of `step`; nulls are left out.
        sums: whole numbers to add up over all rows, by name.
        step: see `values`.

    Returns:
        A distribution per name, and a number per name.
    """
    cells = F.array(
        *(
            F.struct(F.lit(name).alias("of"), F.round(value / F.lit(step)).cast("long").alias("at"))
            for name, value in values.items()
        )
    )
    # A row comes once for every name; what is to be added up is taken with the first.
    first = next(iter(values))
    cell = F.col("_cell")
    totals = {
        name: F.sum(F.when(cell["of"] == first, column)).alias(name)
        for name, column in (sums or {}).items()
    }
    found = (
        rows.select("*", F.explode(cells).alias("_cell"))
        .groupBy(cell["of"].alias("of"), cell["at"].alias("at"))
        .agg(F.count(F.lit(1)).alias("n"), *totals.values())
        .collect()
    )
    counted = {name: _distribution(found, name, step) for name in values}
    return counted, {name: sum(int(row[name] or 0) for row in found) for name in totals}


def _distribution(cells: Iterable[Row], name: str, step: float) -> Distribution:
    kept = [row for row in cells if row["of"] == name and row["at"] is not None]
    kept.sort(key=itemgetter("at"))
    return Distribution(
        np.array([row["at"] * step for row in kept], dtype=np.float64),
        np.array([row["n"] for row in kept], dtype=np.int64),
    )


def round_edges(low: float, high: float, bins: int) -> list[float]:
    """About `bins` equal bins at round numbers that hold both ends, the upper one inside."""
    width = max(high - low, 1e-6 * max(1.0, abs(high))) / bins
    scale = 10.0 ** math.floor(math.log10(width))
    width = next(nice * scale for nice in _NICE if nice * scale >= width - 1e-12)
    # A quotient that should be whole may come out a hair below.
    first, last = (math.floor(end / width + 1e-6) for end in (low, high))
    edges = [round(at * width, 10) for at in range(first, last + 2)]
    assert all(left < right for left, right in pairwise(edges))
    return edges
