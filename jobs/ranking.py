"""Validated rows + scores -> the ranked table and the rejects.

`write_ranked` writes both tables and holds their rows against those of the input; `all_candidates`
is the ranking before `top_k` and `min_score`, which an evaluation measures.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.config import OutputConfig, RankingConfig
from jobs.fuse.fusion import FUSED, fusion_of, with_fused_score
from jobs.input.columns import quoted
from jobs.input.layouts import PASS_THROUGH
from jobs.input.readers import INTERNAL_PREFIX
from jobs.input.selection import with_published
from jobs.input.validation import REJECTED, ValidatedInput, content_hash
from jobs.output.folder import OutputFolder
from jobs.output.names import PARTITIONS, RANKED, REJECTS
from jobs.runtime.errors import BookkeepingError
from udfs.scorers.base import OK

COLUMNS: Final = (
    "query_id", "doc_id", "rank", "score", "probability", "retrieval_rank", "retrieval_score",
    "rank_change", "n_tokens", "truncated",
)  # fmt: skip
_CONTENT: Final = f"{INTERNAL_PREFIX}content"
_ROWS_PER_FILE: Final = 100_000
_ROW: Final = "(row)"  # a table of nothing but partition columns cannot be written
Counts = dict[str, int]
Grade = Callable[[DataFrame], DataFrame]


@dataclass(frozen=True)
class Results:
    """The staged tables, counted from what was written.

    Attributes:
        ranked: the ranked table.
        group: its columns that, with query_id, make a list.
        scored: valid rows with a score, ranked or cut.
        counts: ranked, cut, rejected, truncated, queries (lists).
        reasons: rejected rows by reason.
        written: see `count_ranked`.
    """

    ranked: DataFrame
    group: tuple[str, ...]
    scored: DataFrame
    counts: Counts
    reasons: Counts
    written: Counts


def write_ranked(
    out: OutputFolder,
    ranking: RankingConfig,
    output: OutputConfig,
    validated: ValidatedInput,
    scores: DataFrame,
    grade: Grade | None = None,
) -> Results:
    """Write the ranked table and the rejects into the workspace.

    `grade` adds a column of grades to the ranked table.

    Raises:
        BookkeepingError: if a row of the input is in neither, or in both.
    """
    valid, table, by = validated.counts["valid"], validated.table, output.partition_by
    if by:
        # A partition whose rows were all cut is empty now, and its former rows have to go.
        partitions = validated.rows.select(_passed(by)).distinct()
        partitions = with_published(partitions, out.published_partitions(), table.config)
        out.stage(PARTITIONS, partitions.withColumn(_ROW, F.lit(1)), "parquet")
    scored = with_scores(validated, scores)
    # Spread by list before ranking: the windows need that anyway, and it names the files.
    spread = scored.repartition(output.partitions or _files(valid), *table.list_columns)
    rows = rank_candidates(spread, validated, ranking)
    ranked = out.stage(RANKED, grade(rows) if grade else rows)
    names = output_names(scored.columns, ranking)
    group = tuple(names[PASS_THROUGH + name] for name in table.config.group)
    written = count_ranked(ranked, group)
    cut = count_cut(scored, validated, ranking)
    lost = valid - written["ranked"] - cut
    rejects = out.stage(REJECTS, _rejects(validated, scores if lost else None, by))
    by_reason = rejects.groupBy("reason").count().orderBy(F.desc("count"), "reason").collect()
    reasons = {str(reason): int(number) for reason, number in by_reason}
    placed = {"ranked": written["ranked"], "cut": cut, "rejected": sum(reasons.values()),
              "collapsed": validated.counts["collapsed"]}  # fmt: skip
    if (total := sum(placed.values())) != (given := validated.counts["input"]):
        parts = " + ".join(f"{value} {key}" for key, value in placed.items())
        raise BookkeepingError(
            f"{given} rows came in, but {parts} = {total}; nothing was replaced in the output "
            "folder. Please report this"
        )
    counts = {key: placed[key] for key in ("ranked", "cut", "rejected")}
    counts |= {key: written[key] for key in ("truncated", "queries")}
    return Results(ranked, group, scored, counts, reasons, written)


def with_scores(validated: ValidatedInput, scores: DataFrame) -> DataFrame:
    """Return the valid rows that have a score, with `logit`, `n_tokens` and `truncated`."""
    fit = scores.where(F.col("status") == OK).drop("status")
    return validated.valid.join(fit, on="pair_key")


def all_candidates(config: RankingConfig, validated: ValidatedInput, results: Results) -> DataFrame:
    """Return every scored candidate as a ranked table, before top_k and min_score cut any.

    Its `score` is what ranks it.
    """
    ranked, whole = results.ranked, config.model_copy(update={"top_k": None, "min_score": None})
    if results.counts["cut"]:
        ranked = rank_candidates(results.scored, validated, whole)
    return ranked if config.fusion == "none" else ranked.withColumn("score", F.col(FUSED))


def rank_candidates(rows: DataFrame, validated: ValidatedInput, config: RankingConfig) -> DataFrame:
    """Order the candidates of every list by their raw float32 logits, or by `fused_score`.

    The order is total: score descending, then doc_id (bytes, descending as in trec_eval unless set
    otherwise), then, for impressions of one pair, first-stage rank ascending, first-stage score
    descending and a hash of all other columns. Where the input gives a first-stage score but no
    rank, the rank is derived in the same way. `rank_change` is positive for a document that moved
    up.

    `rows` are `validated.valid` with `logit`, `n_tokens` and `truncated`.

    Returns:
        `COLUMNS`, with fused_score, n_passages and best_passage where there are any, label if
        given, then the columns passed through; `input_NAME` where a passed column has the name of a
        column here. Partitions that hold whole lists keep them one after the other, each in the
        order of its ranks: the sort that ranking needs leaves them so.
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
    fused = config.fusion != "none"
    if fused:
        table = validated.table
        scores, weights = fusion_of(table, output_names(rows.columns, config), config)
        rows = with_fused_score(rows, scores, weights, config, table.list_columns, tie)
    if config.min_score is not None:
        rows = rows.where(F.col("logit") >= config.min_score)
    # Last, as what is sorted last stays sorted.
    by_score = candidate_list.orderBy(F.desc(FUSED if fused else "logit"), *tie)
    rows = rows.withColumn("rank", F.row_number().over(by_score))
    if config.top_k is not None:
        rows = rows.where(F.col("rank") <= config.top_k)
    return _ranked_columns(rows, validated, config)


