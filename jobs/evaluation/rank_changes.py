"""What reranking moved: two orders of the same candidates, counted over a whole table.

Spark's approximate quantiles depend on the partitions. Here they are exact: ranks and lengths are
whole numbers and agreements are rounded, so few distinct values have to be counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pyspark.sql import Column, DataFrame, Row
from pyspark.sql import functions as F

from jobs.evaluation.calibration import round_edges
from jobs.evaluation.measures import TOP
from jobs.evaluation.run import RunEvaluation

_FLOW: Final = ((1, 10), (11, 20), (21, 50), (51, 100), (101, 2**62))  # ranks before
_BINS: Final = 30
_SHARES: Final = (0.05, 0.5, 0.95, 0.99)
_ROUNDED: Final = "decimal(9,4)"  # sums of decimals do not depend on the order of the rows


def count_changes(
    run: RunEvaluation, record: Mapping[str, Any] | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return what moved (None without a first stage), and lengths of the pairs (None if unknown).

    Args:
        run: of the table.
        record: of the run that scored it, for its `max_length`.
    """
    change = F.col("before") - F.col("after")  # up is positive
    table = run.rows.select(
        change.alias("change"), F.col("n_tokens").alias("length"), "truncated",
        F.when(F.col("after") <= TOP, F.col("before")).alias("origin"),
    )  # fmt: skip
    flow = [F.count_if(F.col("origin").between(*ends)).alias(f"flow_{ends[0]}") for ends in _FLOW]
    found = table.agg(
        *_summary("change"), *_summary("length"), *flow,
        F.avg(F.abs("change")).alias("mean_absolute"),
        F.count_if("truncated").alias("truncated"),
    ).collect()[0]  # fmt: skip
    edges = {name: round_edges(found[f"{name}_min"], found[f"{name}_max"], _BINS)
             for name in ("change", "length") if found[f"{name}_min"] is not None}  # fmt: skip
    counts = _histograms(table, edges)
    moved = _moved(run, found, edges["change"], counts["change"]) if "change" in edges else None
    lengths = None
    if "length" in edges:
        config = ((record or {}).get("config") or {}).get("model") or {}
        lengths = {
            "edges": edges["length"], "counts": counts["length"],
            **_quantiles(found, "length", 0.5, 0.95, 0.99), "mean": found["length_mean"],
            "max": float(found["length_max"]), "max_length": config.get("max_length"),
            "truncated": found["truncated"],
        }  # fmt: skip
    return moved, lengths


def _moved(run: RunEvaluation, found: Row, edges: list[float], counts: list[int]) -> dict[str, Any]:
    agreement = {
        name: F.round(name, 4).cast(_ROUNDED).alias(name) for name in ("kendall_tau", "rbo")
    }
    lists = run.per_query.withColumns(agreement).agg(
        *_summary("kendall_tau"), *_summary("rbo"),
        F.count("top1_changed").alias("compared"), F.count_if("top1_changed").alias("changed"),
        F.sum("n_truncated").alias("pairs"), F.count_if(F.col("n_truncated") > 0).alias("queries"),
        F.count_if(F.col("n_truncated_top") > 0).alias("queries_in_top"),
    ).collect()[0]  # fmt: skip
    flow = [
        {"from": f"{low}-{high}" if low < _FLOW[-1][0] else f"beyond {low - 1}",
         "count": found[f"flow_{low}"]}
        for low, high in _FLOW
    ]  # fmt: skip
    truncation = {name: lists[name] for name in ("pairs", "queries", "queries_in_top")}
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
            for name in agreement
            if lists[f"{name}_mean"] is not None
        },
        "flow": {"k": TOP, "rows": flow},
        "truncation": {**truncation, "k": TOP},
    }


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


def _histograms(table: DataFrame, edges: Mapping[str, list[float]]) -> dict[str, list[int]]:
    """Rows in [edge, next edge) of each column, in one pass."""
    bins = [
        F.floor((F.col(name) - ends[0]) / (ends[1] - ends[0]) + 1e-9).cast("int").alias(name)
        for name, ends in edges.items()
    ]
    counts = {name: [0] * (len(ends) - 1) for name, ends in edges.items()}
    for row in table.groupBy(*bins).count().collect() if bins else ():
        for name, found in counts.items():
            if row[name] is not None:
                found[row[name]] += row["count"]
    return counts
