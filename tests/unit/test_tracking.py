from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.config import Config, MlflowConfig
from jobs.output.record import public_config
from jobs.output.tracking.__main__ import main
from jobs.output.tracking.client import (
    TrackingError,
    fetch_model,
    refuse_tracking,
    replay_command,
    track,
)
from jobs.output.tracking.runs import _metrics
from jobs.runtime.errors import DONE, REFUSED, RefusedError
from jobs.runtime.redaction import masked
from tests.conftest import Database


@pytest.fixture
def run_json(tmp_path: Path) -> Path:
    """The record of a small finished run."""
    config = Config.model_validate({"input": {"path": "in.parquet"}, "output": {"path": "out"}})
    record = {
        "run_id": "r1", "config": public_config(config), "fingerprint": "f",
        "model": {"name": "m", "revision": None, "digest": "d"}, "counts": {"scored": 3},
    }  # fmt: skip
    file = tmp_path / "run.json"
    file.write_text(json.dumps(record))
    return file


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A server that takes connections and never answers."""
    server = socket.create_server(("127.0.0.1", 0))
    held = []

    def accept() -> None:
        while True:
            try:
                held.append(server.accept())
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()


def test_a_server_that_never_answers_costs_at_most_the_time_limit(
    run_json: Path, black_hole: str
) -> None:
    start = time.monotonic()
    with pytest.raises(TrackingError):
        track(run_json, MlflowConfig(tracking_uri=black_hole, timeout=12.0))
    assert time.monotonic() - start < 14


def test_a_closed_port_costs_seconds(run_json: Path) -> None:
    start = time.monotonic()
    with pytest.raises(TrackingError, match=r"\*\*\*@127\.0\.0\.1:9.*ConnectionRefused"):
        track(run_json, MlflowConfig(tracking_uri="http://user:secret@127.0.0.1:9"))
    assert time.monotonic() - start < 20


def test_no_password_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB_TOKEN", "secret-of-env")
    config = Config.model_validate(
        {
            "mlflow": {"tracking_uri": "https://user:secret@mlflow.example.org:5000/x"},
            "store": {"path": "abfss://key:secret/with/slash@box/scores"},
            "ranked": {"path": ["a=s3a://key:secret@bucket/ranked"]},
            "evaluation": {"baseline": "wasbs://box@account/r?sig=secret"},
            "spark": {"settings": {"fs.s3a.secret.key": "secret-of-spark"}},
            "input": {"options": {"password": "secret"}, "path": "/in/secret-of-spark"},
            "output": {"path": "/out/secret-of-env"},
            "remote": {"parameters": {"api_key": "secret-of-remote"}},
        }
    )
    said = json.dumps(public_config(config))
    assert "secret" not in said.replace("s3a.secret.key", "")
    assert public_config(config)["store"]["path"] == "abfss://***@box/scores"


def test_names_of_measures_are_such_as_mlflow_takes() -> None:
    measures = ("P(rel=2,judged_only=True)@10", "nDCG(dcg='exp-log2')@10", "nDCG(gains={1:3})@10")
    found = _metrics({"metrics": {"reranked": dict.fromkeys(measures, 0.5)}})
    assert len(found) == 3
    for name in found:
        assert re.fullmatch(r"[\w./ -]+", name), name


def test_a_replay_asks_for_the_password_that_the_record_does_not_hold(
    run_json: Path, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """MLflow's own database takes a whole address, with a query, from the environment."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = "http://user:secret@127.0.0.1:9"
    record = json.loads(run_json.read_text())
    record["config"]["mlflow"]["tracking_uri"] = masked(uri)
    run_json.write_text(json.dumps(record))
    command = replay_command(str(run_json), uri)
    assert "password included, in MLFLOW_TRACKING_URI" in command and "secret" not in command
    assert "\n" not in replay_command(str(run_json), "http://host")
    assert main([str(run_json)]) == REFUSED
    said = capsys.readouterr().err
    assert "set MLFLOW_TRACKING_URI to the whole address" in said
    ended = subprocess.run(
        command.splitlines()[0], shell=True, capture_output=True, text=True, check=False,
        env={**os.environ, "MLFLOW_TRACKING_URI": database(tmp_path / "mlflow.db")},
    )  # fmt: skip
    assert ended.returncode == DONE, ended.stderr
    assert json.loads(run_json.read_text())["mlflow_run_id"] == ended.stdout.strip()


