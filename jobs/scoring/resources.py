"""Executors for the scoring stage alone: stage-level scheduling, where Spark has it."""

from __future__ import annotations

from typing import Final

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

_DYNAMIC: Final = "spark.dynamicAllocation.enabled"
_TASKS_PER_GPU: Final = 2


def refuse_scoring(spark: SparkSession, config: ScoringConfig) -> None:
    """Refuse executors for scoring where Spark cannot start any of another kind.

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
    """Return what the scoring stage asks for; None: what all stages have.

    Two tasks share a GPU: while it computes the batch of one, the other tokenises. Each has a
    model of its own there, and half of the cores.
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
    cpus = max(1, config.cores // (_TASKS_PER_GPU * config.gpus))
    task = TaskResourceRequests().cpus(cpus).resource("gpu", 1 / _TASKS_PER_GPU)
    return ResourceProfileBuilder().require(executor).require(task).build
