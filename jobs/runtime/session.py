"""The only place that builds a SparkSession."""

import logging
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pyspark import SparkContext
from pyspark.sql import SparkSession

from jobs.config import SparkConfig
from jobs.runtime.compat import ANSI, lenient_casts
from jobs.runtime.errors import RefusedError
from jobs.runtime.redaction import SECRET_NAME, USER_IN_URI
from udfs.devices import usable_cores

# Settings of the SQL engine that a run depends on, also in a session that somebody else started.
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
# Event log and UI hide more than Spark would by itself.
_QUIET: Final = {
    "spark.redaction.regex": f"{SECRET_NAME}|{USER_IN_URI}",  # of a setting's name or value
    "spark.redaction.string.regex": USER_IN_URI,
}
# How often a task is started in all, as on a cluster (spark.task.maxFailures); `local[n]` gives up
# a whole run for one worker that died.
_LOCAL_ATTEMPTS: Final = 4
SPECULATES: Final = "spark.speculation=true would score the same pairs on two GPUs; set it to false"
_LOCAL_MASTER: Final = re.compile(r"local(\[(?P<slots>\*|\d+)(, *\d+)?\])?")
_FULL: Final = 2**20  # bytes free, below which a disk is full
# Under local[*] there is no executor to hold a GPU: with these set, no task ever starts.
_GPU_SETTINGS: Final = ("spark.task.resource.gpu.", "spark.executor.resource.gpu.")


def open_session(config: SparkConfig) -> SparkSession:
    """Build the session, or take the one that exists: spark-submit's, or a notebook's.

    A session that exists keeps its settings, but for those of `spark.settings` and those that a
    run depends on. Settings that cannot work are refused, with the reason and the remedy.
    """
    settings = dict(config.settings)
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ  # spark-submit's master and settings win
    _refuse_settings(settings if submitted else {**settings, "spark.master": config.master})
    master = _with_retries(config.master) if is_local(config.master) else config.master
    builder = SparkSession.Builder()
    if SparkContext._active_spark_context is None:
        builder = builder.appName(config.app_name)
        if not submitted:
            os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
            if master.startswith("local"):
                # 200 partitions, Spark's default, cost a laptop more than its sort.
                shuffle = max(4, 2 * local_cores(master)) if is_local(master) else 4
                small = {"spark.sql.shuffle.partitions": str(shuffle)}
                settings = {**_LOCAL, **small, **settings}
            builder = builder.master(master)
        settings = {**_QUIET, **settings}
    for key, value in settings.items():
        builder = builder.config(key, value)
    spark = builder.getOrCreate()
    given = dict(spark.sparkContext.getConf().getAll())
    _refuse_settings(given)
    for key, value in {**_SQL, **lenient_casts()}.items():
        if key not in given and key not in settings:
            spark.conf.set(key, value)
    # Warnings would bury the few lines of the job. Errors of a cluster stay visible; those of
    # a local session reach the job, which says what ended it.
    spark.sparkContext.setLogLevel("FATAL" if is_local(given["spark.master"]) else "ERROR")
    # pyspark would print every analysis error twice, once as JSON with the whole Java stack.
    logging.getLogger("DataFrameQueryContextLogger").disabled = True
    return spark


def full_folders(settings: Mapping[str, str], *others: str | None) -> list[str]:
    """Return the folders for temporary files, and of the others, that have less than 1 MB free."""
    temporary = os.environ.get("TMPDIR", "/tmp")
    given = [*others, *settings.get("spark.local.dir", temporary).split(","), temporary]
    there = [path for path in dict.fromkeys(given) if path and Path(path).exists()]
    return [path for path in there if shutil.disk_usage(path).free < _FULL]


def is_local(master: str) -> bool:
    """Return whether driver and tasks are one process, which has no executors."""
    return master.startswith("local") and not master.startswith("local-cluster")


def task_slots(spark: SparkSession, cores: int | None = None) -> int:
    """Return how many tasks of so many cores can run at once, as far as the driver knows now."""
    cores = cores or int(spark.sparkContext.getConf().get("spark.task.cpus", "1"))
    return max(1, spark.sparkContext.defaultParallelism // cores)


def local_cores(master: str) -> int:
    """Return the cores that a local master uses; of another one, those of this machine."""
    found = _LOCAL_MASTER.fullmatch(master)
    slots = (found["slots"] or "1") if found else "*"
    return usable_cores() if slots == "*" else int(slots)


def _with_retries(master: str) -> str:
    """Return a local master that starts a failed task again: `local[2]` -> `local[2,4]`."""
    found = _LOCAL_MASTER.fullmatch(master)
    if not found:
        raise RefusedError(f"spark.master={master} is no master; write local[*] or local[2]")
    return master if "," in master else f"local[{found['slots'] or 1},{_LOCAL_ATTEMPTS}]"


def _refuse_settings(settings: Mapping[str, str]) -> None:
    """Refuse settings that would hang or break scoring, whoever made them."""
    findings: list[str] = []
    master, mode = settings.get("spark.master", ""), settings.get("spark.api.mode", "")
    variables = ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED")
    connect = {
        "spark.remote": settings.get("spark.remote"),
        "spark.master": master if master.startswith("sc:") else None,
        "spark.api.mode": mode if mode == "connect" else None,
        **{name: os.environ.get(name) for name in variables},
    }
    if asked := [f"{key}={value}" for key, value in connect.items() if value]:
        findings.append(
            f"{', '.join(asked)} asks for Spark Connect, which gives a client no driver JVM to "
            "move results into place with; use a classic session (spark-submit, spark.master, or "
            "a Databricks cluster with dedicated access)"
        )
    gpu = sorted(key for key in settings if key.startswith(_GPU_SETTINGS))
    if gpu and is_local(master):
        findings.append(
            f"{', '.join(gpu)} cannot work with spark.master={master}, which has no executors: "
            "no task would ever start. Remove them (the model finds a local GPU by itself)"
        )
    if gpu and settings.get("spark.speculation", "false") == "true":
        findings.append(SPECULATES)
    if "spark.executor.pyspark.memory" in settings:
        findings.append(
            "spark.executor.pyspark.memory limits virtual memory, which CUDA and torch reserve far "
            "beyond what they use; remove it and size spark.executor.memoryOverhead"
        )
    if lenient_casts() and settings.get(ANSI, "false") == "true":
        findings.append(
            f"{ANSI}=true needs Spark 4: a value that is no number would end the job on Spark 3.5, "
            "where it cannot be told apart first; set it to false"
        )
    if full := full_folders(settings):
        findings.append(
            f"{' and '.join(full)}: no space is left for temporary files; free some, or set TMPDIR "
            "and spark.settings spark.local.dir to other folders"
        )
    if findings:
        raise RefusedError(findings)
