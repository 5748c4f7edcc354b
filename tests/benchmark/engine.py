"""The engine in process, and what bounds it: its tokenizer alone, and the peak of its device.

One lane per core, or one GPU.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, Final

import numpy as np

from tests.benchmark.task import Outcome, Task
from udfs.devices import TaskSlot, choose, prepare_process, process_slot
from udfs.scorers.cross_encoder import Scorer

_WARM_UP: Final = 64  # pairs scored before the clock starts
_PATIENCE: Final = 600.0  # longest that a lane waits for the others to load [s]
_LARGEST: Final = 2048  # widest of the square matrices
_PEAK_TIME: Final = 3.0  # of multiplying, over all sizes [s]
_DTYPES: Final = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

Lane = tuple[float, float, Any]  # monotonic start and end [s], and what was found
_barrier: Barrier


def engine(task: Task) -> Outcome:
    """Score all pairs, windows dealt out to the lanes as a job deals them to its tasks."""
    lanes = _run(task, _score)
    scores: list[float] = [0.0] * len(task.texts()[0])
    parts = {"tokenising": 0.0, "planning": 0.0, "forward": 0.0}
    padding = 0
    for _, _, (rows, logits, padded, spent) in lanes:
        for row, logit in zip(rows, logits, strict=True):
            scores[row] = logit
        padding += padded
        parts = {name: parts[name] + spent[name] for name in parts}
    seconds = _seconds(lanes)
    parts["waiting"] = len(lanes) * seconds - sum(parts.values())
    started = time.time() - task.spawned
    return Outcome(seconds, started, scores, padding, parts)


def tokenizer(task: Task) -> Outcome:
    """The model's tokenizer on all pairs, as the libraries call it, and nothing done with them."""
    return Outcome(_seconds(_run(task, _tokenise)))


def peak(task: Task) -> Outcome:
    """The most operations per second that square matrix products reach, all lanes together."""
    lanes = _run(task, _multiply)
    return Outcome(_seconds(lanes), gflops=sum(found for _, _, found in lanes))


def _score(task: Task, lane: int) -> Callable[[], Any]:
    scorer = Scorer.load(Path(task.model), task.spec(), _slot(task))
    queries, docs = task.texts()
    window = task.settings.batching.window
    # Like lengths meet in a window, as a job's tasks sort their pairs.
    order = np.argsort([-len(q) - len(d) for q, d in zip(queries, docs, strict=True)])
    rows = order[lane :: task.lanes].tolist()
    scorer.score([queries[row] for row in rows[:_WARM_UP]], [docs[row] for row in rows[:_WARM_UP]])
    before = dict(scorer.spent)

    def work() -> Any:
        logits: list[float] = []
        padded = 0
        for start in range(0, len(rows), window):
            part = rows[start : start + window]
            found = scorer.score([queries[row] for row in part], [docs[row] for row in part])
            logits += found.logit.tolist()
            padded += int(found.n_padded.sum())
        spent = {name: value - before[name] for name, value in scorer.spent.items()}
        return rows, logits, padded, spent

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


def _multiply(task: Task, _lane: int) -> Callable[[], float]:
    slot = _slot(task)
    prepare_process(slot)
    device = choose(task.settings.model.device, slot)
    largest = _LARGEST * (4 if device.type == "cuda" else 1)
    product = partial(_product, device, _DTYPES[task.precision])
    products = [product(size) for size in (largest, largest // 2, largest // 4)]

    def timed(multiply: Callable[[], float]) -> float:
        start = time.perf_counter()
        operations = multiply()
        return operations / (time.perf_counter() - start) / 1e9

    def work() -> float:
        found = []
        for multiply in products:
            timed(multiply)
            rates, end = [], time.perf_counter() + _PEAK_TIME / len(products)
            while time.perf_counter() < end:
                rates.append(timed(multiply))
            found.append(float(np.median(rates)))
        return max(found)

    return work


def _product(device: Any, kind: str, size: int) -> Callable[[], float]:
    """torch's product of two square matrices; returns its operations."""
    import torch

    square = [torch.randn(size, size, device=device).to(getattr(torch, kind)) for _ in range(3)]

    def multiply() -> float:
        torch.mm(square[0], square[1], out=square[2])
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 2.0 * size**3

    return multiply


def _slot(task: Task) -> TaskSlot:
    return TaskSlot(cpus=1) if task.lanes > 1 else process_slot()


def _run(task: Task, prepare: Callable[[Task, int], Callable[[], Any]]) -> list[Lane]:
    """Prepare every lane in a process of its own, then start their work at one moment."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(task.lanes)
    with ProcessPoolExecutor(
        task.lanes, mp_context=context, initializer=_meet_at, initargs=(barrier,)
    ) as pool:
        futures = [pool.submit(_lane, task, lane, prepare) for lane in range(task.lanes)]
        return [future.result() for future in futures]


def _meet_at(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _lane(task: Task, lane: int, prepare: Callable[[Task, int], Callable[[], Any]]) -> Lane:
    work = prepare(task, lane)
    _barrier.wait(_PATIENCE)
    start = time.monotonic()
    found = work()
    return start, time.monotonic(), found


def _seconds(lanes: list[Lane]) -> float:
    return max(end for _, end, _ in lanes) - min(start for start, _, _ in lanes)
