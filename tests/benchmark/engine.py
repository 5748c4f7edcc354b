"""The engine in process, one lane per core or one GPU; and its tokenizer alone, which bounds it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.benchmark.task import Outcome, Task
from udfs.devices import TaskSlot, prepare_process, process_slot
from udfs.scorers.cross_encoder import Scorer

_WARM_UP: Final = 64  # pairs scored before the clock starts
_PATIENCE: Final = 600.0  # longest that a lane waits for the others to load [s]

Lane = tuple[float, float, Any]  # monotonic start and end [s], and the result
_barrier: Barrier


def engine(task: Task) -> Outcome:
    """Score all pairs, windows dealt out to the lanes as a job deals them to its tasks."""
    seconds, results = _run(task, _score)
    scores = [0.0] * len(task.texts()[0])
    for rows, logits, _ in results:
        for row, logit in zip(rows, logits, strict=True):
            scores[row] = logit
    padding = sum(padded for _, _, padded in results)
    return Outcome(seconds, scores, time.time() - task.spawned, padding)


def tokenizer(task: Task) -> Outcome:
    """Tokenise all pairs as the libraries do, and do nothing with the tokens."""
    return Outcome(_run(task, _tokenise)[0], [])


def _score(task: Task, lane: int) -> Callable[[], tuple[list[int], list[float], int]]:
    scorer = Scorer.load(Path(task.model), task.spec(), _slot(task))
    queries, docs = task.texts()
    window = task.settings.batching.window
    # Like lengths meet in a window, as a job's tasks sort their pairs.
    order = np.argsort([-len(q) - len(d) for q, d in zip(queries, docs, strict=True)])
    rows = order[lane :: task.lanes].tolist()
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


def _tokenise(task: Task, lane: int) -> Callable[[], None]:
    prepare_process(_slot(task))
    from transformers import AutoTokenizer

    tokenise: Any = AutoTokenizer.from_pretrained(task.model, local_files_only=True)
    queries, docs = (texts[lane :: task.lanes] for texts in task.texts())
    limits = {"truncation": True, "max_length": task.settings.model.max_length}
    window = task.settings.batching.window
    tokenise(queries[:_WARM_UP], docs[:_WARM_UP], **limits)

    def work() -> None:
        for start in range(0, len(queries), window):
            part = slice(start, start + window)
            tokenise(queries[part], docs[part], **limits)

    return work


def _slot(task: Task) -> TaskSlot:
    return TaskSlot(cpus=1) if task.lanes > 1 else process_slot()


def _run(task: Task, prepare: Callable[[Task, int], Callable[[], Any]]) -> tuple[float, list[Any]]:
    """Prepare every lane in a process of its own, start their work at one moment, and time it."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(task.lanes)
    with ProcessPoolExecutor(
        task.lanes, mp_context=context, initializer=_meet_at, initargs=(barrier,)
    ) as pool:
        futures = [pool.submit(_lane, task, lane, prepare) for lane in range(task.lanes)]
        starts, ends, results = zip(*(future.result() for future in futures), strict=True)
    return max(ends) - min(starts), list(results)


def _meet_at(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _lane(task: Task, lane: int, prepare: Callable[[Task, int], Callable[[], Any]]) -> Lane:
    work = prepare(task, lane)
    _barrier.wait(_PATIENCE)
    start = time.monotonic()
    result = work()
    return start, time.monotonic(), result
