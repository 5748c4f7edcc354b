"""One measurement of one scorer, in a process of its own so that its memory can be told.

The process is forked from a server that has torch in memory and no model. A process that the system
kills for its memory is an answer, too.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from udfs.devices import TaskSlot
from udfs.encoding.batching import plan_batches
from udfs.memory import catch_oom, peak
from udfs.scorers.base import OK, OUT_OF_MEMORY, Scores
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import ScorerSpec

KILLED: Final = "killed"
# What every architecture needs; `import transformers` alone imports next to nothing.
_PRELOAD: Final = [
    "torch", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.modeling_utils",
]  # fmt: skip
_WARM_UP: Final = 32  # pairs; the first batch of a process pays for what later ones find ready


@dataclass(frozen=True)
class Trial:
    """Result of scoring N pairs once.

    Attributes:
        outcome: `ok`, `out_of_memory`, `killed`, or the name of another error.
        logit: float32[N]; NaN where there is none.
        tokens: given to the model, padding not counted.
        padding: padding tokens given to the model.
        seconds: for tokenising and scoring all pairs, the model being loaded and warm [s].
        load_seconds: for loading the model [s].
        pair_ms: float32[N], each pair's share of the time on the device [ms].
        batch_ms: time of each batch on the device [ms].
        unscored: pairs that no batch was small enough for.
        halvings: batches that did not fit and were halved.
        memory_mb: most memory the process held, libraries included [MB].
        device_memory_mb: most memory held on a GPU [MB]; None without one.
    """

    outcome: str
    logit: NDArray[np.float32]
    tokens: int = 0
    padding: int = 0
    seconds: float = 0.0
    load_seconds: float = 0.0
    pair_ms: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    batch_ms: tuple[float, ...] = ()
    unscored: int = 0
    halvings: int = 0
    memory_mb: float = 0.0
    device_memory_mb: float | None = None


Measure = Callable[[Path, ScorerSpec, TaskSlot, Sequence[str], Sequence[str]], Trial]


def measure(
    path: Path, spec: ScorerSpec, slot: TaskSlot, queries: Sequence[str], docs: Sequence[str]
) -> Trial:
    """Load the model, warm it up, and score all pairs, window by window, as a worker does."""
    start = time.perf_counter()
    scorer = Scorer.load(path, spec, slot)
    loaded = time.perf_counter()
    scorer.score(queries[:_WARM_UP], docs[:_WARM_UP])
    warm = time.perf_counter()
    windows = [
        scorer.score(queries[at : at + spec.window], docs[at : at + spec.window])
        for at in range(0, len(docs), spec.window)
    ]
    done, held = time.perf_counter(), peak()
    return Trial(
        outcome=OK,
        logit=np.concatenate([scores.logit for scores in windows]),
        tokens=sum(int(scores.n_tokens.sum()) for scores in windows),
        padding=sum(int(scores.n_padded.sum()) for scores in windows),
        seconds=done - warm,
        load_seconds=loaded - start,
        pair_ms=np.concatenate([scores.device_ms for scores in windows]),
        batch_ms=tuple(ms for scores in windows for ms in _batch_times(scores, spec)),
        unscored=sum(int((scores.status == OUT_OF_MEMORY).sum()) for scores in windows),
        halvings=scorer.halvings,
        memory_mb=held.process_mb,
        device_memory_mb=held.device_mb,
    )


def in_fresh_process(
    path: Path, spec: ScorerSpec, slot: TaskSlot, queries: Sequence[str], docs: Sequence[str],
    how: Measure = measure,
) -> Trial:  # fmt: skip
    """Measure in a new process; an error there is part of the answer."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    receiver, sender = context.Pipe(duplex=False)
    given = (path, spec, slot, queries, docs)
    process = context.Process(target=_answer, args=(sender, how, given))
    process.start()
    sender.close()
    try:
        answer: Trial | str = receiver.recv()
    except EOFError:
        answer = KILLED
    process.join()
    receiver.close()
    if isinstance(answer, str):
        return Trial(answer, np.full(len(docs), np.nan, np.float32))
    return answer


def _answer(
    sender: Connection,
    how: Measure,
    given: tuple[Path, ScorerSpec, TaskSlot, Sequence[str], Sequence[str]],
) -> None:
    """Run in the new process. An error goes back by its name; its message could hold a text."""
    try:
        sender.send(catch_oom(lambda: how(*given)) or OUT_OF_MEMORY)
    except Exception as error:
        sender.send(type(error).__name__)


def _batch_times(scores: Scores, spec: ScorerSpec) -> list[float]:
    """Return the time of each batch [ms] from the shares of its pairs; lengths decide the plan."""
    plan = plan_batches(
        scores.n_tokens.tolist(), max_tokens=spec.max_tokens, max_pairs=spec.max_pairs
    )
    return [float(scores.device_ms[rows].sum()) for rows in plan]
