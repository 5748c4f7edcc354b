"""One scorer per Python worker process, loaded on first use and kept across tasks."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from udfs.devices import TaskSlot
from udfs.scorer import PairScorer, Scorer
from udfs.spec import ScorerSpec
from udfs.standins import StubScorer

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


_loaded: dict[ScorerSpec, Loaded] = {}


def get_scorer(
    spec: ScorerSpec,
    slot: TaskSlot,
    *,
    archive_root: Callable[[], str] | None = None,
    load: Callable[[Path, ScorerSpec, TaskSlot], PairScorer] = Scorer.load,
) -> Loaded:
    """The scorer of this process for `spec`, loaded if it is not there yet.

    Runs on executors. Only the newest is kept: two models would share the memory of one device.
    Specs that differ only in how texts are made share a scorer.

    Args:
        spec: what to load.
        slot: cores and GPU of the calling task.
        archive_root: where Spark unpacked `archive:` models in this process.
        load: how a scorer comes into being; a test counts its calls.
    """
    spec = spec.for_loading()
    with _lock:
        found = _loaded.get(spec)
        if found is None:
            _loaded.clear()
            start = time.perf_counter()
            if spec.backend == "stub":
                scorer: PairScorer = StubScorer()
            else:
                scorer = load(locate(spec.model_path, archive_root), spec, slot)
            found = Loaded(scorer, time.perf_counter() - start)
            _loaded[spec] = found
            # It stays: without this, pyspark's worker looks through all of it, torch included, for
            # garbage after every task, a third of a second each time.
            gc.freeze()
        return found


def locate(model_path: str, archive_root: Callable[[], str] | None) -> Path:
    """The folder of a model as this process sees it."""
    if not model_path.startswith(_ARCHIVE):
        return Path(model_path)
    if archive_root is None:
        raise ValueError(f"{model_path} can only be found inside a Spark task; give a folder")
    return Path(archive_root()) / model_path.removeprefix(_ARCHIVE)
