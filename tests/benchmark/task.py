"""What the process of a way is given, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.scoring.stage import make_spec
from tests.benchmark.config import BenchmarkConfig
from udfs.checkpoint import Checkpoint
from udfs.spec import Precision, ScorerSpec


@dataclass(frozen=True)
class Task:
    """One run of one way.

    Attributes:
        way: its name.
        config: the benchmark's configuration, as JSON.
        model: folder of the checkpoint.
        pairs: Parquet file of the pairs (`tests.benchmark.mixes`).
        out: folder for what the way writes.
        precision: number type of the model.
        lanes: cores to be used.
        spawned: when the process was started [s since 1970].
    """

    way: str
    config: dict[str, Any]
    model: str
    pairs: str
    out: str
    precision: Precision
    lanes: int
    spawned: float

    @property
    def settings(self) -> BenchmarkConfig:
        """The configuration."""
        return BenchmarkConfig.model_validate(self.config)

    def texts(self) -> tuple[list[str], list[str]]:
        """Return queries and documents, in the order of the file."""
        table = pq.read_table(self.pairs, columns=["query", "doc"])
        return table["query"].to_pylist(), table["doc"].to_pylist()

    def spec(self) -> ScorerSpec:
        """Return the engine's settings."""
        model, batching = self.settings.model, self.settings.batching
        checkpoint = Checkpoint(Path(self.model), "", "", None, 0)
        return make_spec(model, batching, checkpoint, self.precision)


@dataclass(frozen=True)
class Outcome:
    """What a way measured.

    Attributes:
        seconds: time of all pairs, after start-up [s].
        scores: logit of every pair, in the order of the file.
        started: from the start of the process to the end of the first pass over all pairs [s];
            None where there is no such pass.
        padding: padding tokens given to the model; None if the way does not tell.
    """

    seconds: float
    scores: list[float]
    started: float | None = None
    padding: int | None = None
