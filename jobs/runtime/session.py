"""The only place that builds a SparkSession."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from threading import Thread
from typing import Final

from pyspark.sql import SparkSession

from jobs.config import Config, ModelConfig
from jobs.runtime.errors import RefusedError
from jobs.runtime.jvm import with_kept_classes
from jobs.runtime.redaction import SECRET_NAME, USER_IN_URI
from udfs.devices import may_have_gpu, usable_cores
from udfs.shared import WISH
from udfs.spec import STAND_INS

# Settings of the session's SQL engine that a run depends on, whoever started the session.
_SQL: Final = {
    # Columns that differ only in case are different columns, as in the files they come from.
    "spark.sql.caseSensitive": "true",
    # A CSV record is malformed or not, whatever columns a plan happens to read.
    "spark.sql.csv.parser.columnPruning.enabled": "false",
    # Rows per Arrow batch: as many as a window holds, but no more than a worker has room for when
    # documents are 5 MB each.
    "spark.sql.execution.arrow.maxRecordsPerBatch": "1024",
    "spark.sql.execution.arrow.maxBytesPerBatch": str(64 * 2**20),
    "spark.sql.session.timeZone": "UTC",
    # Workers are pooled by their environment, which this would change for SQL alone: scoring
    # could not use the workers that an RDD has started.
    "spark.sql.execution.pyspark.udf.simplifiedTraceback.enabled": "false",
}
_LOCAL: Final = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    # The progress bar reads what running tasks have written from their heartbeats.
    "spark.executor.heartbeatInterval": "2s",
    "spark.driver.host": "localhost",
    "spark.driver.bindAddress": "127.0.0.1",
    # There is no network to be cut off by: a machine that was suspended goes on when it wakes up.
    "spark.network.timeout": "30d",
}
# Workers that start with torch in memory, for a machine without a GPU (see `udfs.daemon`).
_DAEMON: Final = ("spark.python.daemon.module", "udfs.daemon")
_JAVA: Final = "spark.driver.extraJavaOptions"
# Where the driver's cores score, the optimising compiler takes them away: without it a job of a
# few thousand pairs is a tenth faster, and a larger one has its time from the model.
_PLAIN_CODE: Final = "-XX:TieredStopAtLevel=1"
# For the same reason no Java source is written and compiled for each of a job's plans.
_PLAIN_PLANS: Final = {
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}
# Elsewhere it pays for millions of rows: ten times hotter than usual before it sets to work.
_HOT_CODE_OPTIMISED: Final = (
    "-XX:Tier4InvocationThreshold=50000 -XX:Tier4MinInvocationThreshold=6000 "
    "-XX:Tier4CompileThreshold=150000 -XX:Tier4BackEdgeThreshold=400000 -XX:+UseParallelGC"
)
# Event log and UI hide more than Spark would by itself.
_QUIET: Final = {
    "spark.redaction.regex": f"{SECRET_NAME}|{USER_IN_URI}",  # of a setting's name or value
    "spark.redaction.string.regex": USER_IN_URI,
}
# How often a task is started in all, as on a cluster (spark.task.maxFailures); `local[n]` gives up
# a whole run for one worker that died.
_LOCAL_ATTEMPTS: Final = 4
_LOCAL_MASTER: Final = re.compile(r"local(\[(?P<slots>\*|\d+)(, *\d+)?\])?")
# Under local[*] there is no executor to hold a GPU: with these set, no task ever starts.
_GPU_SETTINGS: Final = ("spark.task.resource.gpu.", "spark.executor.resource.gpu.")


def under_spark_submit() -> bool:
    """Whether spark-submit started this process, so that its master and settings win."""
    return "PYSPARK_GATEWAY_PORT" in os.environ


def open_session(config: Config) -> SparkSession:
    """Build the session, or take the one that spark-submit prepared.

    Raises:
        RefusedError: if a setting cannot work, with the reason and the remedy.
    """
    settings = dict(config.spark.settings)
    given = settings if under_spark_submit() else {**settings, "spark.master": config.spark.master}
    _refuse_settings(given)
    builder = SparkSession.Builder().appName(config.spark.app_name)
    if not under_spark_submit():
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        master = config.spark.master
        if master.startswith("local"):
            master = _with_retries(master) if is_local(master) else master
            settings = {
                **_LOCAL,
                **_local_shuffle(master),
                **_beside_model(config.model),
                **settings,
            }
        builder = builder.master(master)
    for key, value in {**_QUIET, **settings}.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    given = dict(spark.sparkContext.getConf().getAll())
    _refuse_settings(given)
    for key, value in _SQL.items():
        if key not in given:
            spark.conf.set(key, value)
    # Warnings would bury the few lines of the job. Errors of a cluster stay visible; those of
    # a local session reach the job, which says what ended it.
    spark.sparkContext.setLogLevel("FATAL" if is_local(given["spark.master"]) else "ERROR")
    # pyspark would print every analysis error twice, once as JSON with the whole Java stack.
    logging.getLogger("DataFrameQueryContextLogger").disabled = True
    return spark


def start_workers(spark: SparkSession, model: str | None = None) -> Thread:
    """Start the workers' daemon, which imports torch and loads `model`, beside what comes next.

    It is a head start and no more: what goes wrong with workers is for those to report who need
    them.

    Args:
        spark: the session.
        model: what the daemon is to load for all its workers (see `udfs.shared`).

    Returns:
        The thread that waits for it. Until it ends, it has one of the task slots; who needs a
        worker had better wait, too, and leave the other slots to those who need none.
    """

    context = spark.sparkContext
    daemon = context.getConf().get(_DAEMON[0])
    if model and daemon:
        # The first wish of a session stays. Another would bring another daemon, with torch and
        # weights of its own, and Spark keeps all of them until the session ends. Workers of a later
        # job with another model load it themselves.
        context.environment.setdefault(WISH, model)

    def start() -> None:
        with suppress(Exception):
            if daemon == _DAEMON[1]:
                context.parallelize([0], 1).count()

    # Python waits for it before it ends. A run that is refused meanwhile has told why by then;
    # ended in the middle of a task, Spark would print stacks below the list of findings.
    thread = Thread(target=start, daemon=False)
    thread.start()
    return thread


def is_local(master: str) -> bool:
    """Whether driver and tasks are one process, which has no executors."""
    return master.startswith("local") and not master.startswith("local-cluster")


def scores_here(master: str) -> bool:
    """Whether tasks will run on this machine, as far as can be told before there is a session."""
    return is_local(master) and not under_spark_submit()


def task_cores(spark: SparkSession) -> int:
    """Cores of one task."""
    return int(spark.sparkContext.getConf().get("spark.task.cpus", "1"))


def task_slots(spark: SparkSession) -> int:
    """Tasks that can run at once, as far as the driver knows now."""
    return max(1, spark.sparkContext.defaultParallelism)


def _scores_on_cpu(model: ModelConfig) -> bool:
    """Whether this machine's cores run a model, if the job is a local one."""
    return bool(model.name) and model.backend not in STAND_INS and not may_have_gpu()


