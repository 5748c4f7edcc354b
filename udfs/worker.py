"""The scorer of a Python worker process: one, loaded on first use and kept across tasks."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from udfs.devices import TaskSlot
from udfs.limits import free_unused
from udfs.scorers.base import PairScorer, StubScorer
from udfs.scorers.cross_encoder import Scorer
from udfs.spec import ScorerSpec


@dataclass(frozen=True)
class Loaded:
    """A scorer in memory: what it was loaded for, on which GPU, and how long that took [s]."""

    spec: ScorerSpec
    gpu: str | None
    scorer: PairScorer
    seconds: float


_loaded: Loaded | None = None


def get_scorer(
    folder: Path,
    spec: ScorerSpec,
    slot: TaskSlot,
    load: Callable[[Path, ScorerSpec, TaskSlot], PairScorer] = Scorer.load,
) -> Loaded:
    """Return the scorer of this process for `spec`, loaded if it is not there yet.

    Runs on executors; `folder` is the model's as this process sees it. A scorer of another spec, or
    on another GPU than the task's, is released first: two would share the memory of one device.
    """
    global _loaded
    if _loaded is None or (_loaded.spec, _loaded.gpu) != (spec, slot.gpu):
        if _loaded is not None:
            _loaded = None
            gc.unfreeze()
            gc.collect()
            free_unused()
        start = time.perf_counter()
        if spec.remote is not None:
            from udfs.scorers.remote import RemoteScorer  # which needs a package of its own

            scorer: PairScorer = RemoteScorer(spec.remote)
        else:
            scorer = StubScorer() if spec.backend == "stub" else load(folder, spec, slot)
        if spec.passages is not None:
            from udfs.scorers.passages import PassageScorer

            scorer = PassageScorer(cast(Scorer, scorer), spec.passages)
        _loaded = Loaded(spec, slot.gpu, scorer, time.perf_counter() - start)
        # pyspark's worker collects garbage after every task: a third of a second through all
        # objects of torch and the model, unless they are frozen.
        gc.freeze()
    return _loaded
