"""One measurement of one scorer, in a process of its own so that its memory can be told.

That process is forked from a server that has torch in memory and no model.
"""

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from udfs.devices import TaskSlot
from udfs.encoding.batching import plan_batches
from udfs.limits import catch_oom, peak
from udfs.scorers.base import OK, OUT_OF_MEMORY
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
    """Result of scoring N pairs once; 1 MB is 2^20 bytes."""

    outcome: str  # `ok`, `out_of_memory`, `killed`, or the name of another error
    logit: NDArray[np.float32]  # [N]; NaN where there is none
    tokens: int = 0  # given to the model, padding not counted
    padding: int = 0  # padding tokens given to the model
    seconds: float = 0.0  # for tokenising and scoring all pairs, the model being loaded and warm
    load_seconds: float = 0.0  # for loading the model
    # Each pair's share of the time on the device, float32[N], and the time of each batch [ms].
    pair_ms: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    batch_ms: tuple[float, ...] = ()
    unscored: int = 0  # pairs that no batch was small enough for
    halvings: int = 0  # batches that did not fit and were halved
    memory_mb: float = 0.0  # most memory the process held, libraries included
    device_memory_mb: float | None = None  # most memory held on a GPU; None without one


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
    limits = {"max_tokens": spec.max_tokens, "max_pairs": spec.max_pairs}
    batch_ms = [
        float(scores.device_ms[rows].sum())
        for scores in windows
        for rows in plan_batches(scores.n_tokens.tolist(), **limits)
    ]
    scores: NDArray[Any] = np.concatenate(windows)
    return Trial(
        outcome=OK,
        logit=scores["logit"],
        tokens=int(scores["n_tokens"].sum()),
        padding=int(scores["n_padded"].sum()),
        seconds=done - warm,
        load_seconds=loaded - start,
        pair_ms=scores["device_ms"],
        batch_ms=tuple(batch_ms),
        unscored=int((scores["status"] == OUT_OF_MEMORY).sum()),
        halvings=scorer.halvings,
        memory_mb=held.process_mb,
        device_memory_mb=held.device_mb,
    )


def in_fresh_process(
    path: Path, spec: ScorerSpec, slot: TaskSlot, queries: Sequence[str], docs: Sequence[str],
    how: Callable[..., Trial] = measure,
) -> Trial:  # fmt: skip
    """Measure in a new process; an error there is part of the answer, by its name only."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    outcome = OUT_OF_MEMORY
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        answer = pool.submit(catch_oom, partial(how, path, spec, slot, queries, docs))
        try:
            if trial := answer.result():
                return trial
        except BrokenProcessPool:
            outcome = KILLED
        except Exception as error:  # its message could hold a text
            outcome = type(error).__name__
    return Trial(outcome, np.full(len(docs), np.nan, np.float32))
