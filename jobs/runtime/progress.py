"""Show a progress bar for one Spark job, fed by what its running tasks report as written."""

from __future__ import annotations

import sys
import threading
import uuid
from typing import Any

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession
from tqdm import tqdm


class ProgressBar:
    """Show pairs done, pairs/s and time left while the `with` block runs a Spark job.

    The figures come from task heartbeats, every 2 s in a local run, and count a retried task
    twice. Counts that matter are taken from written files.
    """

    def __init__(self, spark: SparkSession, total: int, *, title: str) -> None:
        """Prepare a bar of `total` pairs."""
        self._context = spark.sparkContext
        self._total = total
        self._group = f"{title}-{uuid.uuid4().hex}"
        self._bar = tqdm(
            total=total,
            desc=title,
            file=sys.stderr,
            # A log file gets a line now and then, a terminal a moving bar.
            mininterval=0.5 if sys.stderr.isatty() else 20.0,
            bar_format="{desc} {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} pairs  "
            "{rate_fmt}  left {remaining}",
            unit=" pairs",
        )
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ProgressBar:
        """Put the jobs that this thread starts from now on into a group, and watch it."""
        self._context.setJobGroup(self._group, self._bar.desc)
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Fill the bar if the job ended well."""
        self._ended.set()
        self._watcher.join()
        if kind is None:
            self._bar.update(self._total - self._bar.n)
        self._bar.close()  # first: the JVM may be gone
        for name in ("spark.jobGroup.id", "spark.job.description"):
            self._context.setLocalProperty(name, None)  # type: ignore[arg-type]

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            try:
                done = min(self._written(), self._total)
            except (Py4JError, OSError):
                continue  # there are new figures in a second
            self._bar.update(max(0.0, done - self._bar.n))

    def _written(self) -> int:
        """Return the rows that the stages of the newest job have written so far."""
        tracker = self._context.statusTracker()
        store: Any = self._context._jsc.sc().statusStore()
        infos = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(self._group)]
        stages = [stage for info in infos if info is not None for stage in info.stageIds]
        return max((int(store.lastStageAttempt(s).outputRecords()) for s in stages), default=0)
