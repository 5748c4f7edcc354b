"""What needs no judgement: what reranking moved, how the scores lie, how long the pairs are.

Spark's approximate quantiles depend on the partitions. Here they are exact: ranks and lengths are
whole numbers and agreements are rounded, so few distinct values have to be counted. Sums of
decimals do not depend on the order of the rows.
"""

import math
from typing import Any, Final

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from jobs.evaluation.measures import TOP
from jobs.evaluation.run import RunEvaluation

_FLOW: Final = ((1, 10), (11, 20), (21, 50), (51, 100), (101, 2**62))  # ranks before
_BINS: Final = 30  # of ranks moved, and of lengths
_SCORE_BINS: Final = 40
_RELIABILITY_BINS: Final = 10
_SHARES: Final = (0.05, 0.5, 0.95, 0.99)
_AGREEMENTS: Final = ("kendall_tau", "rbo")


def describe(run: RunEvaluation, max_length: int | None) -> dict[str, Any]:
    """Return `moved` (None without a first stage), `scores` and `lengths` (None if unknown).

    `scores` has `tied_rate` (of the candidates of lists with two or more, those whose score another
    one of the list has; None without such a list) and `constant` (all scores are equal). Where any
    score is finite, also a histogram of the logits by class, and the reliability of the probability
    in ten bins of equal width; `ece`, the expected calibration error, is their mean distance from
    the diagonal, weighted by size (Naeini et al., AAAI 2015). A pair is relevant from a grade of 1
    on. `max_length` is what the pairs were cut to [tokens].
    """
    # Tables of others may hold infinite scores, which are in no bin.
    finite = F.when(F.abs("score") < float("inf"), F.col("score").cast("double"))
    rows = run.rows.select(
        (F.col("before") - F.col("after")).alias("change"),  # up is positive
        F.col("n_tokens").alias("length"), "truncated", "relevance", finite.alias("score"),
        F.when(F.col("after") <= TOP, F.col("before")).alias("origin"),
    )  # fmt: skip
    found, lists = _over_rows(rows), _over_lists(run.per_query)
    edges = {name: round_edges(found[f"{name}_min"], found[f"{name}_max"], _BINS)
             for name in ("change", "length") if found[f"{name}_min"] is not None}  # fmt: skip
    bins = rows.groupBy(*(_bin(name, ends).alias(name) for name, ends in edges.items()))
    cells = bins.agg(F.count(F.lit(1)).alias("pairs")).toPandas() if edges else pd.DataFrame()
    counts = {name: _histogram(cells, name, ends) for name, ends in edges.items()}
    moved = lengths = None
    if "change" in edges:
        moved = _moved(found, lists, edges["change"], counts["change"])
    if "length" in edges:
        lengths = {
            "edges": edges["length"], "counts": counts["length"],
            **_quantiles(found, "length", 0.5, 0.95, 0.99), "mean": found["length_mean"],
            "max": float(found["length_max"]), "max_length": max_length,
            "truncated": found["truncated"],
        }  # fmt: skip
    return {"moved": moved, "scores": _scores(rows, found, lists), "lengths": lengths}


def _over_rows(rows: DataFrame) -> Row:
    return rows.agg(
        *_summary("change"), *_summary("length"), F.avg(F.abs("change")).alias("mean_absolute"),
        F.count(F.lit(1)).alias("rows"), F.count_if("truncated").alias("truncated"),
        F.count("score").alias("finite"), F.min("score").alias("score_min"),
        F.max("score").alias("score_max"),
        *(F.count_if(F.col("origin").between(*ends)).alias(f"flow_{ends[0]}") for ends in _FLOW),
    ).collect()[0]  # fmt: skip


def _over_lists(per_query: DataFrame) -> Row:
    rounded = {name: F.round(name, 4).cast("decimal(9,4)") for name in _AGREEMENTS}
    several = F.col("n_retrieved") > 1
    return per_query.withColumns(rounded).agg(
        *_summary("kendall_tau"), *_summary("rbo"),
        F.count("top1_changed").alias("compared"), F.count_if("top1_changed").alias("changed"),
        F.sum("n_truncated").alias("pairs"), F.count_if(F.col("n_truncated") > 0).alias("queries"),
        F.count_if(F.col("n_truncated_top") > 0).alias("queries_in_top"),
        F.sum(F.when(several, F.col("n_retrieved"))).alias("candidates"),
        F.sum(F.when(several, F.col("n_tied"))).alias("tied"),
    ).collect()[0]  # fmt: skip


def _moved(found: Row, lists: Row, edges: list[float], counts: list[int]) -> dict[str, Any]:
    flow = [
        {"from": f"{low}-{high}" if low < _FLOW[-1][0] else f"beyond {low - 1}",
         "count": found[f"flow_{low}"]}
        for low, high in _FLOW
    ]  # fmt: skip
    return {
        "queries_compared": lists["compared"],
        "top1_change_rate": lists["changed"] / lists["compared"],
        "bin_width": edges[1] - edges[0],
        "rank_change": {
            "mean_absolute": found["mean_absolute"],
            **_quantiles(found, "change", 0.05, 0.5, 0.95),
            "histogram": [list(pair) for pair in zip(edges[:-1], counts, strict=True)],
        },
        **{
            name: {"mean": float(lists[f"{name}_mean"]), **_quantiles(lists, name, 0.05, 0.5, 0.95)}
            for name in _AGREEMENTS
            if lists[f"{name}_mean"] is not None
        },
        "flow": {"k": TOP, "rows": flow},
        "truncation": {**{key: lists[key] for key in ("pairs", "queries", "queries_in_top")},
                       "k": TOP},
    }  # fmt: skip


