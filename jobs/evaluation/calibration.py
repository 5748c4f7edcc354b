"""Scores against labels: how the two classes lie apart, and whether a probability is one."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, Final

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.evaluation.distributions import round_edges

_SCORE_BINS: Final = 40
_RELIABILITY_BINS: Final = 10
# Sums of decimals do not depend on the order of the rows, see `metrics`.
_EXACT: Final = "decimal(20,18)"
_CLASSES: Final = ("relevant", "not_relevant", "unjudged")


def with_labels(candidates: DataFrame, qrels: DataFrame) -> DataFrame:
    """Add `relevance` (int, null where a pair has no judgement)."""
    judged = qrels.select(
        F.col("query_id").cast("string").alias("query_id"),
        F.col("doc_id").cast("string").alias("doc_id"),
        "relevance",
    )
    return candidates.join(judged, on=["query_id", "doc_id"], how="left")


def calibration(labelled: DataFrame) -> dict[str, Any]:
    """Histogram of the logits by class, reliability curve and expected calibration error.

    A pair is relevant from a grade of 1 on. The curve has ten bins of equal width, the error is
    their mean distance from the diagonal, weighted by size (Naeini et al., AAAI 2015).

    Args:
        labelled: score (logit), relevance.

    Returns:
        `edges`, `relevant`, `not_relevant`, `unjudged`, `reliability`, `ece`, `judged_pairs`.
    """
    # Tables of others may hold infinite scores, which are in no bin.
    finite = labelled.where(F.abs("score") < float("inf"))
    ends = finite.agg(F.min("score"), F.max("score")).first()
    if ends is None or ends[0] is None:
        return {}
    edges = round_edges(float(ends[0]), float(ends[1]), _SCORE_BINS)
    kind = (
        F.when(F.isnull("relevance"), "unjudged")
        .when(F.col("relevance") >= 1, "relevant")
        .otherwise("not_relevant")
    )
    probability = 1 / (1 + F.exp(-F.col("score").cast("double")))
    width = edges[1] - edges[0]
    cells = (
        finite.select(
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
