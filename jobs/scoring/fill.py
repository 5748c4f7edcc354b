"""Score what the store does not hold, and count what was written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyspark.resource import ResourceProfile
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs.input.layouts import InputTable
from jobs.input.validation import ValidatedInput
from jobs.output.filesystem import literal
from jobs.scoring.stage import distinct_keys, score_missing
from jobs.store.scores import SCHEMA, ScoreStore
from udfs.memory import Peak
from udfs.scorers.base import OK
from udfs.spec import ScorerSpec

_PERCENTILES: Final = (0.5, 0.95, 0.99)


@dataclass(frozen=True)
class FilledStore:
    """A store that holds a score of every pair.

    Attributes:
        from_store: distinct pairs whose score was known.
        attempt: folder of the scores made now; None if there were none to make.
        memory: peak memory of scoring.
    """

    from_store: int
    attempt: str | None = None
    memory: Peak | None = None


@dataclass(frozen=True)
class ScoringStats:
    """Counts and times of scoring.

    Attributes:
        from_store: distinct pairs whose score was known.
        scored: distinct pairs scored now.
        tokens: given to the model, padding not counted.
        padding: padding tokens given to the model.
        device_ms: mean, p50, p95 and p99 of the time per pair [ms]; None if nothing was scored.
        memory: peak memory of scoring; None if nothing was scored.
    """

    from_store: int
    scored: int = 0
    tokens: int = 0
    padding: int = 0
    device_ms: dict[str, float] | None = None
    memory: Peak | None = None


def fill_store(
    spark: SparkSession,
    pairs: InputTable,
    validated: ValidatedInput,
    spec: ScorerSpec,
    store: ScoreStore,
    *,
    partitions: int,
    profile: ResourceProfile | None,
) -> FilledStore:
    """Score the pairs whose key is not in the store.

    Args:
        spark: the session.
        pairs: the input, read again for its texts.
        validated: its validated rows.
        spec: the scorer.
        store: where scores are looked up and appended.
        partitions: scoring tasks; 0: from the number of pairs and task slots.
        profile: executors that the scoring stage is to have for itself.
    """
    distinct = validated.counts["distinct"]
    missing, count = store.missing(distinct_keys(validated.rows), distinct)
    if not count:
        return FilledStore(distinct)
    attempt, memory = score_missing(
        spark,
        pairs,
        missing,
        spec,
        store,
        count=count,
        everything=count == validated.counts["input"],
        partitions=partitions,
        profile=profile,
    )
    return FilledStore(distinct - count, attempt, memory)


def scoring_stats(spark: SparkSession, filled: FilledStore) -> ScoringStats:
    """Return counts and times of the scores that this run wrote."""
    if filled.attempt is None:
        return ScoringStats(filled.from_store)
    time = F.col("device_ms").cast("double")
    row = (
        spark.read.schema(SCHEMA)
        .parquet(literal(filled.attempt))
        .agg(
            F.count_if(F.col("status") == OK).alias("scored"),
            F.coalesce(F.sum("n_tokens"), F.lit(0)).alias("tokens"),
            F.coalesce(F.sum("n_padded"), F.lit(0)).alias("padding"),
            F.avg(time).alias("mean"),
            # Exact, and held as counts of the few values that rounding leaves.
            F.percentile(F.round(time, 2), list(_PERCENTILES)).alias("percentiles"),
        )
        .collect()[0]
    )
    times = None
    if row["mean"] is not None:
        named = zip(_PERCENTILES, row["percentiles"], strict=True)
        times = {"mean": row["mean"], **{f"p{share * 100:g}": value for share, value in named}}
    return ScoringStats(
        filled.from_store,
        row["scored"],
        row["tokens"],
        row["padding"],
        device_ms=times,
        memory=filled.memory,
    )
