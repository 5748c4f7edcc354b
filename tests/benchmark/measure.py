"""Run every way in turn, round after round, and keep the medians."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tests.benchmark.config import BenchmarkConfig
from tests.benchmark.memory import MemoryWatch
from tests.benchmark.task import Outcome, Task
from udfs.encoding.pairs import PairEncoder
from udfs.spec import Precision

_OWN: Final = ("engine", "job")  # ways in the configured precision
_REFERENCE: Final = 256  # pairs scored in float32 to compare with
_LAST_WORDS: Final = 300  # characters of a failed way's last line
# A folder of other packages for the ways that this environment has no packages for.
_PEERS_PATH: Final = "PEERS_PATH"
_OTHER_PACKAGES: Final = ("sentence_transformers_onnx", "sentence_transformers_openvino")


@dataclass
class Measured:
    """What the rounds of one way measured."""

    outcomes: list[Outcome] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    error: str | None = None


@dataclass(frozen=True)
class Bench:
    """One model on one machine.

    Attributes:
        config: the user's.
        model: folder of the checkpoint.
        precision: of the engine.
        lanes: cores that the ways use.
        folder: for pairs and results.
    """

    config: BenchmarkConfig
    model: Path
    precision: Precision
    lanes: int
    folder: Path

    def rows(self, mix: str, pairs: Path) -> list[dict[str, Any]]:
        """Measure the configured ways on these pairs, and return a row per way."""
        reference = self._reference(pairs)
        ways = {way: Measured() for way in self.config.bench.ways}
        for _ in range(self.config.bench.rounds):
            for way, found in ways.items():
                if found.error is None:
                    self._once(way, pairs, found)
        tokens = self._lengths(pairs)
        return [self._row(way, mix, found, tokens, reference) for way, found in ways.items()]

    def _once(self, way: str, pairs: Path, found: Measured) -> None:
        outcome, memory = self._spawn(way, self._precision(way), pairs)
        if isinstance(outcome, str):
            found.error = outcome
            sys.stderr.write(f"{way} does not run: {outcome}\n")
        else:
            found.outcomes.append(outcome)
            found.memory += [] if memory is None else [memory]
            sys.stderr.write(f"{way}: {outcome.seconds:.1f} s\n")

    def _spawn(
        self, way: str, precision: Precision, pairs: Path
    ) -> tuple[Outcome | str, float | None]:
        """Return the outcome, or why there is none; and peak memory of all processes [MB]."""
        out = self.folder / f"{way}-{time.monotonic_ns()}"
        out.mkdir()
        task = self._task(way, precision, pairs, out)
        (out / "task.json").write_text(json.dumps(asdict(task)), encoding="utf-8")
        files = (str(out / "task.json"), str(out / "outcome.json"))
        # Otherwise Spark takes whichever python3 comes first on PATH.
        environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}
        if way in _OTHER_PACKAGES and (other := os.environ.get(_PEERS_PATH)):
            environment["PYTHONPATH"] = other
        with (out / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.benchmark.run", *files],
                env=environment, stdout=log, stderr=log,
            )  # fmt: skip
            with MemoryWatch(process.pid) as watch:
                code = process.wait()
        if code:
            lines = (out / "log").read_text(errors="replace").strip().splitlines()
            return (lines[-1][:_LAST_WORDS] if lines else f"exit code {code}"), None
        return Outcome(**json.loads((out / "outcome.json").read_text())), watch.peak

    def _task(self, way: str, precision: Precision, pairs: Path, out: Path) -> Task:
        return Task(
            way, self.config.model_dump(mode="json"), str(self.model), str(pairs), str(out),
            precision, self.lanes, time.time(),
        )  # fmt: skip

    def _reference(self, pairs: Path) -> NDArray[np.float64]:
        """float64[R]: logits of the first pairs in float32."""
        some = self.folder / f"reference-{pairs.name}"
        pq.write_table(pq.read_table(pairs).slice(0, _REFERENCE), some)
        outcome, _ = self._spawn("engine", "fp32", some)
        if isinstance(outcome, str):
            raise RuntimeError(f"the engine does not run in fp32: {outcome}")
        return np.array(outcome.scores)

    def _lengths(self, pairs: Path) -> NDArray[np.int64]:
        """int64[N]: tokens of each pair as the model is given them."""
        task = self._task("engine", self.precision, pairs, self.folder)
        return PairEncoder(self.model, task.spec()).encode(*task.texts()).lengths

    def _precision(self, way: str) -> Precision:
        if way in _OWN:
            return self.precision
        if way.endswith("bf16"):
            return "bf16"
        return "fp16" if way == "flagembedding" and self.precision == "fp16" else "fp32"

    def _row(
        self, way: str, mix: str, found: Measured, lengths: NDArray[np.int64],
        reference: NDArray[np.float64],
    ) -> dict[str, Any]:  # fmt: skip
        row: dict[str, Any] = {
            "what": way,
            "mix": mix,
            "shape": self.config.bench.shape or str(self.config.model.name),
            "precision": self._precision(way),
        }
        if found.error is not None:
            return row | {"error": found.error}
        last, tokens = found.outcomes[-1], int(lengths.sum())
        seconds = median(outcome.seconds for outcome in found.outcomes)
        padding = None if last.padding is None else last.padding / (tokens + last.padding)
        apart = np.abs(np.array(last.scores)[: len(reference)] - reference).max()
        return row | {
            "pairs_per_s": round(len(lengths) / seconds, 2),
            "tokens_per_s": round(tokens / seconds, 1),
            "padding": None if padding is None else round(padding, 5),
            "peak_memory_mb": round(max(found.memory)) if found.memory else None,
            "max_abs_difference": float(f"{apart:.3g}"),
            "seconds": [round(outcome.seconds, 3) for outcome in found.outcomes],
            "seconds_with_start_up": [
                None if outcome.started is None else round(outcome.started, 3)
                for outcome in found.outcomes
            ],
        }
