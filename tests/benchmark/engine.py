"""The engine in process: one lane per core, or one GPU."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

from tests.benchmark.task import Outcome, Task
from tests.benchmark.texts import job_order
from udfs.devices import TaskSlot
from udfs.scorers.cross_encoder import Scorer

_WARM_UP: Final = 64  # pairs scored before the clock starts
_PATIENCE: Final = 600.0  # longest that a lane waits for the others to load [s]

_barrier: Barrier


def engine(task: Task) -> Outcome:
    """Score all pairs, windows dealt out to the lanes as a job deals them to its tasks."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(task.lanes)
    with ProcessPoolExecutor(
        task.lanes, mp_context=context, initializer=_meet_at, initargs=(barrier,)
    ) as pool:
        futures = [pool.submit(_lane, task, lane) for lane in range(task.lanes)]
        starts, ends, results = zip(*(future.result() for future in futures), strict=True)
    seconds = max(ends) - min(starts)
    scores = [0.0] * len(task.texts()[0])
    for rows, logits, _ in results:
        for row, logit in zip(rows, logits, strict=True):
            scores[row] = logit
    padding = sum(padded for _, _, padded in results)
    return Outcome(seconds, scores, time.time() - task.spawned, padding)


def prepare(task: Task, lane: int) -> Callable[[], tuple[list[int], list[float], int]]:
    """Load the engine, and return the work of a lane: rows, their logits, padding."""
    slot = TaskSlot(cpus=1) if task.lanes > 1 else TaskSlot()
    scorer = Scorer.load(Path(task.model), task.spec(), slot)
    queries, docs = task.texts()
    window = task.settings.batching.window
    rows = job_order(queries, docs)[lane :: task.lanes].tolist()
    scorer.score([queries[row] for row in rows[:_WARM_UP]], [docs[row] for row in rows[:_WARM_UP]])

    def work() -> tuple[list[int], list[float], int]:
        logits: list[float] = []
        padded = 0
        for start in range(0, len(rows), window):
            part = rows[start : start + window]
            found = scorer.score([queries[row] for row in part], [docs[row] for row in part])
            logits += found.logit.tolist()
            padded += int(found.n_padded.sum())
        return rows, logits, padded

    return work


def _meet_at(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _lane(task: Task, lane: int) -> tuple[float, float, Any]:
    """Load, wait for the other lanes, work; return monotonic start and end [s], and the result."""
    work = prepare(task, lane)
    _barrier.wait(_PATIENCE)
    start = time.monotonic()
    result = work()
    return start, time.monotonic(), result
