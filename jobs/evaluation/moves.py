"""What reranking moved: two orders of the same candidates, compared query by query."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from jobs.evaluation.distributions import Distribution, distribution
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
    before = F.transform("orders", lambda order: order["before"])
    has_first_stage = F.isnotnull(F.get("orders", F.lit(0))["before"])
    # Spark runs a Python UDF for every row, whatever a `when` around it says.
    agreement = _agreement(F.when(has_first_stage, before))
    return queries.select(
        "query_id",
        F.when(has_first_stage, F.get("orders", F.lit(0))["before"] != 1).alias("top1_changed"),
        agreement["kendall_tau"].alias("kendall_tau"),
        agreement["rbo"].alias("rbo"),
        "n_truncated",
        "n_truncated_top",
    )


def rank_changes(rows: DataFrame) -> Distribution:
    """Places that documents moved, up positive, counted over all pairs."""
    return distribution(rows, F.col("before") - F.col("after"))


def flow(rows: DataFrame) -> dict[str, Any]:
    """Documents now among the first `TOP`, by the rank they had before."""
    found = distribution(rows.where(F.col("after") <= TOP), F.col("before"))
    counts = {f"{low}-{high}": _between(found, low, high) for low, high in _FLOW}
    last = _FLOW[-1][1]
    counts[f"beyond {last}"] = _between(found, last + 1, 2**62)
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
    def measure(orders: pd.Series) -> pd.DataFrame:
        arrays = [None if o is None else np.asarray(o, dtype=np.int64) for o in orders]
        return pd.DataFrame(
            {
                "kendall_tau": [None if a is None else kendall_tau(a) for a in arrays],
                "rbo": [None if a is None else rank_biased_overlap(a) for a in arrays],
            }
        )

    udf = pandas_udf("kendall_tau double, rbo double")(measure)  # type: ignore[call-overload]
    result: Column = udf(before)
    return result
