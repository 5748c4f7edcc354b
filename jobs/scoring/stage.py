"""The pairs that have no score yet -> the score store. The only GPU work of a job."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Event, Thread
from typing import Final, Literal

from pyspark.resource import ResourceProfile
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.config import Config, ModelConfig
from jobs.input.layouts import InputTable
from jobs.input.validation import pair_texts
from jobs.runtime.progress import ProgressBar
from jobs.runtime.session import is_local, task_cores, task_slots
from jobs.scoring.models import pack
from jobs.scoring.onnx_export import copied_files
from jobs.store import ScoreStore
from udfs.checkpoint import Checkpoint, scoring_files
from udfs.devices import common_precision
from udfs.memory import Peak
from udfs.shared import can_share, wish
from udfs.spec import Precision, ScorerSpec
from udfs.tasks import PeakParam, Probed, probe_devices
from udfs.udf import ROWS_SCHEMA, rerank_rows, rerank_udf

_ARCHIVE: Final = "model"
# What a killed task has to score again, about; also enough work to hide a task's start.
_PAIRS_PER_TASK: Final = 8192
# Below it, tasks get smaller only to end at about the same time on slots of unlike speed.
_FEW_PAIRS: Final = 1024
_ROUNDS: Final = 3
# Of a pair's size, for sorting: what is longer than 16 MB counts as that long.
_SIZE_BITS: Final = 24


def make_spec(config: Config, checkpoint: Checkpoint) -> ScorerSpec:
    """What executors have to know.

    `precision` and `doc_template` are to be filled in: the one is the executors' to tell, the
    other the input's.
    """
    model, batching = config.model, config.batching
    return ScorerSpec(
        model_path=str(checkpoint.path),
        model_digest=checkpoint.digest,
        max_length=model.max_length,
        truncation=model.truncation,
        attention=model.attention,
        backend=model.backend,
        runtime=checkpoint.runtime,
        query_instruction=model.query_instruction,
        doc_instruction=model.doc_instruction,
        trust_remote_code=model.trust_remote_code,
        device=model.device,
        max_tokens=batching.max_tokens,
        max_pairs=batching.max_pairs,
        window=batching.window,
        batch_timeout=batching.timeout,
    )


def wanted_precision(config: ModelConfig) -> Precision | Literal["auto"]:
    """The precision as configured; `auto` is for torch, where the devices decide.

    For onnxruntime it means fp32: int8 moves a logit by up to half a unit, which is
    for the user to choose. The stub has none.
    """
    if config.backend != "torch" and config.precision == "auto":
        return "fp32"
    return config.precision


def to_share(spark: SparkSession, config: Config, checkpoint: Checkpoint) -> str | None:
    """What a daemon is to load for all its workers; None: each loads for itself.

    Raises:
        ValueError: if no scorer can be made of the configuration.
    """
    draft = make_spec(config, checkpoint)
    by_path = config.model.ship == "path" and not config.scoring.gpus
    if config.dry_run or not by_path or not can_share(draft, task_cores(spark)):
        return None
    wanted = wanted_precision(config.model)
    return wish(draft, None if wanted == "auto" else wanted)


@dataclass(frozen=True)
class Start:
    """What probing found.

    Attributes:
        precision: number type that scores will have.
        seconds: the longest that a worker took for `model_load` and `first_score`; None where no
            worker was asked to have a model ahead of scoring.
    """

    precision: Precision
    seconds: dict[str, float | None]


@contextmanager
def probing(
    spark: SparkSession,
    draft: ScorerSpec,
    wanted: Precision | Literal["auto"],
    profile: ResourceProfile | None = None,
    *,
    load: bool,
    after: Thread | None = None,
) -> Iterator[Future[Start]]:
    """Find out, beside the body of the `with`, the number type that scores will have.

    Starting workers and importing torch in them takes seconds, in which the driver has other
    things to do. The workers are used again for scoring.

    Args:
        spark: the session.
        draft: the scorer, but for its precision and how texts are made.
        wanted: a precision, or `auto`: what all executors are best at.
        profile: what tasks that score ask for, if it is not what others do.
        load: whether workers load the model, too.
        after: what to wait for before any worker is asked.
    """
    context, group = spark.sparkContext, f"probing-{uuid.uuid4().hex}"
    given_up = Event()

    def probe() -> Start:
        if wanted != "auto" and not load:
            return Start(wanted, _start_up([]))
        while after and after.is_alive() and not given_up.is_set():
            after.join(0.2)
        if given_up.is_set():
            raise CancelledError
        context.setJobGroup(group, "probing devices", interruptOnCancel=True)
        alike = profile is not None or is_local(str(context.master))
        slots = 1 if alike else task_slots(spark)
        given = None if wanted == "auto" else wanted
        # An RDD, as it needs nothing of the SQL engine, which the body is just starting.
        tasks = context.parallelize(range(slots), slots)
        if profile is not None:
            tasks = tasks.withResources(profile)
        found = tasks.mapPartitions(probe_devices(draft, given, load=load)).collect()
        precision = given or common_precision(probed.device for probed in found)
        return Start(precision, _start_up(found))

    with ThreadPoolExecutor(1) as beside:
        try:
            yield beside.submit(probe)
        except BaseException:
            given_up.set()
            context.cancelJobGroup(group)
            raise


def _start_up(found: Sequence[Probed]) -> dict[str, float | None]:
    loads = [probed.model_load for probed in found if probed.model_load is not None]
    firsts = [probed.first_score for probed in found if probed.first_score is not None]
    longest = {"model_load": loads, "first_score": firsts}
    return {name: round(max(each), 3) if each else None for name, each in longest.items()}


def ship_model(
    spark: SparkSession, checkpoint: Checkpoint, spec: ScorerSpec, ship: str
) -> ScorerSpec:
    """Say how executors find the model: a path they share, or an archive that Spark sends them."""
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
    # Hashing by key spreads long and short pairs evenly; sorting lets like lengths meet in a
    # window. Nothing may come between the UDF and the write, or Spark may score rows twice.
    spread = texts.repartition(tasks, "pair_key").sortWithinPartitions(_longest_first())
    peak = spark.sparkContext.accumulator(Peak(), PeakParam())
    if profile is None:
        score = rerank_udf(spec, peak)("query", "doc").alias("score")
        scored = spread.select("pair_key", score).select("pair_key", "score.*")
    else:
        # The shuffle above ends the stage that reads; what follows it is a stage of this profile.
        texts = spread.select("pair_key", "query", "doc")
        scored = texts.mapInPandas(rerank_rows(spec, peak), ROWS_SCHEMA, profile=profile)
    with ProgressBar(spark, count, title="scoring"):
        attempt = store.append(scored)
    return attempt, peak.value


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
