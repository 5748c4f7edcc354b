"""spark-submit on real executors: processes of their own, with a made-up GPU for each task."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest

from jobs.runtime.errors import DONE, GATE_NOT_PASSED
from tests.conftest import ROOT
from tests.sample import SAMPLE

# Four JVMs each.
pytestmark = pytest.mark.slow

SUBMIT = Path(pyspark.__file__).parent / "bin" / "spark-submit"
KEYS = ["query_id", "rank"]


@pytest.fixture
def discovery(tmp_path: Path) -> Path:
    """A script that finds a GPU where there is none."""
    script = tmp_path / "gpus.sh"
    gpu = json.dumps({"name": "gpu", "addresses": ["0"]})
    script.write_text(f"#!/bin/sh\necho '{gpu}'\n")
    script.chmod(0o755)
    return script


def options(model: Path, out: Path) -> list[str]:
    given = {
        "input.path": SAMPLE, "input.doc_template": "{title}\\n{body}",
        "model.name": model, "model.max_length": 64, "model.precision": "fp32",
        "mlflow.enabled": "false", "output.path": out,
    }  # fmt: skip
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def confs(settings: Mapping[str, object]) -> list[str]:
    return [word for key, value in settings.items() for word in ("--conf", f"{key}={value}")]


def submit(master: str, *words: str) -> subprocess.CompletedProcess[str]:
    """spark-submit with the project in a zip."""
    zipped = subprocess.run(
        [sys.executable, ".make/zip.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PYSPARK_PYTHON"] = sys.executable
    return subprocess.run(
        [str(SUBMIT), "--master", master, "--py-files", zipped, *words],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip


def test_a_gate_that_fails_is_the_exit_code_of_spark_submit(tmp_path: Path) -> None:
    pairs = [json.loads(line) for line in SAMPLE.open(encoding="utf-8")]
    columns = ("query_id", "doc_id", "retrieval_score", "label")
    table = {name: [row[name] for row in pairs] for name in columns}
    table["score"] = [float(row["label"]) for row in pairs]
    (tmp_path / "ranked").mkdir()
    pq.write_table(pa.table(table), tmp_path / "ranked" / "part.parquet")
    given = {
        "ranked.path": tmp_path / "ranked", "output.path": tmp_path / "out",
        "mlflow.enabled": "false", "evaluation.gate": "nDCG@10 >= 1",
    }  # fmt: skip
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    gates = {"nDCG@10 first_stage >= 0.6": DONE, "RR@10 first_stage >= 0.6": GATE_NOT_PASSED}
    for rule, code in gates.items():
        ended = submit("local[2]", "jobs/evaluate.py", *words, "--evaluation.gate", rule)
        assert ended.returncode == code, ended.stderr[-3000:]


@pytest.mark.parametrize("ship", ["path", "archive"])
def test_a_cluster_gives_the_ranked_table_of_a_local_run(
    ship: str, tiny_bert: Path, discovery: Path, tmp_path: Path
) -> None:
    settings = {
        "spark.worker.resource.gpu.amount": "1",
        "spark.worker.resource.gpu.discoveryScript": str(discovery),
        "spark.executor.resource.gpu.amount": "1",
        "spark.executor.resource.gpu.discoveryScript": str(discovery),
        "spark.task.resource.gpu.amount": "1",
        "spark.ui.enabled": "false",
    }
    given = [*options(tiny_bert, tmp_path / "cluster"), "--model.ship", ship]
    ended = submit("local-cluster[2,1,1024]", *confs(settings), "jobs/rerank.py", *given)
    assert ended.returncode == 0, ended.stderr[-3000:]
    equals_a_local_run(tiny_bert, tmp_path)


def equals_a_local_run(model: Path, tmp_path: Path) -> None:
    """The ranked table in `cluster` against that of a local run."""
    local = subprocess.run(
        [sys.executable, "-m", "jobs.rerank", "--spark.master", "local[2]",
         *options(model, tmp_path / "local")],
        cwd=ROOT, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert local.returncode == 0, local.stderr[-3000:]
    ours, theirs = (
        pq.read_table(tmp_path / name / "ranked").to_pandas().sort_values(KEYS, ignore_index=True)
        for name in ("cluster", "local")
    )
    assert len(ours) == 245
    assert ours["doc_id"].tolist() == theirs["doc_id"].tolist()
    np.testing.assert_allclose(ours["score"], theirs["score"], rtol=1e-4, atol=1e-4)
    run = json.loads((tmp_path / "cluster" / "run.json").read_text())
    assert run["counts"]["scored"] == 245


def logged(events: Path) -> Iterator[list[dict[str, Any]]]:
    """What an event log says of executors, and of stages."""
    (log,) = [file for file in events.rglob("*") if file.is_file() and file.name[0] != "."]
    lines = [json.loads(line) for line in log.open(encoding="utf-8")]
    events_of = {"Executor Info": "SparkListenerExecutorAdded",
                 "Stage Info": "SparkListenerStageSubmitted"}  # fmt: skip
    return ([row[info] for row in lines if row["Event"] == event]
            for info, event in events_of.items())  # fmt: skip


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """A folder for the event log."""
    folder = tmp_path / "events"
    folder.mkdir()
    return folder


def with_log(events: Path, discovery: Path) -> dict[str, object]:
    """Settings of workers with a made-up GPU, and of executors; the event log goes to a folder."""
    return {
        "spark.worker.resource.gpu.amount": "1",
        "spark.worker.resource.gpu.discoveryScript": discovery,
        "spark.executor.memory": "700m",
        "spark.ui.enabled": "false",
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": events.as_uri(),
        "spark.eventLog.compress": "false",
        "spark.eventLog.rolling.enabled": "false",
    }


def test_executors_that_have_gpus_share_them_out_when_it_comes_to_scoring(
    tiny_bert: Path, discovery: Path, events: Path, tmp_path: Path
) -> None:
    """Reading and ranking use all cores, of executors that are the same all the time."""
    settings = {
        **with_log(events, discovery),
        "spark.executor.resource.gpu.amount": "1",
        "spark.executor.resource.gpu.discoveryScript": discovery,
        "spark.executor.cores": "2",
    }
    given = options(tiny_bert, tmp_path / "cluster")
    ended = submit("local-cluster[1,2,1024]", *confs(settings), "jobs/rerank.py", *given)
    assert ended.returncode == 0, ended.stderr[-3000:]
    executors, stages = logged(events)
    assert {row["Resource Profile Id"] for row in executors} == {0}
    other = {stage["Stage ID"] for stage in stages if stage["Resource Profile Id"]}
    assert len(other) == 1
    equals_a_local_run(tiny_bert, tmp_path)


def test_only_the_scoring_stage_gets_executors_with_gpus(
    tiny_bert: Path, discovery: Path, events: Path, tmp_path: Path
) -> None:
    """Stage-level scheduling: the event log says what each stage asked for."""
    settings = {
        **with_log(events, discovery),
        "spark.executor.cores": "1",
        "spark.dynamicAllocation.enabled": "true",
        "spark.dynamicAllocation.shuffleTracking.enabled": "true",
    }
    scoring = {
        "gpus": 1, "cores": 1, "memory": "700m", "memory_overhead": "384m",
        "discovery_script": discovery,
    }  # fmt: skip
    words = [word for key, value in scoring.items() for word in (f"--scoring.{key}", str(value))]
    given = [*options(tiny_bert, tmp_path / "cluster"), *words]
    ended = submit("local-cluster[2,2,2048]", *confs(settings), "jobs/rerank.py", *given)
    assert ended.returncode == 0, ended.stderr[-3000:]
    executors, stages = logged(events)
    with_gpu = {row["Resource Profile Id"] for row in executors if row["Resources"]}
    without = {row["Resource Profile Id"] for row in executors if not row["Resources"]}
    assert without == {0} and len(with_gpu) == 1 and not with_gpu & without
    assert len({s["Stage ID"] for s in stages if s["Resource Profile Id"] in with_gpu}) == 1
    assert {s["Resource Profile Id"] for s in stages} == with_gpu | without
    equals_a_local_run(tiny_bert, tmp_path)


@pytest.fixture
def standalone(discovery: Path, tmp_path: Path) -> Iterator[str]:
    """A master and two workers of the pip package, each with a made-up GPU."""
    started: list[subprocess.Popen[bytes]] = []
    gpu = {"amount": "1", "discoveryScript": str(discovery)}
    workers = " ".join(f"-Dspark.worker.resource.gpu.{key}={value}" for key, value in gpu.items())

    def start(name: str, *words: str) -> Path:
        log = tmp_path / f"{name}-{len(started)}.log"
        with log.open("wb") as stream:
            started.append(
                subprocess.Popen(
                    [str(SUBMIT.with_name("spark-class")),
                     f"org.apache.spark.deploy.{name.lower()}.{name}",
                     "--host", "127.0.0.1", "--port", "0", "--webui-port", "0", *words],
                    stdout=stream, stderr=subprocess.STDOUT, start_new_session=True,
                    env={**os.environ, "SPARK_WORKER_OPTS": workers},
                )
            )  # fmt: skip
        return log

    try:
        master = said(start("Master"), r"Starting Spark master at (spark://\S+)")
        for _ in range(2):
            work = tmp_path / f"work-{len(started)}"
            log = start("Worker", "--cores", "1", "--memory", "1g", "--work-dir", str(work), master)
            said(log, r"(Successfully registered) with master")
        yield master
    finally:
        for process in reversed(started):
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def said(log: Path, pattern: str) -> str:
    """What a daemon writes once it is ready."""
    for _ in range(600):
        if found := re.search(pattern, log.read_text(errors="replace")):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(log.read_text(errors="replace")[-2000:])


def test_a_standalone_cluster_with_its_environment_in_an_archive(
    standalone: str, tiny_bert: Path, discovery: Path, tmp_path: Path
) -> None:
    """The commands of the README; executors have no package but those in the archive."""
    made = subprocess.run(
        ["make", "environment"], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert made.returncode == 0, made.stderr[-3000:]
    smaller = {
        "spark.executor.resource.gpu.discoveryScript": discovery,
        "spark.pyspark.driver.python": sys.executable,
        "spark.executor.cores": 1, "spark.task.cpus": 1, "spark.executor.memory": "700m",
        # Whichever package an executor had beside the archive would come from here.
        "spark.executorEnv.PYTHONNOUSERSITE": 1,
    }  # fmt: skip
    ended = submit(
        standalone, "--properties-file", "conf/cluster/standalone.conf", *confs(smaller),
        "--archives", "dist/environment.tar.gz#environment",
        "jobs/rerank.py", *options(tiny_bert, tmp_path / "cluster"),
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    works = list(tmp_path.glob("work-*/app-*/*/environment/bin/python"))
    assert len(works) == 2  # both workers had the environment
    equals_a_local_run(tiny_bert, tmp_path)


def test_the_udf_works_in_a_connect_session(tiny_bert: Path) -> None:
    """A real Connect server and client; the jobs themselves refuse such a session."""
    pytest.importorskip("grpc")
    code = f"""
from pyspark.sql import SparkSession
from udfs.udf import rerank_udf
from udfs.scorers.cross_encoder import Scorer
from udfs.devices import TaskSlot
from udfs.spec import ScorerSpec
from pathlib import Path
from typing import Any

spark = SparkSession.builder.remote("local[1]").getOrCreate()
spec = ScorerSpec({str(tiny_bert)!r}, "", max_length=64)
table = spark.createDataFrame([("how long", "a year"), ("how long", None)], "q string, d string")
first, second = table.select(rerank_udf(spec)("q", "d").alias("s")).select("s.*").collect()
alone = Scorer.load(Path({str(tiny_bert)!r}), spec, TaskSlot(1)).score(["how long"], ["a year"])
assert abs(first["logit"] - float(alone.logit[0])) < 1e-4, (first, alone)
assert (second["logit"], second["status"]) == (None, "null_text")
print(type(spark).__module__)
"""
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.strip().endswith("pyspark.sql.connect.session")
