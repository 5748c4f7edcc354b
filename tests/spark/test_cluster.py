"""spark-submit on real executors: processes of their own, with a made-up GPU for each task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pyspark
import pytest

from jobs.demo import FOLDER
from tests.conftest import ROOT

pytestmark = pytest.mark.slow  # four JVMs each

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


@pytest.mark.parametrize("ship", ["path", "archive"])
def test_a_cluster_gives_the_ranked_table_of_a_local_run(
    ship: str, tiny_bert: Path, discovery: Path, tmp_path: Path
) -> None:
    zipped = subprocess.run(
        [sys.executable, ".make/zip.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PYSPARK_PYTHON"] = sys.executable
    settings = {
        "spark.worker.resource.gpu.amount": "1",
        "spark.worker.resource.gpu.discoveryScript": str(discovery),
        "spark.executor.resource.gpu.amount": "1",
        "spark.executor.resource.gpu.discoveryScript": str(discovery),
        "spark.task.resource.gpu.amount": "1",
        "spark.ui.enabled": "false",
    }
    ended = subprocess.run(
        [
            *(str(SUBMIT), "--master", "local-cluster[2,1,1024]", "--py-files", zipped),
            *(word for key, value in settings.items() for word in ("--conf", f"{key}={value}")),
            *("jobs/rerank.py", *options(tiny_bert, tmp_path / "cluster"), "--model.ship", ship),
        ],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
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
