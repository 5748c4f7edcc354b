"""Runs every way in turn, round after round, and keeps the medians."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tests.benchmark.config import BenchmarkConfig
from tests.benchmark.memory import MemoryWatch
from tests.benchmark.shapes import model_flops
from tests.benchmark.task import Outcome, Task
from udfs.encoding.pairs import PairEncoder
from udfs.spec import Precision

PEAK: Final = "peak"
_TOKENIZER: Final = "tokenizer"
_PEERS: Final = ("sentence_transformers", "flagembedding", "predict_batch_udf")
_REFERENCE: Final = 256  # pairs scored in float32 to compare with
_LAST_WORDS: Final = 300  # characters of a failed way's last line


@dataclass
class Measured:
    """What the rounds of one way found."""

    precision: Precision
    outcomes: list[Outcome] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def seconds(self) -> float:
        """Median time of all pairs, after start-up [s]."""
        return median(outcome.seconds for outcome in self.outcomes)

    @property
    def gflops(self) -> float:
        """Median operations per second of the peak [GFLOP/s]."""
        return median(outcome.gflops or 0.0 for outcome in self.outcomes)


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
        """Measure the configured ways on these pairs: a row per way, those of `PEAK` last."""
        reference = self._reference(pairs)
        ways = {way: Measured(self._precision(way)) for way in self.config.bench.ways}
        kinds = {found.precision for found in ways.values()}
        wanted = ways.pop(PEAK, None) is not None
        peaks = {kind: Measured(kind) for kind in sorted(kinds) if wanted}
        for _ in range(self.config.bench.rounds):
            for kind, found in peaks.items():
                self._once(PEAK, kind, pairs, found)
            for way, found in ways.items():
                if found.error is None:
                    self._once(way, found.precision, pairs, found)
        lengths = self._lengths(pairs)
        rows = [
            self._row(way, mix, found, lengths, peaks.get(found.precision), reference)
            for way, found in ways.items()
        ]
        return rows + [self._row(PEAK, mix, found, lengths) for found in peaks.values()]

    def _once(self, way: str, precision: Precision, pairs: Path, found: Measured) -> None:
        outcome, memory = self._spawn(way, precision, pairs)
        if isinstance(outcome, str):
            found.error = outcome
            sys.stderr.write(f"{way} does not run: {outcome}\n")
        else:
            found.outcomes.append(outcome)
            found.memory += [] if memory is None else [memory]
            sys.stderr.write(f"{way} {precision}: {outcome.seconds:.1f} s\n")

    def _spawn(
        self, way: str, precision: Precision, pairs: Path
    ) -> tuple[Outcome | str, float | None]:
        """Outcome, or why there is none; and peak memory of all its processes [MB]."""
        out = self.folder / f"{way}-{time.monotonic_ns()}"
        out.mkdir()
        config = self.config.model_dump(mode="json")
        task = Task(
            way, config, str(self.model), str(pairs), str(out), precision, self.lanes, time.time()
        )
        task.write(out / "task.json")
        files = (str(out / "task.json"), str(out / "outcome.json"))
        command = [sys.executable, "-m", "tests.benchmark", *files]
        # Otherwise Spark takes whichever python3 comes first on PATH.
        environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}
        with (out / "log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            with MemoryWatch(process.pid) as watch:
                code = process.wait()
        if code:
            lines = (out / "log").read_text(errors="replace").strip().splitlines()
            return (lines[-1][:_LAST_WORDS] if lines else f"exit code {code}"), None
        return Outcome(**json.loads((out / "outcome.json").read_text())), watch.peak

    def _reference(self, pairs: Path) -> NDArray[np.float64]:
        """float64[R]: logits of the first pairs in float32; empty if the engine cannot run."""
        some = self.folder / f"reference-{pairs.name}"
        pq.write_table(pq.read_table(pairs).slice(0, _REFERENCE), some)
        outcome, _ = self._spawn("engine", "fp32", some)
        if isinstance(outcome, str):
            raise RuntimeError(f"the engine does not run in fp32: {outcome}")
        return np.array(outcome.scores)

    def _lengths(self, pairs: Path) -> NDArray[np.int64]:
        """int64[N]: tokens of each pair as the model is given them."""
        task = Task("engine", self.config.model_dump(mode="json"), str(self.model), str(pairs), "",
                    self.precision, 1, 0.0)  # fmt: skip
        return PairEncoder.load(self.model, task.spec()).encode(*task.texts()).lengths

    def _precision(self, way: str) -> Precision:
        if way not in _PEERS:
            return self.precision
        on_gpu = way == "flagembedding" and self.precision == "fp16"
        return "fp16" if on_gpu else "fp32"

    def _row(
        self,
        way: str,
        mix: str,
        found: Measured,
        lengths: NDArray[np.int64],
        peak: Measured | None = None,
        reference: NDArray[np.float64] | None = None,
    ) -> dict[str, Any]:
        row: dict[str, Any] = {
            "what": way,
            "mix": mix,
            "shape": self.config.bench.shape or str(self.config.model.name),
            "precision": found.precision,
            "pairs_per_s": None,
            "tokens_per_s": None,
            "utilisation": None,
            "padding": None,
            "peak_memory_mb": round(max(found.memory)) if found.memory else None,
            "max_abs_difference": None,
        }
        if found.error is not None:
            return row | {"error": found.error}
        if way == PEAK:
            return row | {"gflops": round(found.gflops, 1)}
        last, tokens = found.outcomes[-1], int(lengths.sum())
        row["pairs_per_s"] = round(len(lengths) / found.seconds, 2)
        row["tokens_per_s"] = round(tokens / found.seconds, 1)
        if peak and way != _TOKENIZER:
            reached = model_flops(self.model, lengths) / found.seconds / 1e9
            row["utilisation"] = round(reached / peak.gflops, 4)
        if last.padding is not None:
            row["padding"] = round(last.padding / (tokens + last.padding), 5)
        if last.scores is not None and reference is not None:
            apart = np.abs(np.array(last.scores)[: len(reference)] - reference).max()
            row["max_abs_difference"] = None if np.isnan(apart) else float(f"{apart:.3g}")
        return row | {
            "seconds": [round(outcome.seconds, 3) for outcome in found.outcomes],
            "seconds_with_start_up": [
                None if outcome.started is None else round(outcome.started, 3)
                for outcome in found.outcomes
            ],
            "parts": _rounded(last.parts),
        }


def ratio(
    rows: Sequence[Mapping[str, Any]], fast: str, slow: str, key: str = "seconds"
) -> float | None:
    """Median of the rounds' ratios of throughput fast : slow; None if one of them is missing."""
    found = {row["what"]: row.get(key) or [] for row in rows}
    both = zip(found.get(fast, []), found.get(slow, []), strict=False)
    ratios = [theirs / ours for ours, theirs in both if ours and theirs]
    return round(median(ratios), 3) if ratios else None


def _rounded(parts: Mapping[str, float] | None) -> dict[str, float] | None:
    return {name: round(value, 3) for name, value in parts.items()} if parts else None