def _scores(rows: DataFrame, found: Row, lists: Row) -> dict[str, Any]:
    low, high, finite = found["score_min"], found["score_max"], found["finite"]
    scores = {
        "tied_rate": lists["tied"] / lists["candidates"] if lists["candidates"] else None,
        "constant": bool(found["rows"] > 1 and finite == found["rows"] and low == high),
    }
    if not finite:
        return scores
    edges = round_edges(low, high, _SCORE_BINS)
    kind = (
        F.when(F.isnull("relevance"), "unjudged")
        .when(F.col("relevance") >= 1, "relevant")
        .otherwise("not_relevant")
    )
    probability = 1 / (1 + F.exp(-F.col("score")))
    last = F.lit(_RELIABILITY_BINS - 1)
    decile = F.least(F.floor(probability * _RELIABILITY_BINS), last)
    bins = rows.where(F.col("score").isNotNull()).groupBy(
        kind.alias("kind"), _bin("score", edges).alias("bin"), decile.alias("decile")
    )
    # Decimals add up to the same in any order; pandas before 2.0 adds none up.
    total = F.sum(probability.cast("decimal(20,18)")).cast("double")
    cells = bins.agg(F.count(F.lit(1)).alias("pairs"), total.alias("total")).toPandas()
    classes = ("relevant", "not_relevant", "unjudged")
    counts = {name: _histogram(cells[cells["kind"] == name], "bin", edges) for name in classes}
    return {**scores, "edges": edges, **counts, **_reliability(cells)}


def _reliability(cells: pd.DataFrame) -> dict[str, Any]:
    judged = cells[cells["kind"] != "unjudged"].sort_values(["decile", "bin", "kind"])
    judged = judged.assign(hits=judged["pairs"].where(judged["kind"] == "relevant", 0))
    sums = judged.groupby("decile")[["pairs", "hits", "total"]].sum()
    sums = sums.reindex(range(_RELIABILITY_BINS), fill_value=0)
    curve = [
        {
            "low": at / _RELIABILITY_BINS,
            "high": (at + 1) / _RELIABILITY_BINS,
            "pairs": pairs,
            "mean_probability": float(total / pairs) if pairs else None,
            "share_relevant": hits / pairs if pairs else None,
        }
        for at, pairs, hits, total in sums.itertuples()
    ]
    size = sum(point["pairs"] for point in curve)
    gaps = sum(point["pairs"] * abs(point["mean_probability"] - point["share_relevant"])
               for point in curve if point["pairs"])  # fmt: skip
    return {"reliability": curve, "ece": gaps / size if size else None, "judged_pairs": size}


def _summary(name: str) -> list[Column]:
    """Mean, ends, and the smallest value with a cumulative share of at least each of `_SHARES`."""
    quantile = "percentile_disc({}) WITHIN GROUP (ORDER BY {})"
    return [
        F.avg(name).alias(f"{name}_mean"), F.min(name).alias(f"{name}_min"),
        F.max(name).alias(f"{name}_max"),
        *(F.expr(quantile.format(share, name)).alias(f"{name}_{share}") for share in _SHARES),
    ]  # fmt: skip


def _quantiles(row: Row, name: str, *shares: float) -> dict[str, float]:
    return {f"p{share * 100:g}": float(row[f"{name}_{share}"]) for share in shares}


def _bin(name: str, edges: list[float]) -> Column:
    """Number of the bin [edge, next edge) that a value is in; null for null."""
    return F.floor((F.col(name) - edges[0]) / (edges[1] - edges[0]) + 1e-9)


def _histogram(cells: pd.DataFrame, name: str, edges: list[float]) -> list[int]:
    """Sums of `pairs` by the number of their bin."""
    known, last = cells.dropna(subset=[name]), len(edges) - 2
    counts = np.bincount(known[name].to_numpy(int).clip(0, last), known["pairs"], last + 1)
    return [int(count) for count in counts]


def round_edges(low: float, high: float, bins: int) -> list[float]:
    """Return about `bins` equal bins at round numbers that hold both ends, the upper one inside."""
    width = max(high - low, 1e-6 * max(1.0, abs(high))) / bins
    scale = 10.0 ** math.floor(math.log10(width))
    width = next(nice * scale for nice in (1.0, 2.0, 5.0, 10.0) if nice * scale >= width - 1e-12)
    # A quotient that should be whole may come out a hair below.
    first, last = (math.floor(end / width + 1e-6) for end in (low, high))
    return [round(at * width, 10) for at in range(first, last + 2)]
