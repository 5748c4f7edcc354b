"""Workers of a local job are forked from a process that has the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from udfs.devices import may_have_gpu

# What two workers at once say of the scorer they found. Loading takes each process another time.
_PROGRAM = """
import json, os, sys, time
from jobs.config import Config
from jobs.preflight import check_rerank
from jobs.output.record import Stopwatch
from jobs.scoring.stage import make_spec

config = Config.model_validate(json.loads(sys.argv[1]))
ready = check_rerank(config, Stopwatch())
ready.workers.join()
spec = make_spec(config, ready.checkpoint)

def found(_):
    from udfs import worker
    from udfs.devices import TaskSlot
    loaded = worker._loaded.get((spec.for_loading(), None))
    scores = loaded and loaded.scorer.score(["fleas"] * 40, ["fleas on dogs"] * 40)
    time.sleep(1)  # both slots are in use
    yield os.getpid(), loaded and loaded.seconds, loaded and float(scores.logit[0])

print(json.dumps(ready.spark.sparkContext.parallelize([0, 1], 2).mapPartitions(found).collect()))

# SQL takes its workers from the same daemon.
from pathlib import Path
from udfs.udf import rerank_udf

table = ready.pairs.rows.select(rerank_udf(spec)("query", "doc").alias("s")).select("s.status")
status = [row[0] for row in table.collect()]
jvm = ready.spark._jvm.ProcessHandle.current().pid()
children = Path(f"/proc/{jvm}/task").glob("*/children")
started = [pid for file in children for pid in file.read_text().split()]
daemons = [pid for pid in started if "udfs.daemon" in Path(f"/proc/{pid}/cmdline").read_text()]
print(json.dumps([status, len(daemons)]))
ready.spark.stop()
"""


@pytest.mark.skipif(may_have_gpu(), reason="CUDA does not survive a fork")
def test_two_workers_find_one_model_in_memory(tiny_bert: Path, tmp_path: Path) -> None:
    table = tmp_path / "pairs.jsonl"
    row = {"query_id": "q", "query": "fleas", "doc_id": "d", "doc": "fleas on dogs"}
    table.write_text(json.dumps(row) + "\n")
    config = {
        "input": {"path": str(table)},
        "output": {"path": str(tmp_path / "out")},
        "model": {"name": str(tiny_bert), "max_length": 64, "precision": "fp32", "device": "cpu"},
        "spark": {"master": "local[2]"},
    }
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, json.dumps(config)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    (first, second), (status, daemons) = map(json.loads, ended.stdout.splitlines()[-2:])
    assert status == ["ok"] and daemons == 1
    assert first[0] != second[0]  # two processes
    assert first[1] is not None and first[1] == second[1]  # that loaded nothing themselves
    assert first[2] == second[2]
