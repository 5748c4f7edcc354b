"""spark-submit on real executors: processes of their own, with a made-up GPU for each task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest

from jobs.demo import FOLDER
from jobs.errors import DONE, GATE_NOT_PASSED
from tests.conftest import ROOT

# Four JVMs each.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

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
        "input.path": FOLDER / "sample.jsonl", "input.doc_template": "{title}\\n{body}",
        "model.name": model, "model.max_length": 64, "model.precision": "fp32",
        "mlflow.enabled": "false", "output.path": out,
    }  # fmt: skip
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


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
    pairs = [json.loads(line) for line in (FOLDER / "sample.jsonl").open(encoding="utf-8")]
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
    confs = [word for key, value in settings.items() for word in ("--conf", f"{key}={value}")]
    given = [*options(tiny_bert, tmp_path / "cluster"), "--model.ship", ship]
    ended = submit("local-cluster[2,1,1024]", *confs, "jobs/rerank.py", *given)
    assert ended.returncode == 0, ended.stderr[-3000:]
    local = subprocess.run(
        [sys.executable, "-m", "jobs.rerank", "--spark.master", "local[2]",
         *options(tiny_bert, tmp_path / "local")],
        cwd=ROOT, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert local.returncode == 0, local.stderr[-3000:]
    ours, theirs = (
        pq.read_table(tmp_path / name / "ranked").to_pandas().sort_values(KEYS, ignore_index=True)
        for name in ("cluster", "local")
    )
    assert len(ours) == 245
    assert ours["doc_id"].tolist() == theirs["doc_id"].tolist()
    np.testing.assert_allclose(ours["score"], theirs["score"], atol=1e-4)
    run = json.loads((tmp_path / "cluster" / "run.json").read_text())
    assert run["counts"]["scored"] == 245
