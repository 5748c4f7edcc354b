"""Show a progress bar for one Spark job, fed by what its running tasks report as written."""

import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from py4j.protocol import Py4JError
from pyspark import SparkContext
from pyspark.sql import SparkSession
from tqdm import tqdm


@contextmanager
def progress_bar(spark: SparkSession, total: int, *, title: str) -> Iterator[None]:
    """Show pairs done of `total`, pairs/s and time left while the `with` block runs a Spark job.

    The figures come from task heartbeats, every 2 s in a local run, and count a retried task
    twice. Counts that matter are taken from written files.
    """
    context, group, ended = spark.sparkContext, f"{title}-{uuid.uuid4().hex}", threading.Event()
    bar = tqdm(
        total=total, desc=title, file=sys.stderr, unit=" pairs",
        # A log file gets a line now and then, a terminal a moving bar.
        mininterval=0.5 if sys.stderr.isatty() else 20.0,
        bar_format="{desc} {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} pairs  "
        "{rate_fmt}  left {remaining}",
    )  # fmt: skip

    def watch() -> None:
        while not ended.wait(1.0):
            with suppress(Py4JError, OSError):  # there are new figures in a second
                bar.update(max(0.0, min(_written(context, group), total) - bar.n))

    watcher, done = threading.Thread(target=watch, daemon=True), False
    context.setJobGroup(group, title)  # of the jobs that this thread starts from now on
    watcher.start()
    try:
        yield
        done = True
    finally:
        ended.set()
        watcher.join()
        if done:
            bar.update(total - bar.n)
        bar.close()  # first: the JVM may be gone
        for name in ("spark.jobGroup.id", "spark.job.description"):
            context.setLocalProperty(name, None)  # type: ignore[arg-type]


def _written(context: SparkContext, group: str) -> int:
    """Return the rows that the stages of the newest job of a group have written so far."""
    tracker = context.statusTracker()
    store: Any = context._jsc.sc().statusStore()
    infos = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(group)]
    stages = [stage for info in infos if info is not None for stage in info.stageIds]
    return max((int(store.lastStageAttempt(s).outputRecords()) for s in stages), default=0)
