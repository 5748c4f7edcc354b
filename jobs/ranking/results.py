"""Validated rows + scores -> the ranked table and the rejects, as they were written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.config import OutputConfig, RankingConfig
from jobs.input.layouts import PASS_THROUGH
from jobs.input.readers import quoted
from jobs.input.validation import REJECTED, ValidatedInput
from jobs.output.folder import OutputFolder
from jobs.output.names import PARTITIONS, RANKED, REJECTS
from jobs.ranking.order import count_cut, count_ranked, ranked
from jobs.runtime.errors import BookkeepingError
from jobs.store import ScoreStore
from udfs.scorers.base import OK

_ROWS_PER_FILE: Final = 100_000
_ROW: Final = "(row)"  # a table of nothing but partition columns cannot be written
Counts = dict[str, int]


@dataclass(frozen=True)
class Results:
    """The staged tables, counted from what was written."""

    ranked: DataFrame
    counts: Counts
    reasons: Counts
    written: Counts


def write_ranked(
    out: OutputFolder,
    config: RankingConfig,
    output: OutputConfig,
    has_label: bool,
    done: ValidatedInput,
    store: ScoreStore,
) -> Results:
    """Write the ranked table and the rejects into the workspace.

    Args:
        out: the output folder.
        config: what is cut, and how ties are broken.
        output: `partitions` and `partition_by`.
        has_label: whether the input has labels.
        done: the validated input.
        store: the scores.

    Raises:
        BookkeepingError: if a row of the input is in neither, or in both.
    """
    scores = store.read()
    scored = _scored(done, scores)
    by = output.partition_by
    if by:
        # A partition whose rows were all cut is empty now, and its former rows have to go.
        found = done.rows.select(_passed(by)).distinct()
        out.stage(PARTITIONS, found.withColumn(_ROW, F.lit(1)), "parquet")
    files = output.partitions or math.ceil(max(1, done.counts["valid"]) / _ROWS_PER_FILE)
    # Spread by query before ranking: the windows need that anyway, and it names the files.
    spread = scored.repartition(files, "query_id")
    table = ranked(spread, config, label=has_label, placed=not done.tally.without_rank)
    written = out.stage(RANKED, table)
    written_counts = count_ranked(written)
    kept, cut = written_counts["ranked"], count_cut(scored, config)
    lost = done.counts["valid"] - kept - cut
    rejects = out.stage(REJECTS, _rejects(done, scores if lost else None, by))
    reasons = _by(rejects, "reason")
    counts = {
        "ranked": kept,
        "cut": cut,
        "rejected": sum(reasons.values()),
        "truncated": written_counts["truncated"],
        "queries": written_counts["queries"],
    }
    _balance({**done.counts, **counts})
    return Results(written, counts, reasons, written_counts)


def all_candidates(
    config: RankingConfig, done: ValidatedInput, store: ScoreStore, results: Results
) -> DataFrame:
    """Return every scored candidate, before top_k and min_score cut any."""
    if not results.counts["cut"]:
        return results.ranked
    everything = RankingConfig(tie_break=config.tie_break)
    return ranked(_scored(done, store.read()), everything, label="label" in done.rows.columns)


def _scored(done: ValidatedInput, scores: DataFrame) -> DataFrame:
    """Valid rows with their scores."""
    return done.valid.join(scores.where(F.col("status") == OK).drop("status"), on="pair_key")


def _rejects(done: ValidatedInput, scores: DataFrame | None, by: Sequence[str]) -> DataFrame:
    """Rows that failed the checks, then pairs without a score.

    `scores` is None if every valid pair has one.
    """
    columns = ("query_id", "doc_id", "reason", "detail")
    early = done.rows.where(F.col("status") == REJECTED).select(*columns, *_passed(by))
    files = math.ceil(max(1, done.counts["rejected"]) / _ROWS_PER_FILE)
    if scores is None:
        return early.repartition(files)
    unscored = done.valid.join(scores, on="pair_key", how="left").where(
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
