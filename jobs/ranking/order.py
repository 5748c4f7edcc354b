"""Validated rows + scores -> the ranked table. DataFrame in, DataFrame out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from jobs.config import RankingConfig
from jobs.input.columns import quoted
from jobs.input.layouts import PASS_THROUGH
from jobs.input.readers import INTERNAL_PREFIX
from jobs.input.validation import ValidatedInput, content_hash
from jobs.runtime.errors import RefusedError

COLUMNS: Final = (
    "query_id", "doc_id", "rank", "score", "probability", "retrieval_rank", "retrieval_score",
    "rank_change", "n_tokens", "truncated",
)  # fmt: skip
_CONTENT: Final = f"{INTERNAL_PREFIX}content"


def rank_candidates(rows: DataFrame, validated: ValidatedInput, config: RankingConfig) -> DataFrame:
    """Order the candidates of every list by their raw float32 logits.

    The order is total: score descending, then doc_id (bytes, descending as in trec_eval unless set
    otherwise), then, for impressions of one pair, first-stage rank ascending, first-stage score
    descending and a hash of all other columns. Where the input gives a first-stage score but no
    rank, the rank is derived in the same way. `rank_change` is positive for a document that moved
    up.

    `rows` are `validated.valid` with `logit`, `n_tokens` and `truncated`.

    Returns:
        `COLUMNS`, label if given, then the columns passed through; `input_NAME` where a passed
        column has the name of a column here. Partitions that hold whole lists keep them one after
        the other, each in the order of its ranks: the sort that ranking needs leaves them so.
    """
    tie = [F.asc("doc_id") if config.tie_break == "doc_id_asc" else F.desc("doc_id")]
    if validated.repeated:
        rows = rows.withColumn(_CONTENT, content_hash(rows))
        tie += [F.asc_nulls_last("retrieval_rank"), F.desc_nulls_last("retrieval_score"),
                F.asc(_CONTENT)]  # fmt: skip
    candidate_list = Window.partitionBy(*validated.table.list_columns)
    if validated.derive_ranks:
        first_stage = F.row_number().over(candidate_list.orderBy(F.desc("retrieval_score"), *tie))
        derived = F.when(F.isnotnull("retrieval_score"), first_stage)
        rows = rows.withColumn("retrieval_rank", F.coalesce("retrieval_rank", derived))
    # Last, as what is sorted last stays sorted.
    by_score = candidate_list.orderBy(F.desc("logit"), *tie)
    rows = rows.withColumn("rank", F.row_number().over(by_score))
    if config.top_k is not None:
        rows = rows.where(F.col("rank") <= config.top_k)
    if config.min_score is not None:
        rows = rows.where(F.col("logit") >= config.min_score)
    # In double precision: in half precision a sigmoid is 1.0 from a logit of 9 on.
    probability = F.lit(1.0) / (F.lit(1.0) + F.exp(-F.col("logit").cast("double")))
    made = {
        "score": F.col("logit"),
        "probability": probability,
        "rank_change": F.col("retrieval_rank") - F.col("rank"),
    }
    return rows.withColumns(made).select(
        *COLUMNS,
        *(["label"] if "label" in validated.table.has else []),
        *(quoted(name).alias(new) for name, new in output_names(rows.columns).items()),
    )


def output_names(columns: Sequence[str]) -> dict[str, str]:
    """Return the name in the ranked table of every column passed through, by `in.NAME`."""
    taken, names = {*COLUMNS, "label"}, {}
    for column in columns:
        if column.startswith(PASS_THROUGH):
            name = column.removeprefix(PASS_THROUGH)
            while name in taken:
                name = f"input_{name}"
            taken.add(name)
            names[column] = name
    return names


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


def count_cut(rows: DataFrame, validated: ValidatedInput, config: RankingConfig) -> int:
    """Count rows that `top_k` and `min_score` leave out, per list, without ranking them."""
    if config.top_k is None and config.min_score is None:
        return 0
    above = F.lit(True) if config.min_score is None else F.col("logit") >= config.min_score
    kept = F.count_if(above)
    if config.top_k is not None:
        kept = F.least(kept, F.lit(config.top_k))
    per_list = rows.groupBy(*validated.table.list_columns).agg(
        (F.count(F.lit(1)) - kept).alias("cut")
    )
    return int(per_list.agg(F.coalesce(F.sum("cut"), F.lit(0))).collect()[0][0])


def count_ranked(table: DataFrame, group: Sequence[str] = ()) -> dict[str, int]:
    """Count the rows of a ranked table, those that were truncated, and lists (`queries`).

    A list is a query within the columns `group`. `top1_changed` are lists whose first document was
    not first before, of `top1_compared`, those with any first-stage rank.
    """
    top = F.col("rank") == 1
    lists = table.groupBy(*map(quoted, group), "query_id").agg(
        F.count(F.lit(1)).alias("rows"),
        F.count_if("truncated").alias("truncated"),
        F.min("retrieval_rank").alias("first"),
        F.min(F.when(top, F.col("retrieval_rank"))).alias("before"),
        F.count_if(top).alias("top"),
    )
    row = lists.agg(
        F.sum("rows").alias("ranked"),
        F.sum("truncated").alias("truncated"),
        F.sum("top").alias("queries"),
        F.count("before").alias("top1_compared"),
        F.count_if(F.col("before") > F.least("first", F.lit(1))).alias("top1_changed"),
    ).collect()[0]
    return {key: int(value or 0) for key, value in row.asDict().items()}
