"""The scorer of a run: its specification, how executors get its model, and which executors."""

import atexit
import os
import zipfile
from dataclasses import replace
from typing import Final

from pyspark.resource import (
    ExecutorResourceRequests,
    ResourceProfile,
    ResourceProfileBuilder,
    TaskResourceRequests,
)
from pyspark.sql import SparkSession

from jobs.config import BatchingConfig, ModelConfig, ScoringConfig
from jobs.runtime.cache import cache
from jobs.runtime.compat import has_profiles
from jobs.runtime.errors import RefusedError
from jobs.runtime.session import SPECULATES, is_local
from jobs.scoring.models import EMBEDDED
from udfs import devices
from udfs.checkpoint import Checkpoint, scoring_files
from udfs.forward.base import ModelError
from udfs.spec import PassageSpec, Precision, ScorerSpec

_DYNAMIC: Final = "spark.dynamicAllocation.enabled"
_EXECUTOR_GPUS: Final = "spark.executor.resource.gpu.amount"
_TASK_GPUS: Final = "spark.task.resource.gpu.amount"
_TASKS_PER_GPU: Final = 2


def make_spec(
    model: ModelConfig, batching: BatchingConfig, checkpoint: Checkpoint, precision: Precision,
    passages: PassageSpec | None = None,
) -> ScorerSpec:  # fmt: skip
    """Return what executors have to know."""
    prompt = checkpoint.template
    return ScorerSpec(
        str(checkpoint.path), checkpoint.digest, precision=precision, runtime=checkpoint.runtime,
        prompt=prompt, label=checkpoint.label, modular=checkpoint.kind == "modular",
        truncation="document" if prompt else model.truncation,
        max_length=model.max_length, attention=model.attention,
        backend=model.backend, trust_remote_code=model.trust_remote_code, device=model.device,
        max_tokens=batching.max_tokens, max_pairs=batching.max_pairs, window=batching.window,
        batch_timeout=batching.timeout, passages=passages,
    )  # fmt: skip


def refuse_unscorable(
    model: ModelConfig, batching: BatchingConfig, checkpoint: Checkpoint | None
) -> None:
    """Refuse an architecture that cannot score, found out with two pairs and without weights."""
    # The embedded model is tested with the project, and torch takes seconds to import.
    if model.backend != "torch" or model.name == EMBEDDED or checkpoint is None:
        return
    from udfs.scorers.cross_encoder import check_model

    try:
        check_model(checkpoint.path, make_spec(model, batching, checkpoint, "fp32"))
    except ModelError as error:
        reason = " ".join(str(error).split())
        if "padding token" in reason:
            reason += "; or set batching.max_pairs=1, which pads nothing"
        raise RefusedError(reason) from None


def resolve_precision(model: ModelConfig, *, gpu: bool) -> Precision:
    """Return the precision as configured; decide here, once for all executors, what `auto` means.

    For torch it is fp16 if there are GPUs to score on (`gpu`, see `tasks_have_gpus`); else bf16
    where the driver's CPU has the instructions, and fp32 where it has not. Executors that differ
    score in the same precision: bf16 without the instructions is slow, but right. For onnxruntime
    it is fp32: int8 moves a logit by up to half a unit, which is for the user to choose.
    """
    if model.precision != "auto":
        return model.precision
    if model.backend != "torch":
        return "fp32"
    if model.device == "cuda" or (gpu and model.device == "auto"):
        return "fp16"
    return "bf16" if devices.has_bf16() else "fp32"


def tasks_have_gpus(spark: SparkSession, scoring: ScoringConfig) -> bool:
    """Return whether scoring tasks have GPUs, without starting a job.

    They have if Spark schedules GPUs for them, or if they run on this machine and it has one.
    """
    if is_local(str(spark.sparkContext.master)):
        return devices.has_gpu()
    given = float(spark.sparkContext.getConf().get(_TASK_GPUS, "0")) > 0
    return given or bool(scoring.gpus or _executor_gpus(spark))


