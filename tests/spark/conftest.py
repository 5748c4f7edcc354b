"""One Spark session for the whole test run: starting a JVM costs seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs import rerank
from tests.conftest import ROOT
from tests.sample import SAMPLE

Job = Callable[..., int]


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """A small local session, stopped when the test run ends."""
    # Otherwise Spark takes whichever python3 comes first on PATH.
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    session = (
        # Two task slots: enough for rows of one query to come from different tasks.
        SparkSession.builder.master("local[2]")
        .appName("spark-rerank-tests")
        # No port to collide with when two test runs meet, and half a second less to start.
        .config("spark.ui.enabled", "false")
        # The default of 200 would start 200 tasks for a dozen rows.
        .config("spark.sql.shuffle.partitions", "2")
        # Hundreds of small plans: the optimising compiler costs more than it gives.
        .config("spark.driver.extraJavaOptions", "-XX:TieredStopAtLevel=1")
        # Nor is Java source written and compiled for each of them, which takes most of their time;
        # the runs that have a process of their own do as users' runs do.
        .config("spark.sql.codegen.wholeStage", "false")
        .config("spark.sql.codegen.factoryMode", "NO_CODEGEN")
        # Workers import this checkout and not whatever is installed.
        .config("spark.executorEnv.PYTHONPATH", str(ROOT))
        .getOrCreate()
    )
    yield session
    session.stop()


@pytest.fixture
def job(spark: SparkSession, tiny_bert: Path, tmp_path: Path) -> Job:
    """Run the job on the sample with the tiny model; keyword arguments are further keys."""

    def run(out: Path, **keys: object) -> int:
        options = {
            "input.path": SAMPLE, "input.doc_template": "{title}\\n{body}", "output.path": out,
            "model.name": tiny_bert, "model.max_length": 64, "model.precision": "fp32",
            "mlflow.enabled": "false", "input.label": "",
        }  # fmt: skip
        options |= {key.replace("__", "."): value for key, value in keys.items()}
        words = [[f"--{key}", str(value)] for key, value in options.items() if value is not None]
        return rerank.main([word for pair in words for word in pair])

    return run
