from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.config import Config
from jobs.errors import REFUSED, RefusedError
from jobs.record import public_config
from jobs.tracking.__main__ import main
from jobs.tracking.client import TrackingError, track
from jobs.tracking.runs import fetch_model
from jobs.tracking.uris import masked


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
        track(run_json, black_hole, timeout=12.0)
    assert time.monotonic() - start < 14


def test_a_closed_port_costs_seconds(run_json: Path) -> None:
    start = time.monotonic()
    with pytest.raises(TrackingError, match=r"\*\*\*@127\.0\.0\.1:9.*ConnectionRefused"):
        track(run_json, "http://user:secret@127.0.0.1:9", timeout=30.0)
    assert time.monotonic() - start < 20


def test_no_password_is_shown_or_recorded() -> None:
    uri = "https://user:secret@mlflow.example.org:5000/x"
    assert masked(uri) == "https://***@mlflow.example.org:5000/x"
    assert masked("sqlite:////data/mlflow.db") == "sqlite:////data/mlflow.db"
    assert masked("/data/in.parquet") == "/data/in.parquet"
    assert masked("abfss://box@account.net/in") == "abfss://box@account.net/in"
    assert masked("https://host/in?sig=secret") == "https://host/in"
    config = Config.model_validate(
        {
            "mlflow": {"tracking_uri": uri},
            "store": {"path": "s3a://key:secret@bucket/scores"},
            "spark": {"settings": {"fs.s3a.secret.key": "secret"}},
            "input": {"options": {"password": "secret"}},
        }
    )
    assert "secret" not in json.dumps(public_config(config)).replace("s3a.secret.key", "")


@pytest.mark.parametrize("argv", [[], ["--help"], ["/no/such/run.json"]])
def test_the_replay_command_refuses_what_is_no_record(argv: list[str]) -> None:
    assert main(argv) == REFUSED


def test_a_registered_model_is_fetched_and_a_missing_one_refused(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """Against a real registry in sqlite."""
    import mlflow
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
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