def test_a_run_inside_another_is_nested_in_it_and_artifacts_are_beside_the_database(
    run_json: Path, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLFLOW_RUN_ID is set inside `mlflow run`, Databricks jobs and Airflow."""
    from mlflow.tracking import MlflowClient

    folder, elsewhere = tmp_path / "server", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = MlflowConfig(tracking_uri=database(folder / "runs.db"))
    client = MlflowClient(config.tracking_uri)
    experiment = client.create_experiment("pipeline", (folder / "files").as_uri())
    parent = client.create_run(experiment).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", parent)
    record = json.loads(run_json.read_text())
    run_json.write_text(json.dumps({**record, "mlflow_parent_run_id": parent}))
    nested = client.get_run(track(run_json, config))
    monkeypatch.delenv("MLFLOW_RUN_ID")
    assert track(run_json, config) == nested.info.run_id  # again, from another shell
    assert nested.info.experiment_id == experiment
    assert nested.data.tags["mlflow.parentRunId"] == parent
    assert client.get_run(parent).info.status == "RUNNING"
    # A run that the server does not know is of another server.
    run_json.write_text(json.dumps({**record, "run_id": "r2", "mlflow_parent_run_id": "0" * 32}))
    alone = client.get_run(track(run_json, config))
    assert alone.info.experiment_id != experiment
    assert [file.path for file in client.list_artifacts(alone.info.run_id)] == ["run.json"]
    assert (folder / "mlruns" / alone.info.run_id).is_dir()
    assert not list(elsewhere.iterdir())


def test_an_experiment_that_cannot_be_logged_to_is_refused(
    database: Database, tmp_path: Path, black_hole: str
) -> None:
    from mlflow.tracking import MlflowClient

    refuse_tracking(MlflowConfig(tracking_uri=f"sqlite:///{tmp_path}/new.db"))
    assert not list(tmp_path.iterdir())
    refuse_tracking(MlflowConfig(tracking_uri=black_hole, timeout=6.0))  # it may be up again later
    uri = database(tmp_path / "mlflow.db")
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("nightly"))
    refuse_tracking(MlflowConfig(tracking_uri=uri, experiment="weekly"))
    with pytest.raises(RefusedError, match=r"mlflow\.experiment=nightly was deleted; restore it"):
        refuse_tracking(MlflowConfig(tracking_uri=uri, experiment="nightly"))
    with pytest.raises(RefusedError, match=r"filesystem tracking backend.*sqlite:"):
        refuse_tracking(MlflowConfig(tracking_uri=str(tmp_path / "mlruns")))


@pytest.mark.parametrize("argv", [[], ["--help"], ["/no/such/run.json"]])
def test_the_replay_command_refuses_what_is_no_record(argv: list[str]) -> None:
    assert main(argv) == REFUSED


def test_a_registered_model_is_fetched_and_a_missing_one_refused(
    tiny_bert: Path, database: Database, tmp_path: Path
) -> None:
    """Against a real registry in sqlite."""
    import mlflow
    from mlflow.tracking import MlflowClient

    uri = database(tmp_path / "mlflow.db")
    client = MlflowClient(uri)
    client.create_registered_model("reranker")
    client.create_model_version("reranker", source=tiny_bert.as_uri())
    before = mlflow.get_tracking_uri()
    try:
        folder = fetch_model(uri, "models:/reranker/1", tmp_path / "cache")
        assert (folder / "model.safetensors").is_file()
        with pytest.raises(RefusedError, match="models:/other/1 cannot be fetched"):
            fetch_model(uri, "models:/other/1", tmp_path / "cache")
    finally:
        mlflow.set_tracking_uri(before)
