"""One Spark session for the whole test run: starting a JVM costs seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from pyspark.sql import SparkSession

from tests.conftest import ROOT


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
        # Workers import this checkout and not whatever is installed.
        .config("spark.executorEnv.PYTHONPATH", str(ROOT))
        .getOrCreate()
    )
    yield session
    session.stop()
