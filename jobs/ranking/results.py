"""Validated rows + scores -> the ranked table and the rejects, as they were written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.config import Config, RankingConfig
from jobs.input.columns import quoted
from jobs.input.layouts import PASS_THROUGH
from jobs.input.validation import REJECTED, ValidatedInput
from jobs.output.folder import OutputFolder
from jobs.output.names import PARTITIONS, RANKED, REJECTS
from jobs.ranking.order import count_cut, count_ranked, output_names, rank_candidates
from jobs.runtime.errors import BookkeepingError
from udfs.scorers.base import OK

_ROWS_PER_FILE: Final = 100_000
_ROW: Final = "(row)"  # a table of nothing but partition columns cannot be written
Counts = dict[str, int]


@dataclass(frozen=True)
class Results:
    """The staged tables, counted from what was written.

    Attributes:
        ranked: the ranked table.
        group: its columns that, with query_id, make a list.
        scored: valid rows with a score, ranked or cut.
        counts: ranked, cut, rejected, truncated, queries (lists).
        reasons: rejected rows by reason.
        written: see `jobs.ranking.order.count_ranked`.
    """

    ranked: DataFrame
    group: tuple[str, ...]
    scored: DataFrame
    counts: Counts
    reasons: Counts
    written: Counts


def write_ranked(
    out: OutputFolder, config: Config, validated: ValidatedInput, scores: DataFrame
) -> Results:
    """Write the ranked table and the rejects into the workspace.

    Raises:
        BookkeepingError: if a row of the input is in neither, or in both.
    """
    valid, table, by = validated.counts["valid"], validated.table, config.output.partition_by
    if by:
        # A partition whose rows were all cut is empty now, and its former rows have to go.
        partitions = validated.rows.select(_passed(by)).distinct()
        out.stage(PARTITIONS, partitions.withColumn(_ROW, F.lit(1)), "parquet")
    fit = scores.where(F.col("status") == OK).drop("status")
    scored = validated.valid.join(fit, on="pair_key")
    # Spread by list before ranking: the windows need that anyway, and it names the files.
    spread = scored.repartition(config.output.partitions or _files(valid), *table.list_columns)
    ranked = out.stage(RANKED, rank_candidates(spread, validated, config.ranking))
    names = output_names(scored.columns)
    group = tuple(names[PASS_THROUGH + name] for name in table.config.group)
    written = count_ranked(ranked, group)
    cut = count_cut(scored, validated, config.ranking)
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


def all_candidates(config: Config, validated: ValidatedInput, results: Results) -> DataFrame:
    """Return every scored candidate as a ranked table, before top_k and min_score cut any."""
    if not results.counts["cut"]:
        return results.ranked
    whole = RankingConfig(tie_break=config.ranking.tie_break)
    return rank_candidates(results.scored, validated, whole)


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
        F.when(F.isnotnull("status"), F.format_string("tokens: %d", "n_tokens"))
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
