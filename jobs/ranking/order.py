"""Checked pairs + scores -> the ranked table. DataFrame in, DataFrame out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.config import RankingConfig
from jobs.input.layouts import PASS_THROUGH
from jobs.input.readers import quoted
from jobs.runtime.errors import RefusedError

COLUMNS: Final = (
    "query_id", "doc_id", "rank", "score", "probability", "retrieval_rank", "retrieval_score",
    "rank_change", "n_tokens", "truncated",
)  # fmt: skip


def ranked(
    scored: DataFrame, config: RankingConfig, *, label: bool, placed: bool = False
) -> DataFrame:
    """Order every query's candidates by their raw float32 logits.

    The order is total: score descending, then doc_id (bytes, descending as in trec_eval unless
    set otherwise). Where the input gives a first-stage score but no rank, the rank is derived in
    the same way. `rank_change` is positive for a document that moved up.

    Args:
        scored: checked pairs joined with `logit`, `n_tokens` and `truncated`.
        config: `top_k` and `min_score`.
        label: whether the input has labels.
        placed: whether no row is left to derive a first-stage rank of.

    Returns:
        `COLUMNS`, label if given, then the columns passed through; `input_NAME` where a passed
        column has the name of a column here. Every partition holds whole queries, one after the
        other, each in the order of its ranks: the sort that ranking needs leaves them so.
    """
    tie = F.asc("doc_id") if config.tie_break == "doc_id_asc" else F.desc("doc_id")
    query = Window.partitionBy("query_id")
    first_stage = F.row_number().over(query.orderBy(F.desc("retrieval_score"), tie))
    derived = F.when(F.isnotnull("retrieval_score"), first_stage)
    rows = scored
    if not placed:
        rows = rows.withColumn("retrieval_rank", F.coalesce("retrieval_rank", derived))
    # Last, as what is sorted last stays sorted.
    rows = rows.withColumn("rank", F.row_number().over(query.orderBy(F.desc("logit"), tie)))
    if config.top_k is not None:
        rows = rows.where(F.col("rank") <= config.top_k)
    if config.min_score is not None:
        rows = rows.where(F.col("logit") >= config.min_score)
    passed = [name for name in rows.columns if name.startswith(PASS_THROUGH)]
    taken = {*COLUMNS, "label"}
    return rows.select(
        "query_id",
        "doc_id",
        "rank",
        F.col("logit").alias("score"),
        probability(F.col("logit")).alias("probability"),
        "retrieval_rank",
        "retrieval_score",
        (F.col("retrieval_rank") - F.col("rank")).alias("rank_change"),
        "n_tokens",
        "truncated",
        *(["label"] if label else []),
        *(
            quoted(name).alias(_free_name(name.removeprefix(PASS_THROUGH), taken))
            for name in passed
        ),
    )


def refuse_slices(columns: Sequence[str], slices: Sequence[str]) -> None:
    """Find out before anything is scored that a slice is no column of the ranked table.

    Raises:
        RefusedError: naming missing and present columns.
    """
    present = [name.removeprefix(PASS_THROUGH) for name in columns if name.startswith(PASS_THROUGH)]
    missing = [name for name in slices if name not in (*present, *COLUMNS)]
    if missing:
        raise RefusedError(
            f"evaluation.slices: the ranked table will not have {', '.join(missing)}; columns "
            f"passed through are {', '.join(present) or 'none'}"
        )


def probability(logit: Column) -> Column:
    """Sigmoid in double precision: in half precision it is 1.0 from a logit of 9 on."""
    return F.lit(1.0) / (F.lit(1.0) + F.exp(-logit.cast("double")))


def count_cut(scored: DataFrame, config: RankingConfig) -> int:
    """Rows that `top_k` and `min_score` leave out, counted per query without ranking them."""
    if config.top_k is None and config.min_score is None:
        return 0
    above = F.lit(True) if config.min_score is None else F.col("logit") >= config.min_score
    per_query = scored.groupBy("query_id").agg(
        F.count(F.lit(1)).alias("all"), F.count_if(above).alias("kept")
    )
    kept = F.col("kept") if config.top_k is None else F.least("kept", F.lit(config.top_k))
    row = per_query.agg(F.sum(F.col("all") - kept)).first()
    return int(row[0] or 0) if row else 0


def count_ranked(table: DataFrame) -> dict[str, int]:
    """Rows and queries of a ranked table, pairs that were cut, and changes at the top.

    Returns:
        `ranked`, `truncated`, `queries`; `top1_changed`: queries whose first document was not
        first before, of `top1_compared`, those with any first-stage rank.
    """
    top = F.col("rank") == 1
    queries = table.groupBy("query_id").agg(
        F.count(F.lit(1)).alias("rows"),
        F.count_if("truncated").alias("truncated"),
        F.min("retrieval_rank").alias("first"),
        F.min(F.when(top, F.col("retrieval_rank"))).alias("before"),
        F.count_if(top).alias("top"),
    )
    row = queries.agg(
        F.sum("rows").alias("ranked"),
        F.sum("truncated").alias("truncated"),
        F.sum("top").alias("queries"),
        F.count("before").alias("top1_compared"),
        F.count_if(F.col("before") > F.least("first", F.lit(1))).alias("top1_changed"),
    ).collect()[0]
    return {key: int(value or 0) for key, value in row.asDict().items()}


def _free_name(name: str, taken: set[str]) -> str:
    """The name, or `input_NAME` where the ranked table has a column of that name."""
    while name in taken:
        name = f"input_{name}"
    taken.add(name)
    return name
