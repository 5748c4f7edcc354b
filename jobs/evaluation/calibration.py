"""Scores by themselves and against labels: ties, how the classes lie apart, calibration."""

from __future__ import annotations

import math
from decimal import Decimal
from itertools import pairwise
from typing import Any, Final

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

_SCORE_BINS: Final = 40
_RELIABILITY_BINS: Final = 10
# Sums of decimals do not depend on the order of the rows.
_NICE: Final = (1.0, 2.0, 5.0, 10.0)
_EXACT: Final = "decimal(20,18)"
_CLASSES: Final = ("relevant", "not_relevant", "unjudged")


def describe_scores(labelled: DataFrame, per_query: DataFrame) -> dict[str, Any]:
    """Return ties, a histogram of the logits by class, reliability, expected calibration error.

    A pair is relevant from a grade of 1 on. The curve has ten bins of equal width, the error is
    their mean distance from the diagonal, weighted by size (Naeini et al., AAAI 2015).

    Args:
        labelled: score (logit), relevance (null where unjudged).
        per_query: n_retrieved, n_tied.

    Returns:
        `tied_rate` (of the candidates of lists with two or more, those whose score another one of
        the list has; None without such a list) and `constant` (all scores of the table are equal).
        Where any score is finite, also `edges`, `relevant`, `not_relevant`, `unjudged`,
        `reliability`, `ece` (None without a judgement), `judged_pairs`.
    """
    several = F.col("n_retrieved") > 1
    ties = per_query.agg(
        F.sum(F.when(several, F.col("n_retrieved"))), F.sum(F.when(several, F.col("n_tied")))
    ).first()
    # Tables of others may hold infinite scores, which are in no bin.
    finite = F.abs("score") < float("inf")
    ends = labelled.agg(
        F.min(F.when(finite, F.col("score"))), F.max(F.when(finite, F.col("score"))),
        F.count(F.lit(1)), F.count_if(finite),
    ).first()  # fmt: skip
    assert ties is not None and ends is not None  # aggregates without groups have one row
    low, high, pairs, usable = ends
    found = {
        "tied_rate": ties[1] / ties[0] if ties[0] else None,
        "constant": bool(pairs > 1 and usable == pairs and low == high),
    }
    if not usable:
        return found
    return {**found, **_calibrated(labelled.where(finite), float(low), float(high))}


def _calibrated(labelled: DataFrame, low: float, high: float) -> dict[str, Any]:
    edges = round_edges(low, high, _SCORE_BINS)
    kind = (
        F.when(F.isnull("relevance"), "unjudged")
        .when(F.col("relevance") >= 1, "relevant")
        .otherwise("not_relevant")
    )
    probability = 1 / (1 + F.exp(-F.col("score").cast("double")))
    width = edges[1] - edges[0]
    cells = (
        labelled.select(
            kind.alias("kind"),
            F.floor((F.col("score").cast("double") - edges[0]) / width).alias("bin"),
            F.least(F.floor(probability * _RELIABILITY_BINS), F.lit(_RELIABILITY_BINS - 1)).alias(
                "decile"
            ),
            probability.cast(_EXACT).alias("probability"),
        )
        .groupBy("kind", "bin", "decile")
        .agg(F.count(F.lit(1)).alias("pairs"), F.sum("probability").alias("total"))
        .collect()
    )
    counts = {name: [0] * (len(edges) - 1) for name in _CLASSES}
    sizes, hits = [0] * _RELIABILITY_BINS, [0] * _RELIABILITY_BINS
    totals = [Decimal(0)] * _RELIABILITY_BINS
    for row in cells:
        counts[row["kind"]][min(max(row["bin"], 0), len(edges) - 2)] += row["pairs"]
        if row["kind"] != "unjudged":
            sizes[row["decile"]] += row["pairs"]
            totals[row["decile"]] += row["total"]
            hits[row["decile"]] += row["pairs"] if row["kind"] == "relevant" else 0
    curve = [_point(*point) for point in zip(range(len(sizes)), sizes, totals, hits, strict=True)]
    judged = sum(sizes)
    gaps = [
        p["pairs"] * abs(p["mean_probability"] - p["share_relevant"]) for p in curve if p["pairs"]
    ]
    return {
        "edges": edges,
        **counts,
        "reliability": curve,
        "ece": sum(gaps) / judged if judged else None,
        "judged_pairs": judged,
    }


def _point(at: int, pairs: int, total: Decimal, hits: int) -> dict[str, Any]:
    return {
        "low": at / _RELIABILITY_BINS,
        "high": (at + 1) / _RELIABILITY_BINS,
        "pairs": pairs,
        "mean_probability": float(total / pairs) if pairs else None,
        "share_relevant": hits / pairs if pairs else None,
    }


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
