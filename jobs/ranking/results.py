"""Validated rows + scores -> the ranked table and the rejects, as they were written."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.config import OutputConfig, RankingConfig
from jobs.input.columns import quoted
from jobs.input.duplicates import REJECTED
from jobs.input.layouts import PASS_THROUGH
from jobs.input.validation import ValidatedInput
from jobs.output.folder import OutputFolder
from jobs.output.names import PARTITIONS, RANKED, REJECTS
from jobs.ranking.order import (
    Candidates,
    count_cut,
    count_ranked,
    output_names,
    rank_candidates,
)
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
        counts: ranked, cut, rejected, truncated, queries (lists).
        reasons: rejected rows by reason.
        written: see `jobs.ranking.order.count_ranked`.
    """

    ranked: DataFrame
    group: tuple[str, ...]
    counts: Counts
    reasons: Counts
    written: Counts


def with_scores(validated: ValidatedInput, scores: DataFrame, has: Collection[str]) -> Candidates:
    """Join valid rows with their scores. `has`: columns that the input gives."""
    rows = validated.valid.join(scores.where(F.col("status") == OK).drop("status"), on="pair_key")
    return Candidates(
        rows, validated.group, "label" in has, validated.tally.without_rank > 0,
        validated.tally.repeated,
    )  # fmt: skip


def write_ranked(
    out: OutputFolder,
    config: RankingConfig,
    output: OutputConfig,
    validated: ValidatedInput,
    candidates: Candidates,
    scores: DataFrame,
) -> Results:
    """Write the ranked table and the rejects into the workspace.

    Args:
        out: the output folder.
        config: of the ranking.
        output: `partitions` and `partition_by`.
        validated: the rows of the input.
        candidates: those with a score, see `with_scores`.
        scores: of the score store.

    Raises:
        BookkeepingError: if a row of the input is in neither, or in both.
    """
    by = output.partition_by
    if by:
        # A partition whose rows were all cut is empty now, and its former rows have to go.
        partitions = validated.rows.select(_passed(by)).distinct()
        out.stage(PARTITIONS, partitions.withColumn(_ROW, F.lit(1)), "parquet")
    files = output.partitions or math.ceil(max(1, validated.counts["valid"]) / _ROWS_PER_FILE)
    # Spread by list before ranking: the windows need that anyway, and it names the files.
    spread = candidates.rows.repartition(files, *candidates.list_columns)
    written = out.stage(RANKED, rank_candidates(replace(candidates, rows=spread), config))
    names = output_names(candidates.rows.columns)
    group = tuple(names[name] for name in candidates.group)
    written_counts = count_ranked(written, group)
    kept, cut = written_counts["ranked"], count_cut(candidates, config)
    lost = validated.counts["valid"] - kept - cut
    rejects = out.stage(REJECTS, _rejects(validated, scores if lost else None, by))
    reasons = _by(rejects, "reason")
    counts = {
        "ranked": kept,
        "cut": cut,
        "rejected": sum(reasons.values()),
        "truncated": written_counts["truncated"],
        "queries": written_counts["queries"],
    }
    _balance({**validated.counts, **counts})
    return Results(written, group, counts, reasons, written_counts)


def all_candidates(config: RankingConfig, candidates: Candidates, results: Results) -> DataFrame:
    """Return every scored candidate as a ranked table, before top_k and min_score cut any."""
    if not results.counts["cut"]:
        return results.ranked
    return rank_candidates(candidates, RankingConfig(tie_break=config.tie_break))


def _rejects(validated: ValidatedInput, scores: DataFrame | None, by: Sequence[str]) -> DataFrame:
    """Rows that failed the checks, then pairs without a score.

    `scores` is None if every valid pair has one.
    """
    columns = ("query_id", "doc_id", "reason", "detail")
    early = validated.rows.where(F.col("status") == REJECTED).select(*columns, *_passed(by))
    files = math.ceil(max(1, validated.counts["rejected"]) / _ROWS_PER_FILE)
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


def _by(rows: DataFrame, column: str) -> Counts:
    """Rows per value of a column, the most frequent first."""
    found = rows.groupBy(column).count().collect()
    return {str(r[0]): int(r[1]) for r in sorted(found, key=lambda r: (-r[1], str(r[0])))}


def _balance(counts: Mapping[str, int]) -> None:
    """Every input row is in exactly one place."""
    placed = {key: counts[key] for key in ("ranked", "cut", "rejected", "collapsed")}
    if sum(placed.values()) != counts["input"]:
        parts = " + ".join(f"{value} {key}" for key, value in placed.items())
        raise BookkeepingError(
            f"{counts['input']} rows came in, but {parts} = {sum(placed.values())}; nothing was "
            "replaced in the output folder. Please report this"
        )
