"""Time the whole job against the obvious way of doing the same, on your own pairs and model.

    python -m jobs.bench --model.name DIR --input.path IN.parquet

Both run from Parquet to Parquet in processes of their own, start-up included, taking turns; the
medians are compared. The peer is Spark's `predict_batch_udf` around sentence-transformers'
CrossEncoder (`jobs.peers`).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq

from jobs.command import Command
from jobs.config import Config
from jobs.errors import DONE, RefusedError
from jobs.models import resolve_model
from jobs.record import versions
from jobs.shapes import random_model
from jobs.tracking.runs import fetch_model

COMMAND: Final = Command(
    name="python -m jobs.bench",
    about="Time the whole job against the obvious way of doing the same, on your own pairs and "
    "model.",
    require=("model.name|bench.shape", "input.path"),
)
JOB: Final = "job"
PEER: Final = "predict_batch_udf"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is one of `jobs.errors`."""
    return COMMAND.run(argv, run)


def run(config: Config) -> int:
    """Compare, print, and write the result where `output.path` says."""
    if find_spec("sentence_transformers") is None:
        raise RefusedError("the peer is not installed; pip install 'spark-rerank[peers]'")
    if config.bench.shape is None:
        fetch = partial(fetch_model, config.mlflow.tracking_uri)
        result = compare(config, resolve_model(config.model, fetch).path)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = compare(config, random_model(config.bench.shape, Path(folder)))
    sys.stdout.write(table(result) + "\n")
    if config.output.path:
        target = Path(config.output.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return DONE


def compare(config: Config, model: Path) -> dict[str, Any]:
    """Run both ways in turn, `bench.rounds` times.

    Returns:
        `rows`, one per way, with `what`, `precision`, `pairs_per_s` (median), `seconds` (every
        round) and `max_abs_difference` (of the logits, to the peer's float32); `ratio`, the median
        of the rounds' ratios job : peer; `versions`.
    """
    source = str(config.input.path)
    pairs = pq.read_table(source, columns=[config.input.doc_id]).num_rows
    seconds: dict[str, list[float]] = {JOB: [], PEER: []}
    with tempfile.TemporaryDirectory() as folder:
        for at in range(config.bench.rounds):
            outs = {what: f"{folder}/{what}-{at}" for what in seconds}
            commands = {
                JOB: _job_command(config, model, outs[JOB]),
                PEER: _peer_command(config, model, outs[PEER]),
            }
            for what, command in commands.items():
                seconds[what].append(_timed(command))
        difference = _largest_difference(f"{outs[JOB]}/ranked", outs[PEER])
        precision = json.loads(Path(f"{outs[JOB]}/run.json").read_text())["model"]["precision"]
    kinds = {JOB: (precision, difference), PEER: ("fp32", 0.0)}
    rows = [
        {
            "what": what,
            "mix": "given",
            "shape": config.bench.shape or str(config.model.name),
            "precision": kinds[what][0],
            "pairs_per_s": round(pairs / statistics.median(seconds[what]), 2),
            "seconds": [round(value, 2) for value in seconds[what]],
            "max_abs_difference": kinds[what][1],
        }
        for what in seconds
    ]
    ratios = [peer / job for job, peer in zip(seconds[JOB], seconds[PEER], strict=True)]
    return {
        "pairs": pairs,
        "master": config.spark.master,
        "rows": rows,
        "ratio": round(statistics.median(ratios), 3),
        "versions": versions(),
    }


def table(result: Mapping[str, Any]) -> str:
    """The result for a terminal."""
    lines = [
        f"{result['pairs']:,} pairs, {result['master']}, Parquet to Parquet, start-up included",
        f"{'what':<20} {'precision':<10} {'pairs/s':>9}  seconds (each round)",
    ]
    for row in result["rows"]:
        each = ", ".join(f"{value:.1f}" for value in row["seconds"])
        lines.append(f"{row['what']:<20} {row['precision']:<10} {row['pairs_per_s']:>9.1f}  {each}")
    lines.append(f"median ratio {result['ratio']:.2f}")
    difference = result["rows"][0]["max_abs_difference"]
    lines.append(f"largest difference of a logit to the peer's: {difference:.2g}")
    return "\n".join(lines)


def _job_command(config: Config, model: Path, out: str) -> list[str]:
    options = {
        "input.path": config.input.path,
        "model.name": model,
        "model.precision": config.model.precision,
        "batching.max_tokens": config.batching.max_tokens,
        "batching.window": config.batching.window,
        "spark.master": config.spark.master,
        "mlflow.enabled": "false",
        "output.path": out,
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "-m", "jobs.rerank", *words]


def _peer_command(config: Config, model: Path, out: str) -> list[str]:
    source, master = str(config.input.path), config.spark.master
    return [sys.executable, "-m", "jobs.peers", str(model), source, out, master]


def _timed(command: list[str]) -> float:
    start = time.perf_counter()
    # Otherwise Spark takes whichever python3 comes first on PATH.
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"{command[2]} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    return time.perf_counter() - start


def _largest_difference(ranked: str, peer: str) -> float:
    keys = ["query_id", "doc_id"]
    ours = pq.read_table(ranked, columns=[*keys, "score"]).to_pandas()
    theirs = pq.read_table(peer).to_pandas().astype({"query_id": str, "doc_id": str})
    both = ours.merge(theirs, on=keys, how="outer", suffixes=("", "_peer"))
    return float(np.abs(both["score"] - both["score_peer"]).max(skipna=False))


if __name__ == "__main__":
    sys.exit(main())
