"""A progress bar for one Spark job, fed by what its running tasks report as written."""

from __future__ import annotations

import sys
import threading
import uuid
from types import TracebackType
from typing import Any

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession
from tqdm import tqdm


class ProgressBar:
    """Shows pairs done, pairs/s and time left while the `with` block runs a Spark job.

    The figures are for the eye: they come from task heartbeats, every 2 s in a local run, and
    count a retried task twice. Counts that matter are taken from written files.
    """

    def __init__(self, spark: SparkSession, total: int, *, title: str) -> None:
        """Prepare a bar of `total` pairs."""
        self._context = spark.sparkContext
        self._total = total
        self._group = f"{title}-{uuid.uuid4().hex}"
        self._bar = tqdm(
            total=total,
            desc=title,
            unit=" pairs",
            file=sys.stderr,
            # A log file gets a line now and then, a terminal a moving bar.
            mininterval=0.5 if sys.stderr.isatty() else 20.0,
            bar_format="{desc} {percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} pairs  "
            "{rate_fmt}  left {remaining}",
        )
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ProgressBar:
        """Mark the jobs this thread starts from now on, and watch them."""
        self._context.setJobGroup(self._group, self._bar.desc)
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Fill the bar if the job ended well."""
        self._ended.set()
        self._watcher.join()
        for mark in ("spark.jobGroup.id", "spark.job.description"):
            self._context.setLocalProperty(mark, None)  # type: ignore[arg-type]
        if error is None:
            self._bar.update(self._total - self._bar.n)
        self._bar.close()

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            try:
                done = min(self._written(), self._total)
            except (Py4JError, OSError):
                continue  # the figures of a moment; the next second has new ones
            self._bar.update(max(0.0, done - self._bar.n))

    def _written(self) -> int:
        """Rows that the last stage of the newest job has written so far."""
        tracker = self._context.statusTracker()
        store: Any = self._context._jsc.sc().statusStore()
        stages = [
            stage
            for job in tracker.getJobIdsForGroup(self._group)
            if (info := tracker.getJobInfo(job)) is not None
            for stage in info.stageIds
        ]
        written = (int(store.lastStageAttempt(stage).outputRecords()) for stage in stages)
        return max(written, default=0)
