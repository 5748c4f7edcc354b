"""Executors for the scoring stage alone: stage-level scheduling, where Spark has it."""

from __future__ import annotations

from pyspark.resource import (
    ExecutorResourceRequests,
    ResourceProfile,
    ResourceProfileBuilder,
    TaskResourceRequests,
)
from pyspark.sql import SparkSession

from jobs.config import ScoringConfig
from jobs.runtime.errors import RefusedError
from jobs.runtime.session import is_local

_DYNAMIC = "spark.dynamicAllocation.enabled"


def refuse_scoring(spark: SparkSession, config: ScoringConfig) -> None:
    """Spark starts executors of another kind only while it starts executors at all.

    Raises:
        RefusedError: in a local run, which has none, or without dynamic allocation.
    """
    if config.gpus is None:
        return
    master = str(spark.sparkContext.master)
    if is_local(master):
        raise RefusedError(
            f"scoring.gpus={config.gpus} cannot work with spark.master={master}, which has no "
            "executors; leave it out (the model finds a local GPU by itself)"
        )
    if spark.conf.get(_DYNAMIC, "false") != "true":
        raise RefusedError(
            f"scoring.gpus={config.gpus} needs {_DYNAMIC}=true, so that Spark can start executors "
            "with GPUs when it comes to scoring; set it, or give every executor a GPU"
        )


def scoring_profile(config: ScoringConfig) -> ResourceProfile | None:
    """What the scoring stage asks for; None: what all stages have.

    Every core has a task. Those that feed the same GPU share its model, see `udfs.lease`.
    """
    if config.gpus is None:
        return None
    executor = (
        ExecutorResourceRequests()
        .cores(config.cores)
        .memory(config.memory)
        .memoryOverhead(config.memory_overhead)
        .resource("gpu", config.gpus, config.discovery_script, config.vendor)
    )
    tasks_per_gpu = max(1, config.cores // config.gpus)
    task = TaskResourceRequests().cpus(1).resource("gpu", 1 / tasks_per_gpu)
    return ResourceProfileBuilder().require(executor).require(task).build