def _beside_model(model: ModelConfig) -> dict[str, str]:
    """Settings of a JVM and of workers on the machine that scores, if it does."""
    if not _scores_on_cpu(model):
        return {_JAVA: f"{_HOT_CODE_OPTIMISED} {with_kept_classes()}"}
    return {_JAVA: f"{_PLAIN_CODE} {with_kept_classes()}", **_PLAIN_PLANS, _DAEMON[0]: _DAEMON[1]}


def _with_retries(master: str) -> str:
    """A local master that starts a task again when its worker dies: `local[2]` -> `local[2,4]`.

    Raises:
        RefusedError: if it looks local and is no master.
    """
    found = _LOCAL_MASTER.fullmatch(master)
    if not found:
        raise RefusedError(f"spark.master={master} is no master; write local[*] or local[2]")
    return master if "," in master else f"local[{found['slots'] or 1},{_LOCAL_ATTEMPTS}]"


def local_cores(master: str) -> int:
    """Cores that a local master uses; of another one, those of this machine."""
    found = _LOCAL_MASTER.fullmatch(master)
    slots = (found["slots"] or "1") if found else "*"
    return usable_cores() if slots == "*" else int(slots)


def _local_shuffle(master: str) -> dict[str, str]:
    """A shuffle of 200 partitions costs a laptop more than its sort."""
    count = local_cores(master) if is_local(master) else 1
    return {"spark.sql.shuffle.partitions": str(max(4, 2 * count))}


def _asks_for_connect(settings: Mapping[str, str]) -> list[str]:
    """Settings and variables that make a session a client of Spark Connect."""
    master, mode = settings.get("spark.master", ""), settings.get("spark.api.mode", "")
    ways = {
        "spark.remote": settings.get("spark.remote"),
        "SPARK_REMOTE": os.environ.get("SPARK_REMOTE"),
        "spark.master": master if master.startswith("sc:") else None,
        "spark.api.mode": mode if mode == "connect" else None,
        "SPARK_CONNECT_MODE_ENABLED": os.environ.get("SPARK_CONNECT_MODE_ENABLED"),
    }
    return [f"{key}={value}" for key, value in ways.items() if value]


def _refuse_settings(settings: Mapping[str, str]) -> None:
    """Settings that would hang or break scoring, whoever made them."""
    findings = []
    if asked := _asks_for_connect(settings):
        findings.append(
            f"{', '.join(asked)} asks for Spark Connect, which gives a client no driver JVM to "
            "move results into place with; use a classic session (spark-submit, or spark.master)"
        )
    gpu = sorted(key for key in settings if key.startswith(_GPU_SETTINGS))
    master = settings.get("spark.master", "")
    if gpu and is_local(master):
        findings.append(
            f"{', '.join(gpu)} cannot work with spark.master={master}, which has no executors: "
            "no task would ever start. Remove them (the model finds a local GPU by itself)"
        )
    if gpu and settings.get("spark.speculation", "false") == "true":
        findings.append(
            "spark.speculation=true would score the same pairs on two GPUs; set it to false"
        )
    if "spark.executor.pyspark.memory" in settings:
        findings.append(
            "spark.executor.pyspark.memory limits virtual memory, which CUDA and torch reserve far "
            "beyond what they use; remove it and size spark.executor.memoryOverhead"
        )
    if findings:
        raise RefusedError(findings)
