"""MLflow fails in every way; the data is whole, the delay bounded, the replay logs one run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.config import MlflowConfig
from jobs.output.tracking.client import TrackingError, track
from jobs.runtime.errors import DONE
from tests.conftest import ROOT
from tests.faults import oracle, servers

pytestmark = pytest.mark.slow


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path) -> Path:
    """The output folder of a run that is still to be logged."""
    return Path(shutil.copytree(undisturbed, tmp_path / "out"))


def test_http_500_costs_less_than_the_limit(
    finished: Path, undisturbed: Path, pairs: tuple[Path, int]
) -> None:
    before = (finished / "run.json").read_bytes()
    with servers.failing() as address:
        start = time.monotonic()
        with pytest.raises(TrackingError, match="500"):
            track(finished / "run.json", MlflowConfig(tracking_uri=address, timeout=40.0))
        assert time.monotonic() - start < 42
    assert (finished / "run.json").read_bytes() == before
    oracle.check(finished, undisturbed, rows=pairs[1], same_batches=True)


@pytest.mark.parametrize("requests", [3, 4, 6, 8])
def test_a_server_killed_in_the_middle_has_one_whole_run_after_the_replay(
    requests: int, finished: Path, undisturbed: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    with servers.dying(tmp_path, requests) as (address, answered):
        start = time.monotonic()
        with pytest.raises(TrackingError):
            track(finished / "run.json", MlflowConfig(tracking_uri=address, timeout=60.0))
        assert time.monotonic() - start < 62
    assert len(answered) == requests
    oracle.check(finished, undisturbed, rows=pairs[1], same_batches=True)
    with servers.mlflow(tmp_path) as address:
        for _ in range(2):  # once more does no harm
            ended = subprocess.run(
                [sys.executable, "-m", "jobs.output.tracking", str(finished / "run.json")],
                env={**os.environ, "MLFLOW_TRACKING_URI": address, "PYTHONPATH": str(ROOT)},
                capture_output=True, text=True, timeout=200,
            )  # fmt: skip
            assert ended.returncode == DONE, ended.stderr
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.get_experiment_by_name("spark-rerank")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    record = json.loads((finished / "run.json").read_text())
    assert [run.info.run_id for run in runs] == [record["mlflow_run_id"]]
    assert runs[0].info.status == "FINISHED"
    assert runs[0].data.params["model.max_length"] == "64"
    assert runs[0].data.metrics["counts.scored"] == 245
    assert runs[0].data.tags["fingerprint"] == record["fingerprint"]
    assert len(runs[0].inputs.dataset_inputs) == 1
    kept = list((tmp_path / "artifacts").rglob("run.json"))
    assert [json.loads(file.read_text())["run_id"] for file in kept] == [record["run_id"]]
