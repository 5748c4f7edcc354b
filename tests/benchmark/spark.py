"""The two ways through Spark, Parquet to Parquet: this job, and `predict_batch_udf`.

Each runs twice in one process. The first pass starts JVM, workers and model; the second finds them
started.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from jobs.rerank import run as rerank
from tests.benchmark.config import BenchmarkConfig
from tests.benchmark.peers import cross_encoder_udf
from tests.benchmark.task import Outcome, Task


def job(task: Task) -> Outcome:
    """Run `jobs.rerank` with a store of its own for each pass, so that every pair is scored."""
    config = task.settings

    def run(out: str) -> None:
        sections = {
            "model": config.model.model_copy(
                update={"name": task.model, "revision": None, "precision": task.precision}
            ),
            "batching": config.batching,
            "spark": config.spark,
        }
        # What else the user configured (names of columns, gates) is not what is measured.
        plain = BenchmarkConfig.model_validate(
            {
                "input": {"path": task.pairs},
                "output": {"path": out},
                "mlflow": {"enabled": False},
                **{name: section.model_dump() for name, section in sections.items()},
            }
        )
        rerank(plain)

    seconds, started = _twice(task, run)
    record = json.loads(Path(f"{task.out}/second/run.json").read_text(encoding="utf-8"))
    scores = _in_order(task, f"{task.out}/second/ranked")
    return Outcome(seconds, scores, started, record["tokens"]["padding"])


def predict_batch_udf(task: Task) -> Outcome:
    """Score a Parquet table into another one, as a user of the two libraries would."""
    builder = SparkSession.Builder().appName("predict_batch_udf")
    spark = (
        builder.master(task.settings.spark.master)
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .getOrCreate()
    )
    score = cross_encoder_udf(task.model, task.settings.model.max_length)("query", "doc")

    def run(out: str) -> None:
        # As many partitions as cores: one small file would otherwise be scored by one of them.
        rows = spark.read.parquet(task.pairs).repartition(spark.sparkContext.defaultParallelism)
        rows.select("query_id", "doc_id", score.alias("score")).write.parquet(f"{out}/ranked")

    seconds, started = _twice(task, run)
    return Outcome(seconds, _in_order(task, f"{task.out}/second/ranked"), started)


def _twice(task: Task, run: Callable[[str], None]) -> tuple[float, float]:
    """Return the time of the second pass, and that from the process's start to the first's end."""
    run(f"{task.out}/first")
    started = time.time() - task.spawned
    start = time.perf_counter()
    run(f"{task.out}/second")
    return time.perf_counter() - start, started


def _in_order(task: Task, ranked: str) -> list[float]:
    """Scores in the order of the pairs; NaN where a pair has none."""
    keys = ["query_id", "doc_id"]
    pairs = pq.read_table(task.pairs, columns=keys).to_pandas().astype(str)
    scores = pq.read_table(ranked, columns=[*keys, "score"]).to_pandas()
    scores = scores.astype(dict.fromkeys(keys, str))
    return [float(value) for value in pairs.merge(scores, on=keys, how="left")["score"]]
