"""The pairs that have no score yet -> the score store. The only GPU work of a job."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Final

from pyspark.resource import ResourceProfile
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.config import BatchingConfig, ModelConfig, ScoringConfig
from jobs.input.layouts import InputTable, pair_texts
from jobs.runtime.errors import RefusedError
from jobs.runtime.progress import progress_bar
from jobs.runtime.session import is_local, task_slots
from jobs.scoring.models import EMBEDDED, pack
from jobs.scoring.onnx_export import copied_files
from jobs.store.scores import ScoreStore
from udfs.checkpoint import Checkpoint, scoring_files
from udfs.devices import best_precision, has_gpu
from udfs.forward.base import ModelError
from udfs.forward.transformers import check_model
from udfs.memory import Peak
from udfs.spec import Precision, ScorerSpec
from udfs.udf import ROWS_SCHEMA, PeakParam, rerank_rows, rerank_udf

_ARCHIVE: Final = "model"
# Pairs that a killed task has to score again, at most about; enough work to hide a task's start.
_PAIRS_PER_TASK: Final = 8192
# Below it, tasks get smaller only to end at about the same time on slots of unlike speed.
_FEW_PAIRS: Final = 1024
_ROUNDS: Final = 3
# Of a pair's size, for sorting: what is longer than 16 MB counts as that long.
_SIZE_BITS: Final = 24


def make_spec(
    model: ModelConfig, batching: BatchingConfig, checkpoint: Checkpoint, precision: Precision
) -> ScorerSpec:
    """Return what executors have to know."""
    return ScorerSpec(
        model_path=str(checkpoint.path),
        model_digest=checkpoint.digest,
        max_length=model.max_length,
        truncation=model.truncation,
        precision=precision,
        attention=model.attention,
        backend=model.backend,
        runtime=checkpoint.runtime,
        trust_remote_code=model.trust_remote_code,
        device=model.device,
        max_tokens=batching.max_tokens,
        max_pairs=batching.max_pairs,
        window=batching.window,
        batch_timeout=batching.timeout,
    )


def refuse_unscorable(
    model: ModelConfig, batching: BatchingConfig, checkpoint: Checkpoint | None
) -> None:
    """Refuse an architecture that cannot score, found out with two pairs and without weights.

    Raises:
        RefusedError: naming what is wrong and the remedy.
    """
    # The embedded model is tested with the project, and torch takes seconds to import.
    if model.backend != "torch" or model.name == EMBEDDED or checkpoint is None:
        return
    try:
        check_model(checkpoint.path, make_spec(model, batching, checkpoint, "fp32"))
    except ModelError as error:
        reason = " ".join(str(error).split())
        if "padding token" in reason:
            reason += "; or set batching.max_pairs=1, which pads nothing"
        raise RefusedError(reason) from None


def resolve_precision(model: ModelConfig, *, gpu: bool) -> Precision:
    """Return the precision as configured; decide here, once for all executors, what `auto` means.

    For torch it is fp16 on GPUs; else bf16 where the CPU of this machine, the driver's, has the
    instructions, and fp32 where it has not. Executors that differ score in the same precision:
    bf16 on a CPU without the instructions is slow, but right. For onnxruntime it is fp32: int8
    moves a logit by up to half a unit, which is for the user to choose.

    Args:
        model: precision, backend and device as configured.
        gpu: whether there are GPUs to score on, see `tasks_have_gpus`.
    """
    if model.precision != "auto":
        return model.precision
    if model.backend != "torch":
        return "fp32"
    return best_precision(gpu=model.device == "cuda" or (gpu and model.device == "auto"))


def tasks_have_gpus(spark: SparkSession, scoring: ScoringConfig) -> bool:
    """Return whether scoring tasks have GPUs, without starting a job.

    They have if Spark schedules GPUs for them, or if they run on this machine and it has one.
    """
    if is_local(str(spark.sparkContext.master)):
        return has_gpu()
    settings = spark.sparkContext.getConf()
    return bool(scoring.gpus) or float(settings.get("spark.task.resource.gpu.amount", "0")) > 0


def ship_model(
    spark: SparkSession, checkpoint: Checkpoint, spec: ScorerSpec, ship: str
) -> ScorerSpec:
    """Return the spec with the model where executors find it: shared, or sent by Spark."""
    if ship == "path":
        return spec
    name = f"{_ARCHIVE}-{checkpoint.digest[:16]}-{spec.backend}"
    folder = checkpoint.path
    files = copied_files(folder) if checkpoint.runtime else scoring_files(folder)
    spark.sparkContext.addArchive(f"{pack(folder, files)}#{name}")
    return replace(spec, model_path=f"archive:{name}")


def distinct_keys(checked: DataFrame) -> DataFrame:
    """Return the distinct keys of valid rows: `pair_key`."""
    return checked.where(F.isnotnull("pair_key")).select("pair_key").distinct()


def score_missing(
    spark: SparkSession,
    pairs: InputTable,
    missing: DataFrame,
    spec: ScorerSpec,
    store: ScoreStore,
    *,
    count: int,
    everything: bool,
    partitions: int,
    profile: ResourceProfile | None = None,
) -> tuple[str, Peak]:
    """Score pairs and append them to the store.

    Pairs are spread by key and sorted by length. A window tokenises each of its distinct queries
    once; spreading by query would let it hold fewer of them, but on TREC DL19 (4,300 pairs, 6
    tasks) the queries of all pairs take 0.07 s of tokenising, the documents 1.0 s, scoring over
    100 s, while the largest task grows from 1.08 to 1.41 times the mean.

    Args:
        spark: the session.
        pairs: the input, read again for its texts.
        missing: `pair_key` of what has to be scored.
        spec: the scorer.
        store: where scores go.
        count: number of missing keys.
        everything: whether the input's rows are just the missing keys, each once; then there is
            nothing to select and nothing to deduplicate.
        partitions: scoring tasks; 0: from the number of pairs and task slots.
        profile: executors that the scoring stage is to have for itself.

    Returns:
        The folder of this attempt, and the most memory that scoring took.
    """
    texts = pair_texts(pairs)
    if not everything:
        texts = texts.join(missing, on="pair_key", how="left_semi").dropDuplicates(["pair_key"])
    slots = task_slots(spark)
    tasks = partitions or slots * _rounds(count / slots)
    # Nothing may come between the UDF and the write, or Spark may score rows twice.
    spread = texts.repartition(tasks, "pair_key").sortWithinPartitions(_longest_first())
    peaks = spark.sparkContext.accumulator(Peak(), PeakParam())
    if profile is None:
        score = rerank_udf(spec, peaks)("query", "doc").alias("score")
        scored = spread.select("pair_key", score).select("pair_key", "score.*")
    else:
        # The shuffle above ends the stage that reads; what follows it is a stage of this profile.
        texts = spread.select("pair_key", "query", "doc")
        scored = texts.mapInPandas(rerank_rows(spec, peaks), ROWS_SCHEMA, profile=profile)
    with progress_bar(spark, count, title="scoring"):
        attempt = store.append(scored)
    return attempt, peaks.value


def _longest_first() -> Column:
    """Order of pairs by the length of their texts, then by key, in one number, which sorts fastest.

    Bytes stand for tokens better than characters do: a Chinese character is about a token and three
    bytes, an English token four letters. And they need not be counted.
    """
    size = F.least(F.octet_length("query") + F.octet_length("doc"), F.lit(2**_SIZE_BITS - 1))
    rest = 63 - _SIZE_BITS  # a long's, but for its sign
    key = F.shiftrightunsigned(F.xxhash64("pair_key"), 64 - rest)
    return F.desc(F.shiftleft(size.cast("long"), rest) + key)


def _rounds(pairs: float) -> int:
    """Tasks that each slot gets, one after the other, for so many pairs a slot."""
    even = min(_ROUNDS, int(pairs / _FEW_PAIRS))
    return max(1, even, math.ceil(pairs / _PAIRS_PER_TASK))
