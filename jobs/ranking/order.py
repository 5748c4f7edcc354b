"""Validated rows + scores -> the ranked table. DataFrame in, DataFrame out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.config import RankingConfig
from jobs.input.columns import quoted
from jobs.input.duplicates import content_hash
from jobs.input.layouts import PASS_THROUGH
from jobs.input.readers import INTERNAL_PREFIX
from jobs.runtime.errors import RefusedError

COLUMNS: Final = (
    "query_id", "doc_id", "rank", "score", "probability", "retrieval_rank", "retrieval_score",
    "rank_change", "n_tokens", "truncated",
)  # fmt: skip
_CONTENT: Final = f"{INTERNAL_PREFIX}content"


@dataclass(frozen=True)
class Candidates:
    """Validated rows with the scores of their pairs.

    Attributes:
        rows: columns of `jobs.input.validation.ValidatedInput`, `logit`, `n_tokens`, `truncated`.
        group: columns of `rows` that, with query_id, make a list.
        has_label: whether the input has labels.
        derive_ranks: whether a row may have a first-stage score and no rank.
        repeated: whether a document may be more than once in a list, as impressions of one pair.
    """

    rows: DataFrame
    group: tuple[str, ...] = ()
    has_label: bool = False
    derive_ranks: bool = True
    repeated: bool = False

    @property
    def list_columns(self) -> list[Column]:
        """Columns that identify a list."""
        return [*map(quoted, self.group), F.col("query_id")]


def rank_candidates(candidates: Candidates, config: RankingConfig) -> DataFrame:
    """Order the candidates of every list by their raw float32 logits.

    The order is total: score descending, then doc_id (bytes, descending as in trec_eval unless set
    otherwise), then, for impressions of one pair, first-stage rank ascending, first-stage score
    descending and a hash of all other columns. Where the input gives a first-stage score but no
    rank, the rank is derived in the same way. `rank_change` is positive for a document that moved
    up.

    Args:
        candidates: what to rank.
        config: `top_k`, `min_score` and `tie_break`.

    Returns:
        `COLUMNS`, label if given, then the columns passed through; `input_NAME` where a passed
        column has the name of a column here. Partitions that hold whole lists keep them one after
        the other, each in the order of its ranks: the sort that ranking needs leaves them so.
    """
    tie = [F.asc("doc_id") if config.tie_break == "doc_id_asc" else F.desc("doc_id")]
    rows = candidates.rows
    if candidates.repeated:
        rows = rows.withColumn(_CONTENT, content_hash(rows))
        tie += [F.asc_nulls_last("retrieval_rank"), F.desc_nulls_last("retrieval_score"),
                F.asc(_CONTENT)]  # fmt: skip
    candidate_list = Window.partitionBy(*candidates.list_columns)
    if candidates.derive_ranks:
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
        *(["label"] if candidates.has_label else []),
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


def probability(logit: Column) -> Column:
    """Sigmoid in double precision: in half precision it is 1.0 from a logit of 9 on."""
    return F.lit(1.0) / (F.lit(1.0) + F.exp(-logit.cast("double")))


def count_cut(candidates: Candidates, config: RankingConfig) -> int:
    """Count rows that `top_k` and `min_score` leave out, per list, without ranking them."""
    if config.top_k is None and config.min_score is None:
        return 0
    above = F.lit(True) if config.min_score is None else F.col("logit") >= config.min_score
    per_list = candidates.rows.groupBy(*candidates.list_columns).agg(
        F.count(F.lit(1)).alias("all"), F.count_if(above).alias("kept")
    )
    kept = F.col("kept") if config.top_k is None else F.least("kept", F.lit(config.top_k))
    row = per_list.agg(F.sum(F.col("all") - kept)).first()
    return int(row[0] or 0) if row else 0


def count_ranked(table: DataFrame, group: Sequence[str] = ()) -> dict[str, int]:
    """Count rows and lists of a ranked table, pairs that were cut, and changes at the top.

    Args:
        table: the ranked table.
        group: its columns that, with query_id, make a list.

    Returns:
        `ranked`, `truncated`, `queries` (lists); `top1_changed`: lists whose first document was
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
