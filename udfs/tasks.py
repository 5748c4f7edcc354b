"""What Spark tasks do besides scoring: find out what they run on, and measure.

Runs on executors; with `udfs.udf`, and but for `udfs.daemon`, what imports pyspark.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyspark import SparkFiles, TaskContext
from pyspark.accumulators import AccumulatorParam

from udfs.devices import TaskSlot, common_precision, describe, process_slot, spread
from udfs.memory import Peak
from udfs.scorers.cross_encoder import PairScorer
from udfs.spec import Precision, ScorerSpec
from udfs.trial import Trial, in_fresh_process
from udfs.worker import get_scorer, locate


class PeakParam(AccumulatorParam[Peak]):
    """An accumulator that keeps the larger of two peaks.

    Spark counts a task that is repeated twice; the larger of equals is the same.
    """

    def zero(self, value: Peak) -> Peak:
        """Nothing."""
        return Peak()

    def addInPlace(self, value1: Peak, value2: Peak) -> Peak:  # noqa: N802 (pyspark's name)
        """The larger, part by part."""
        return value1 | value2


@dataclass(frozen=True)
class Probed:
    """What a task would score on (see `devices.describe`), and what starting took it.

    Attributes:
        device: `cuda`, `cpu-bf16` or `cpu`.
        model_load: what loading took, be it in the process that workers are forked from [s]; None
            if it was not loaded.
        first_score: of one short pair after that [s].
    """

    device: str
    model_load: float | None = None
    first_score: float | None = None


def probe_devices(
    draft: ScorerSpec, precision: Precision | None, *, load: bool
) -> Callable[[Iterable[Any]], Iterator[Probed]]:
    """For `RDD.mapPartitions`: one finding per task.

    Args:
        draft: the scorer, but for its precision and how texts are made.
        precision: of the scorer; None: what this task's device is best at.
        load: whether to load the model too, so that this worker has it when the first pairs come.
    """

    def probe(rows: Iterable[Any]) -> Iterator[Probed]:
        _read_through(rows)
        device = describe(draft, task_slot())
        if not load:
            yield Probed(device)
            return
        spec = replace(draft, precision=precision or common_precision([device]))
        loaded = get_scorer(spec, task_slot(), archive_root=SparkFiles.getRootDirectory)
        start = time.perf_counter()
        warm_up(loaded.scorer)
        yield Probed(device, loaded.seconds, time.perf_counter() - start)

    return probe


def warm_up(scorer: PairScorer) -> None:
    """Score a pair that means nothing, so that the first real one does not pay for the start."""
    scorer.score(["a"], ["b"])


def run_trial(
    spec: ScorerSpec, queries: Sequence[str], docs: Sequence[str]
) -> Callable[[Iterable[Any]], Iterator[Trial]]:
    """For `RDD.mapPartitions` over one partition: measure a scorer where it will score."""

    def run(rows: Iterable[Any]) -> Iterator[Trial]:
        _read_through(rows)
        path = locate(spec.model_path, SparkFiles.getRootDirectory)
        yield in_fresh_process(path, spec, task_slot(), queries, docs)

    return run


def _read_through(rows: Iterable[Any]) -> None:
    """Spark ends a worker that leaves input unread; what it has loaded would be lost."""
    deque(rows, maxlen=0)


def task_slot() -> TaskSlot:
    """Cores and GPU of the current Spark task; of the whole process outside of one."""
    context = TaskContext.get()
    if context is None:
        return process_slot()
    given = context.resources().get("gpu")
    gpu = given.addresses[0] if given else spread(context.partitionId())
    return TaskSlot(cpus=context.cpus(), gpu=gpu)
