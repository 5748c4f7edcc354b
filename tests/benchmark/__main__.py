"""One way, once: `python -m tests.benchmark TASK.json OUTCOME.json`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

from tests.benchmark.task import Outcome, Task


def main(task_file: str, outcome_file: str) -> None:
    """Run the task's way and leave what it measured."""
    task = Task.read(Path(task_file))
    Path(outcome_file).write_text(json.dumps(asdict(run(task))), encoding="utf-8")


def run(task: Task) -> Outcome:
    """The way by its name. What it imports is imported for it alone, as start-up is measured."""
    if task.what in ("engine", "tokenizer", "peak"):
        from tests.benchmark import engine

        found = {"engine": engine.engine, "tokenizer": engine.tokenizer, "peak": engine.peak}
        return found[task.what](task)
    if task.what in ("job", "predict_batch_udf"):
        from tests.benchmark import spark

        return spark.job(task) if task.what == "job" else spark.predict_batch_udf(task)
    from tests.benchmark import peers

    ways = {
        "sentence_transformers": peers.sentence_transformers,
        "flagembedding": peers.flagembedding,
    }
    return ways[task.what](task)


if __name__ == "__main__":
    main(*sys.argv[1:3])
