"""The steps of the rerank job, each from one written table to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.config import Config, RankingConfig
from jobs.evaluation.distributions import distributions
from jobs.evaluation.metrics import RunError, first_stage_order
from jobs.input.layouts import Pairs
from jobs.input.validation import REJECTED, VALID, Tally, checked_alone, compared, count_checked
from jobs.output.folder import OutputFolder
from jobs.ranking.order import count_cut, count_ranked, ranked
from jobs.runtime.errors import BookkeepingError
from jobs.scoring.resources import scoring_profile
from jobs.scoring.stage import missing_keys, score_missing
from jobs.store import SCHEMA, ScoreStore
from udfs.memory import Peak
from udfs.scores import OK
from udfs.spec import ScorerSpec

_ROWS_PER_FILE: Final = 100_000
_MILLISECONDS: Final = 0.01  # to which times per pair are rounded, to be counted
Counts = dict[str, int]


@dataclass(frozen=True)
class Checked:
    """Input rows without their texts, and how many there are of each kind."""

    rows: DataFrame
    tally: Tally

    @property
    def valid(self) -> DataFrame:
        """Rows to be ranked."""
        return self.rows.where(F.col("status") == VALID).drop("status", "reason", "detail")

    @property
    def counts(self) -> Counts:
        """input, collapsed, rejected, valid, distinct."""
        kinds = {"valid": self.tally.valid, "collapsed": self.tally.collapsed,
                 "rejected": self.tally.rejected}  # fmt: skip
        return {"input": sum(kinds.values()), **kinds, "distinct": self.tally.distinct}


@dataclass(frozen=True)
class Filled:
    """A store that holds every pair.

    Attributes:
        from_store: distinct pairs whose score was known.
        attempt: folder of the scores made now; None if there were none to make.
        memory: the most that scoring took.
    """

    from_store: int
    attempt: str | None = None
    memory: Peak | None = None


@dataclass(frozen=True)
class Scored:
    """What scoring did.

    Attributes:
        from_store: distinct pairs whose score was known.
        scored: distinct pairs scored now.
        tokens: given to the model, padding not counted.
        padding: padding tokens given to the model.
        device_ms: mean, p50, p95 and p99 of the time per pair; None if nothing was scored.
        memory: the most that scoring took; None if nothing was scored.
    """

    from_store: int
    scored: int = 0
    tokens: int = 0
    padding: int = 0
    device_ms: dict[str, float] | None = None
    memory: Peak | None = None


def check(out: OutputFolder, pairs: Pairs) -> Checked:
    """Write the checked rows and count them."""
    return _compared(_count(out.stage("checked_alone", checked_alone(pairs), "parquet")), out)


def count_only(pairs: Pairs) -> Checked:
    """The same without a write, for `--dry-run`."""
    return _compared(_count(checked_alone(pairs)))


def _count(rows: DataFrame) -> Checked:
    return Checked(rows, count_checked(rows))


def _compared(done: Checked, out: OutputFolder | None = None) -> Checked:
    """Compare rows with equal ids, which takes a shuffle and a sort, if there may be any."""
    if not done.tally.may_have_twins:
        return done
    rows = compared(done.rows)
    return _count(out.stage("checked", rows, "parquet") if out else rows)


def fill_store(
    spark: SparkSession,
    config: Config,
    pairs: Pairs,
    done: Checked,
    spec: ScorerSpec,
    store: ScoreStore,
) -> Filled:
    """Score what the store does not hold."""
    missing = missing_keys(done.rows, store)
    count = done.counts["distinct"] if store.is_empty() else missing.count()
    known = done.counts["distinct"] - count
    if not count:
        return Filled(known)
    attempt, memory = score_missing(
        spark,
        pairs,
        missing,
        spec,
        store,
        count=count,
        everything=count == done.counts["input"],
        partitions=config.batching.partitions,
        profile=scoring_profile(config.scoring),
    )
    return Filled(known, attempt, memory)


def what_was_scored(spark: SparkSession, filled: Filled) -> Scored:
    """Count and measure the scores of this run as they were written."""
    if filled.attempt is None:
        return Scored(filled.from_store)
    written = spark.read.schema(SCHEMA).parquet(filled.attempt)
    found, totals = distributions(
        written,
        {"device_ms": F.col("device_ms")},
        {
            "scored": (F.col("status") == OK).cast("int"),
            "tokens": F.col("n_tokens"),
            "padding": F.col("n_padded"),
        },
        step=_MILLISECONDS,
    )
    measured = found["device_ms"]
    times = measured.summary(0.5, 0.95, 0.99) if measured.size else None
    return Scored(filled.from_store, device_ms=times, memory=filled.memory, **totals)


@dataclass(frozen=True)
class Results:
    """The staged tables, counted from what was written."""

    ranked: DataFrame
    counts: Counts
    reasons: Counts
    written: Counts


def rank(out: OutputFolder, config: RankingConfig, partitions: int, has_label: bool, done: Checked,
         store: ScoreStore) -> Results:  # fmt: skip
    """Write the ranked table and the rejects into the workspace.

    Raises:
        BookkeepingError: if a row of the input is in neither, or in both.
    """
    scores = store.read()
    scored = _scored(done, scores)
    files = partitions or math.ceil(max(1, done.counts["valid"]) / _ROWS_PER_FILE)
    # Spread by query before ranking: the windows need that anyway, and it names the files.
    spread = scored.repartition(files, "query_id")
    table = ranked(spread, config, label=has_label, placed=not done.tally.unplaced)
    written = out.stage("ranked", table)
    written_counts = count_ranked(written)
    kept, cut = written_counts["ranked"], count_cut(scored, config)
    lost = done.counts["valid"] - kept - cut
    rejects = out.stage("rejects", _rejects(done, scores if lost else None))
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
    config: RankingConfig, done: Checked, store: ScoreStore, results: Results
) -> DataFrame:
    """Every scored candidate, before top_k and min_score cut any: what is to be measured.

    Where only some candidates have a first-stage score or rank, there is no first-stage order to
    measure, and both columns are null.
    """
    whole = results.ranked
    if results.counts["cut"]:
        everything = RankingConfig(tie_break=config.tie_break)
        whole = ranked(_scored(done, store.read()), everything, label="label" in done.rows.columns)
    try:
        first_stage_order(whole)
    except RunError:
        nothing = F.lit(None).cast("double")
        whole = whole.withColumns({"retrieval_score": nothing, "retrieval_rank": nothing})
    return whole


def _scored(done: Checked, scores: DataFrame) -> DataFrame:
    """Valid rows with their scores."""
    return done.valid.join(scores.where(F.col("status") == OK).drop("status"), on="pair_key")


def _rejects(done: Checked, scores: DataFrame | None) -> DataFrame:
    """query_id, doc_id, reason, detail: rows that failed the checks, then pairs without a score.

    `scores` is None if every valid pair has one.
    """
    columns = ("query_id", "doc_id", "reason", "detail")
    early = done.rows.where(F.col("status") == REJECTED).select(*columns)
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
    )
    return early.unionByName(late).repartition(files)


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
