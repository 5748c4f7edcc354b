"""Score the pairs that the store does not hold, and count what was written."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from pyspark.resource import ResourceProfile
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.config import BatchingConfig, ScoringConfig
from jobs.input.layouts import InputTable, pair_texts
from jobs.input.validation import ValidatedInput
from jobs.output.filesystem import literal
from jobs.runtime.compat import limit_batches
from jobs.runtime.errors import InterruptedRunError, RefusedError
from jobs.runtime.progress import progress_bar
from jobs.runtime.session import task_slots
from jobs.scoring.remote import share_out
from jobs.scoring.stage import scoring_profile, tasks_have_gpus
from jobs.store.scores import SCHEMA, ScoreStore
from udfs.limits import Peak
from udfs.scorers.base import OK, UNANSWERED, Usage
from udfs.spec import ScorerSpec
from udfs.udf import PeakParam, UsageParam, rerank_rows, rerank_udf, score_schema

_PERCENTILES: Final = (0.5, 0.95, 0.99)
# Pairs that a killed task has to score again, at most about; enough work to hide a task's start.
_PAIRS_PER_TASK: Final = 8192
# A GPU that scores 8,000 pairs/s takes 8 s for them, and a task's start tenths of a second.
_PAIRS_PER_GPU_TASK: Final = 65_536
# Below it, tasks get smaller only to end at about the same time on slots of unlike speed.
_FEW_PAIRS: Final = 1024
_ROUNDS: Final = 3
_WORTH_A_MODEL: Final = 256
# Of a pair's size, for sorting: what is longer than 16 MB counts as that long.
_SIZE_BITS: Final = 24


@dataclass(frozen=True)
class ScoringStats:
    """Counts and times of scoring; pairs are distinct ones."""

    from_store: int  # pairs whose score was known
    attempt: str | None = None  # folder of the scores made now; None if there were none to make
    memory: Peak | None = None  # peak memory of scoring
    usage: Usage | None = None  # of a remote model
    scored: int = 0  # pairs scored now
    tokens: int = 0  # given to the model, padding not counted
    padding: int = 0  # padding tokens given to the model
    device_ms: dict[str, float] | None = None  # mean, p50, p95 and p99 of the time per pair [ms]


def distinct_keys(checked: DataFrame) -> DataFrame:
    """Return the distinct keys of valid rows: `pair_key`."""
    return checked.where(F.isnotnull("pair_key")).select("pair_key").distinct()


def fill_store(
    spark: SparkSession,
    batching: BatchingConfig,
    scoring: ScoringConfig,
    pairs: InputTable,
    validated: ValidatedInput,
    spec: ScorerSpec,
    store: ScoreStore,
) -> ScoringStats:
    """Score the pairs whose key is not in the store, and append them to it.

    Args:
        spark: the session.
        batching: `partitions`.
        scoring: executors for scoring alone.
        pairs: the input, read again for its texts.
        validated: its validated rows.
        spec: the scorer.
        store: where scores are looked up and appended.

    Returns:
        What is known without reading the scores again: `from_store`, `attempt` and `memory`.
    """
    distinct = validated.counts["distinct"]
    missing, count = store.missing(distinct_keys(validated.rows), distinct)
    if not count:
        return ScoringStats(distinct)
    texts = pair_texts(pairs)
    if count < validated.counts["input"]:  # else the input's rows are just these keys, each once
        texts = texts.join(missing, on="pair_key", how="left_semi").dropDuplicates(["pair_key"])
    limit_batches(texts)
    on_gpu = spec.backend == "torch" and spec.device != "cpu" and tasks_have_gpus(spark, scoring)
    wanted = spec.remote is None and (on_gpu or scoring.gpus)
    profile = scoring_profile(spark, scoring) if wanted else None
    # Executors of `scoring.gpus` start with the stage, as many as its tasks ask for.
    shared = profile if not scoring.gpus else None
    slots = task_slots(spark, int(shared.taskResources["cpus"].amount) if shared else None)
    if spec.remote is not None:
        spec, texts = share_out(spec, texts, count, slots)
    else:
        most = _PAIRS_PER_GPU_TASK if on_gpu else _PAIRS_PER_TASK
        tasks = slots * _rounds(count / slots, most)
        if on_gpu:  # or a model is loaded, and a machine started, for a few pairs
            tasks = min(tasks, math.ceil(count / _WORTH_A_MODEL))
        texts = _spread(texts, batching.partitions or tasks)
    with progress_bar(spark, count, title="scoring"):
        attempt, memory, spent = _append_scores(texts, spec, profile, store)
    if spent.refused:
        raise RefusedError(spent.ended)
    if spent.ended:  # the server was given up, or has cost enough
        left = count - spark.read.schema(SCHEMA).parquet(literal(attempt)).count()
        raise InterruptedRunError(f"{spent.ended}; {spent.said()}; {left:,} of {count:,} pairs are "
                                  "left, which the same command asks for")  # fmt: skip
    return ScoringStats(distinct - count, attempt, memory, spent if spent.requests else None)


def _append_scores(
    texts: DataFrame, spec: ScorerSpec, profile: ResourceProfile | None, store: ScoreStore
) -> tuple[str, Peak, Usage]:
    """Score `texts` and append the scores; return their folder, and what it took and cost."""
    context = texts.sparkSession.sparkContext
    peaks = context.accumulator(Peak(), PeakParam())
    usage = context.accumulator(Usage(), UsageParam())
    # The shuffle ends the stage that reads; what follows it can have executors of its own. Nothing
    # may come between scoring and the write, or Spark may score rows twice.
    if profile is None:  # keys then need not travel to Python and back
        score = rerank_udf(spec, peaks, usage)("query", "doc").alias("score")
        scored = texts.select("pair_key", score).select("pair_key", "score.*")
    else:
        schema = f"pair_key string, {score_schema(spec)}"
        scored = texts.mapInPandas(rerank_rows(spec, peaks), schema, profile=profile)
    if spec.remote is not None:  # no filter moves before what is nondeterministic
        scored = scored.where(F.col("status") != UNANSWERED)
    return store.append(scored), peaks.value, usage.value


def scoring_stats(spark: SparkSession, filled: ScoringStats) -> ScoringStats:
    """Return the same with counts and times of the scores that this run wrote."""
    if filled.attempt is None:
        return filled
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
        .asDict()
    )
    mean, percentiles = row.pop("mean"), row.pop("percentiles")
    if mean is not None:
        named = zip(_PERCENTILES, percentiles, strict=True)
        row["device_ms"] = {"mean": mean, **{f"p{share * 100:g}": value for share, value in named}}
    return replace(filled, **row)


def count_passages(scored: DataFrame, lists: Sequence[Column]) -> dict[str, int]:
    """Count candidates of several passages, and lists whose first document is not the one that
    their first passages would have put there. `scored`: candidates with their scores.
    """
    first, top = (
        F.max_by("doc_id", F.struct(name, "doc_id")) for name in ("first_logit", "logit")
    )  # fmt: skip
    found = scored.groupBy(*lists).agg(
        F.count_if(F.col("n_passages") > 1).alias("long"), (first != top).alias("changed")
    )
    row = found.agg(F.sum("long"), F.count_if("changed")).collect()[0]
    return {"long": int(row[0] or 0), "top1_changed": int(row[1])}


def _spread(texts: DataFrame, tasks: int) -> DataFrame:
    """Return `pair_key`, `query` and `doc`, spread over tasks by key and sorted by length.

    A window tokenises each of its distinct queries once; spreading by query would let it hold fewer
    of them, but on TREC DL19 (4,300 pairs, 6 tasks) the queries of all pairs take 0.07 s of
    tokenising, the documents 1.0 s, scoring over 100 s, while the largest task grows from 1.08 to
    1.41 times the mean.
    """
    spread = texts.repartition(tasks, "pair_key").sortWithinPartitions(_longest_first())
    return spread.select("pair_key", "query", "doc")


def _longest_first() -> Column:
    """Order of pairs by the length of their texts, then by key, in one number, which sorts fastest.

    Bytes stand for tokens better than characters do: a Chinese character is about a token and three
    bytes, an English token four letters. And they need not be counted.
    """
    size = F.least(F.octet_length("query") + F.octet_length("doc"), F.lit(2**_SIZE_BITS - 1))
    rest = 63 - _SIZE_BITS  # a long's, but for its sign
    key = F.shiftrightunsigned(F.xxhash64("pair_key"), 64 - rest)
    return F.desc(F.shiftleft(size.cast("long"), rest) + key)


def _rounds(pairs: float, most: int) -> int:
    """Tasks of at most so many pairs that each slot gets, one after the other, for its pairs."""
    even = min(_ROUNDS, int(pairs / _FEW_PAIRS))
    return max(1, even, math.ceil(pairs / most))
