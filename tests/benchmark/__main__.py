"""Time the engine and the job against what a user could pick instead, on the same pairs and model.

    python -m tests.benchmark --model.name DIR --input.path IN.parquet
    python -m tests.benchmark --bench.shape minilm-l6 --bench.mixes web --bench.mixes skewed

Every way runs in a process of its own, the ways take turns, round after round, and medians are
compared.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import pandas as pd

from jobs.output.record import versions
from jobs.output.tracking.client import fetch_model
from jobs.runtime.command import Command
from jobs.runtime.errors import DONE
from jobs.runtime.session import local_cores
from jobs.scoring.models import resolve_model
from jobs.scoring.stage import resolve_precision
from tests.benchmark.config import BenchmarkConfig, Way
from tests.benchmark.measure import Bench
from tests.benchmark.mixes import write_pairs
from tests.benchmark.rounds import ratio
from tests.benchmark.shapes import random_model
from udfs.devices import has_gpu

COMMAND: Final = Command(
    name="python -m tests.benchmark",
    about="Time the engine and the job against what a user could pick instead, on the same pairs "
    "and model.",
    require=("model.name|bench.shape",),
    sections="bench model batching input output mlflow spark",
    config=BenchmarkConfig,
)
# Which throughputs are divided.
_RATIOS: Final = (
    *(("engine", way) for way in get_args(Way) if way.startswith("sentence")),
    ("engine", "flagembedding"), ("job", "engine"), ("job", "predict_batch_udf"),
)  # fmt: skip
_COLUMNS: Final = (
    "mix", "what", "precision", "pairs_per_s", "tokens_per_s", "padding", "peak_memory_mb",
    "max_abs_difference", "error",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is one of `jobs.runtime.errors`."""
    return COMMAND.run(argv, run)


def run(config: BenchmarkConfig) -> int:
    """Compare, print, and write the result where `output.path` says."""
    with tempfile.TemporaryDirectory() as folder:
        result = compare(config, Path(folder))
    sys.stdout.write(table(result) + "\n")
    if config.output.path:
        target = Path(config.output.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return DONE


def compare(config: BenchmarkConfig, folder: Path) -> dict[str, Any]:
    """Measure every mix.

    Returns:
        `rows` (see `tests.benchmark.measure`), a list of `ratios` with their mix, the circumstances
        (`device`, `date`, `master`, `pairs`, `versions`), and `ratio`: job to predict_batch_udf
        with start-up, of the first mix.
    """
    model = folder / "model"
    if config.bench.shape is None:
        model = resolve_model(config.model, partial(fetch_model, config.mlflow.tracking_uri)).path
    else:
        model.mkdir()
        random_model(config.bench.shape, model)
    gpu = has_gpu() and config.model.device != "cpu"
    bench = Bench(
        config=config,
        model=model,
        precision=resolve_precision(config.model, gpu=gpu),
        lanes=1 if gpu else local_cores(config.spark.master),
        folder=folder,
    )
    rows: list[dict[str, Any]] = []
    ratios: list[dict[str, Any]] = []
    pairs = {}
    for mix in config.bench.mixes:
        path = folder / f"{mix}.parquet"
        pairs[mix] = write_pairs(config, mix, path)
        found = bench.rows(mix, path)
        rows += found
        ratios += [{"mix": mix, **each} for each in _ratios(found)]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": "cuda" if gpu else "cpu",
        "lanes": bench.lanes,
        "master": config.spark.master,
        "pairs": pairs,
        "rows": rows,
        "ratios": ratios,
        "ratio": next((found["ratio"] for found in ratios if found["start_up"]), None),
        "versions": versions(),
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the result for a terminal."""
    rounds = max((len(row.get("seconds", [])) for row in result["rows"]), default=0)
    rows = pd.DataFrame(result["rows"]).reindex(columns=_COLUMNS).dropna(axis=1, how="all")
    lines = [
        f"{result['device']}, {result['lanes']} at once, {result['master']}; after start-up, "
        f"medians of {rounds}",
        rows.to_string(index=False, na_rep="-"),
    ]
    for found in result["ratios"]:
        how = "with start-up" if found["start_up"] else "after start-up"
        lines.append(
            f"{found['mix']}: {found['fast']} {found['ratio']:.2f} times {found['slow']} ({how})"
        )
    if result["ratio"] is not None:
        lines.append(f"median ratio {result['ratio']:.2f}")
    return "\n".join(lines)


def _ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = [
        {"fast": fast, "slow": slow, "start_up": False, "ratio": ratio(rows, fast, slow)}
        for fast, slow in _RATIOS
    ]
    fast, slow = _RATIOS[-1]
    whole = ratio(rows, fast, slow, "seconds_with_start_up")
    found.append({"fast": fast, "slow": slow, "start_up": True, "ratio": whole})
    return [each for each in found if each["ratio"] is not None]


if __name__ == "__main__":
    sys.exit(main())