def ship_model(
    spark: SparkSession, checkpoint: Checkpoint, spec: ScorerSpec, ship: str
) -> ScorerSpec:
    """Return the spec with the model where executors find it: shared, or sent by Spark."""
    if ship == "path" or spec.remote is not None:
        return spec
    name = f"model-{checkpoint.digest[:16]}-{spec.backend}"
    folder = checkpoint.path
    target = cache() / "archives" / f"{folder.name}-{os.getpid()}.zip"
    target.parent.mkdir(parents=True, exist_ok=True)
    # What it says of modules decides which files score, though it is none of them.
    more = [file for file in (folder / "config_sentence_transformers.json",) if file.is_file()]
    files = (
        sorted(folder.iterdir())
        if checkpoint.runtime
        else [*dict.fromkeys([*scoring_files(folder), *more])]
    )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, strict_timestamps=False) as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
    atexit.register(target.unlink, missing_ok=True)
    spark.sparkContext.addArchive(f"{target}#{name}")
    return replace(spec, model_path=f"archive:{name}")


def refuse_scoring(spark: SparkSession, config: ScoringConfig) -> None:
    """Refuse what Spark cannot do: executors, or GPUs of tasks, for scoring alone."""
    dynamic = spark.conf.get(_DYNAMIC, "false") == "true"
    if config.gpus is None:
        if _executor_gpus(spark) and (dynamic or not has_profiles()):
            raise RefusedError(
                f"{_EXECUTOR_GPUS} is set and {_TASK_GPUS} is not; Spark gives GPUs to scoring "
                f"tasks alone from release 4 on and without {_DYNAMIC} (this is {spark.version}); "
                f"set {_TASK_GPUS}=0.5, and spark.task.cpus to half of an executor's cores"
            )
        return
    if not has_profiles():
        raise RefusedError(
            f"scoring.gpus={config.gpus} needs Spark 4, and this is {spark.version}; give every "
            f"executor a GPU instead ({_EXECUTOR_GPUS})"
        )
    master = str(spark.sparkContext.master)
    if is_local(master):
        raise RefusedError(
            f"scoring.gpus={config.gpus} cannot work with spark.master={master}, which has no "
            "executors; leave it out (the model finds a local GPU by itself)"
        )
    if spark.conf.get("spark.speculation", "false") == "true":
        raise RefusedError(SPECULATES)
    if not dynamic:
        raise RefusedError(
            f"scoring.gpus={config.gpus} needs {_DYNAMIC}=true, so that Spark can start executors "
            "with GPUs when it comes to scoring; set it, or give every executor a GPU"
        )


def scoring_profile(spark: SparkSession, config: ScoringConfig) -> ResourceProfile | None:
    """Return what the scoring stage asks for; None: what all stages have.

    Two tasks share a GPU: while it computes the batch of one, the other starts, reads or writes.
    Each has a model of its own there, and half of the cores. Where executors have GPUs and
    `spark.task.resource.gpu.amount` is not set, other stages use all cores.
    """
    builder, gpus, cores = ResourceProfileBuilder(), config.gpus, config.cores
    if gpus is None:
        if not (gpus := _executor_gpus(spark)):
            return None
        cores = int(spark.sparkContext.getConf().get("spark.executor.cores", "1"))
    else:
        builder.require(
            ExecutorResourceRequests()
            .cores(cores)
            .memory(config.memory)
            .memoryOverhead(config.memory_overhead)
            .resource("gpu", gpus, config.discovery_script, config.vendor)
        )
    cpus = max(1, cores // (_TASKS_PER_GPU * gpus))
    task = TaskResourceRequests().cpus(cpus).resource("gpu", 1 / _TASKS_PER_GPU)
    return builder.require(task).build


def _executor_gpus(spark: SparkSession) -> int:
    """Return the GPUs of an executor that no task is given yet."""
    settings = spark.sparkContext.getConf()
    return 0 if settings.contains(_TASK_GPUS) else int(settings.get(_EXECUTOR_GPUS, "0"))
