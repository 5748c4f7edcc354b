"""What reranking moved: two orders of the same candidates, compared query by query."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from jobs.evaluation.distributions import Distribution
from jobs.evaluation.metrics import TieBreak

TOP: Final = 10  # ranks that people look at
PERSISTENCE: Final = 0.9  # of the reader that rank-biased overlap imagines
_FLOW: Final = ((1, 10), (11, 20), (21, 50), (51, 100))  # ranks before
_BINS: Final = 30


def placed(candidates: DataFrame, order: str | None, *, tie_break: TieBreak) -> DataFrame:
    """Add `after` and `before`, both ranks from 1 without gaps.

    Args:
        candidates: query_id, doc_id, score, and the column named `order`.
        order: retrieval_score or retrieval_rank, see `metrics.first_stage_order`; None leaves
            `before` null.
        tie_break: order of equal scores.
    """
    tie = F.col("doc_id").desc() if tie_break == "doc_id_desc" else F.col("doc_id").asc()
    query = Window.partitionBy("query_id")
    before: Column = F.lit(None).cast("int")
    if order is not None:
        first = F.col(order).desc() if order == "retrieval_score" else F.col(order).asc()
        before = F.row_number().over(query.orderBy(first, tie))
    score = F.col("score").cast("float")
    return candidates.withColumns(
        {"after": F.row_number().over(query.orderBy(score.desc(), tie)), "before": before}
    )


def query_moves(rows: DataFrame) -> DataFrame:
    """One row per query of `placed` rows.

    Returns:
        query_id; top1_changed (bool); kendall_tau and rbo between the two orders (double, null
        without a first stage, tau also for a single candidate); n_truncated (pairs that were cut)
        and n_truncated_top (those among the first `TOP` before or after).
    """
    orders = F.struct("after", "before")
    near = F.least("after", F.coalesce("before", "after")) <= TOP
    queries = rows.groupBy("query_id").agg(
        F.sort_array(F.collect_list(orders)).alias("orders"),
        F.count_if(F.col("truncated")).alias("n_truncated"),
        F.count_if(F.col("truncated") & near).alias("n_truncated_top"),
    )
    first = F.get("orders", F.lit(0))["before"]
    before = F.transform("orders", lambda order: order["before"])
    agreement = _agreement(F.when(F.isnotnull(first), before))
    return queries.select(
        "query_id",
        (first != 1).alias("top1_changed"),
        agreement["kendall_tau"].alias("kendall_tau"),
        agreement["rbo"].alias("rbo"),
        "n_truncated",
        "n_truncated_top",
    )


def rank_change() -> Column:
    """Places that a document moved, up positive; null without a first stage."""
    return F.col("before") - F.col("after")


def origin() -> Column:
    """The former rank of a document that is now among the first `TOP`, null of others."""
    return F.when(F.col("after") <= TOP, F.col("before"))


def flow(origins: Distribution) -> dict[str, Any]:
    """Where the first `TOP` came from."""
    counts = {f"{low}-{high}": _between(origins, low, high) for low, high in _FLOW}
    last = _FLOW[-1][1]
    counts[f"beyond {last}"] = _between(origins, last + 1, 2**62)
    return {"k": TOP, "rows": [{"from": key, "count": n} for key, n in counts.items()]}


def summary(changes: Distribution) -> dict[str, Any]:
    """How far documents moved, for a report."""
    edges, counts = changes.histogram(_BINS)
    absolute = float(np.abs(changes.values) @ changes.counts / changes.size)
    return {
        "bin_width": edges[1] - edges[0],
        "rank_change": {
            "mean_absolute": absolute,
            **{k: v for k, v in changes.summary(0.05, 0.5, 0.95).items() if k != "mean"},
            "histogram": [list(pair) for pair in zip(edges[:-1], counts, strict=True)],
        },
    }


def kendall_tau(before: NDArray[np.int64]) -> float:
    """Kendall's tau between 1, 2, 3, ... and these ranks, a permutation of it; NaN of one."""
    from scipy import stats

    if len(before) < 2:
        return float("nan")
    return float(stats.kendalltau(np.arange(len(before)), before).statistic)


def rank_biased_overlap(before: NDArray[np.int64], persistence: float = PERSISTENCE) -> float:
    """Rank-biased overlap, extrapolated, between 1, 2, 3, ... and a permutation of it.

    Webber, Moffat, Zobel, "A similarity measure for indefinite rankings", TOIS 28(4), 2010,
    equation 32 for two lists of one length. 1 for equal orders.
    """
    depth = np.arange(1, len(before) + 1)
    # A document is in both lists to depth d when d reaches the lower of its two places.
    reached = np.bincount(np.maximum(depth, before), minlength=len(before) + 1)[1:]
    agreement = np.cumsum(reached) / depth
    weights = persistence**depth
    tail = agreement[-1] * weights[-1]
    return float(tail + (1 - persistence) / persistence * (agreement @ weights))


def _between(found: Distribution, low: int, high: int) -> int:
    inside = (found.values >= low) & (found.values <= high)
    return int(found.counts[inside].sum())


def _agreement(before: Column) -> Column:
    # Spark runs it over every row, those without a first stage included: they have no ranks.
    def measure(orders: pd.Series) -> pd.DataFrame:
        ranks = [None if order is None else np.asarray(order, dtype=np.int64) for order in orders]
        return pd.DataFrame(
            {
                "kendall_tau": [None if r is None else kendall_tau(r) for r in ranks],
                "rbo": [None if r is None else rank_biased_overlap(r) for r in ranks],
            },
            dtype="float64",
        )

    udf = pandas_udf("kendall_tau double, rbo double")(measure)  # type: ignore[call-overload]
    result: Column = udf(before)
    return result