def _ranked_columns(rows: DataFrame, validated: ValidatedInput, config: RankingConfig) -> DataFrame:
    """Return the columns of the ranked table, those that follow from others computed."""
    # In double precision: in half precision a sigmoid is 1.0 from a logit of 9 on.
    probability = F.lit(1.0) / (F.lit(1.0) + F.exp(-F.col("logit").cast("double")))
    made = {
        "score": F.col("logit"),
        "probability": probability,
        "rank_change": F.col("retrieval_rank") - F.col("rank"),
    }
    if "n_passages" in rows.columns:
        start, end = F.col("passage_start").alias("start"), F.col("passage_end").alias("end")
        made["best_passage"] = F.struct(start, end)
    return rows.withColumns(made).select(
        *_columns(config, rows.columns),
        *(["label"] if "label" in validated.table.has else []),
        *(quoted(name).alias(new) for name, new in output_names(rows.columns, config).items()),
    )


def _columns(config: RankingConfig, columns: Sequence[str]) -> list[str]:
    """Return the columns of the ranked table that are made of scores with these `columns`."""
    fused = [FUSED] if config.fusion != "none" else []
    passages = ["n_passages", "best_passage"] if "n_passages" in columns else []
    at = COLUMNS.index("probability")
    return [*COLUMNS[:at], *fused, *COLUMNS[at:], *passages]


def output_names(columns: Sequence[str], config: RankingConfig) -> dict[str, str]:
    """Return the name in the ranked table of every column passed through, by `in.NAME`."""
    taken, names = {*_columns(config, columns), "label"}, {}
    for column in columns:
        if column.startswith(PASS_THROUGH):
            name = column.removeprefix(PASS_THROUGH)
            while name in taken:
                name = f"input_{name}"
            taken.add(name)
            names[column] = name
    return names


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
    not first before, of `top1_compared`, those whose first document has a first-stage rank.
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


def _rejects(validated: ValidatedInput, scores: DataFrame | None, by: Sequence[str]) -> DataFrame:
    """Rows that failed the checks, then pairs without a score; None: every valid pair has one."""
    columns = ("query_id", "doc_id", "reason", "detail")
    early = validated.rows.where(F.col("status") == REJECTED).select(*columns, *_passed(by))
    files = _files(validated.counts["rejected"])
    if scores is None:
        return early.repartition(files)
    unscored = validated.valid.join(scores, on="pair_key", how="left").where(
        F.isnull("status") | (F.col("status") != OK)
    )
    late = unscored.select(
        "query_id",
        "doc_id",
        F.when(F.isnull("status"), "input_changed")
        .when(F.col("status") == "nonfinite", "nonfinite_score")
        .otherwise(F.col("status"))
        .alias("reason"),
        F.when(F.isnotnull("n_tokens"), F.format_string("tokens: %d", "n_tokens"))
        .when(F.isnotnull("status"), "tokens: unknown")
        .otherwise("the text was no longer there when it was read to be scored")
        .alias("detail"),
        *_passed(by),
    )
    return early.unionByName(late).repartition(files)


def _passed(names: Sequence[str]) -> list[Column]:
    """Columns passed through, under their own names."""
    return [quoted(PASS_THROUGH + name).alias(name) for name in names]


def _files(rows: int) -> int:
    """Files for so many rows."""
    return math.ceil(max(1, rows) / _ROWS_PER_FILE)
