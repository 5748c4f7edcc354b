"""The scorer of a Python worker process: one, loaded on first use and kept across tasks."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from udfs.devices import TaskSlot
from udfs.scorers.base import PairScorer
from udfs.scorers.cross_encoder import Scorer
from udfs.scorers.stub import StubScorer
from udfs.spec import ScorerSpec

_ARCHIVE: Final = "archive:"
_lock: Final = threading.Lock()


@dataclass(frozen=True)
class Loaded:
    """A scorer in memory.

    Attributes:
        spec: what it was loaded for.
        gpu: address of its GPU, or None.
        scorer: ready to score.
        seconds: time to load it [s].
    """

    spec: ScorerSpec
    gpu: str | None
    scorer: PairScorer
    seconds: float


_loaded: Loaded | None = None


def get_scorer(
    spec: ScorerSpec,
    slot: TaskSlot,
    *,
    archive_root: Callable[[], str] | None = None,
    load: Callable[[Path, ScorerSpec, TaskSlot], PairScorer] = Scorer.load,
) -> Loaded:
    """Return the scorer of this process for `spec`, loaded if it is not there yet.

    Runs on executors. A scorer of another spec, or on another GPU than the task's, is released
    first: two models would share the memory of one device.

    Args:
        spec: what to load.
        slot: cores and GPU of the calling task.
        archive_root: where Spark unpacks `archive:` models in this process.
        load: makes a scorer of a folder.
    """
    global _loaded
    with _lock:
        if _loaded is None or (_loaded.spec, _loaded.gpu) != (spec, slot.gpu):
            if _loaded is not None:
                _loaded = None
                gc.unfreeze()
                gc.collect()
            start = time.perf_counter()
            if spec.backend == "stub":
                scorer: PairScorer = StubScorer()
            else:
                scorer = load(locate(spec.model_path, archive_root), spec, slot)
            _loaded = Loaded(spec, slot.gpu, scorer, time.perf_counter() - start)
            # pyspark's worker collects garbage after every task: a third of a second through all
            # objects of torch and the model, unless they are frozen.
            gc.freeze()
        return _loaded


def locate(model_path: str, archive_root: Callable[[], str] | None) -> Path:
    """Return the folder of a model as this process sees it."""
    if not model_path.startswith(_ARCHIVE):
        return Path(model_path)
    if archive_root is None:
        raise ValueError(f"{model_path} can only be found inside a Spark task; give a folder")
    return Path(archive_root()) / model_path.removeprefix(_ARCHIVE)
