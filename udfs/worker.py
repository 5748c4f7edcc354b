"""One scorer per Python worker process, loaded on first use and kept across tasks.

On a CPU it has the weights in its own memory; those of a GPU are in another process, which all
workers of the executor hand their batches to (`udfs.lease`).
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from udfs.devices import TaskSlot, choose
from udfs.forward.base import LogitModel
from udfs.scorers.cross_encoder import PairScorer, Scorer
from udfs.scorers.stub import StubScorer
from udfs.spec import Precision, ScorerSpec

_ARCHIVE: Final = "archive:"
_lock: Final = threading.Lock()


@dataclass(frozen=True)
class Loaded:
    """A scorer in memory.

    Attributes:
        scorer: ready to score.
        seconds: what loading it took, here or in the process that this one was forked from [s].
    """

    scorer: PairScorer
    seconds: float


# By the GPU, too: Spark gives a worker's next task whichever is free.
_loaded: dict[tuple[ScorerSpec, str | None], Loaded] = {}


def get_scorer(
    spec: ScorerSpec,
    slot: TaskSlot,
    *,
    archive_root: Callable[[], str] | None = None,
    load: Callable[[Path, ScorerSpec, TaskSlot], PairScorer] | None = None,
) -> Loaded:
    """The scorer of this process for `spec`, loaded if it is not there yet.

    Runs on executors. Only those of the newest spec are kept: two models would share the memory of
    one device. Specs that differ only in how texts are made share a scorer.

    Args:
        spec: what to load.
        slot: cores and GPU of the calling task.
        archive_root: where Spark unpacked `archive:` models in this process.
        load: how a scorer comes into being, `load_for_task` unless a test counts its calls.
    """
    spec = spec.for_loading()
    load = load or load_for_task
    with _lock:
        found = _loaded.get((spec, slot.gpu))
        if found is None:
            for other in [key for key in _loaded if key[0] != spec]:
                del _loaded[other]
            start = time.perf_counter()
            if spec.backend == "stub":
                scorer: PairScorer = StubScorer()
            else:
                scorer = load(locate(spec.model_path, archive_root), spec, slot)
            found = Loaded(scorer, time.perf_counter() - start)
            _loaded[spec, slot.gpu] = found
            # It stays: without this, pyspark's worker looks through all of it, torch included, for
            # garbage after every task, a third of a second each time.
            gc.freeze()
        return found


def load_for_task(path: Path, spec: ScorerSpec, slot: TaskSlot) -> PairScorer:
    """Load the model, unless the task has a GPU: then the GPU's owner does, once for all."""
    if not owned(spec, slot):
        return Scorer.load(path, spec, slot)
    from udfs.lease import borrow

    # The owner watches over its batches. A worker may have to wait for those of all others.
    patient = replace(spec, batch_timeout=0.0)

    def lend(path: Path, _: ScorerSpec, slot: TaskSlot, precision: Precision) -> LogitModel:
        return borrow(path, spec, slot, precision)

    return Scorer.load(path, patient, slot, lend)


def owned(spec: ScorerSpec, slot: TaskSlot) -> bool:
    """Whether the model of this task belongs to a process of its own."""
    return spec.backend == "torch" and choose(spec.device, slot).type == "cuda"


def locate(model_path: str, archive_root: Callable[[], str] | None) -> Path:
    """The folder of a model as this process sees it."""
    if not model_path.startswith(_ARCHIVE):
        return Path(model_path)
    if archive_root is None:
        raise ValueError(f"{model_path} can only be found inside a Spark task; give a folder")
    return Path(archive_root()) / model_path.removeprefix(_ARCHIVE)
