"""The MLflow run of a training, and its model in the registry."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import mlflow
from mlflow.tracking import MlflowClient

from jobs.config import MlflowConfig
from jobs.output.tracking.client import SERVER, TrackingError, resolve_uri
from jobs.output.tracking.runs import open_experiment
from jobs.runtime.redaction import masked

_MODEL: Final = "model"  # folder of the run's artifacts
_EXISTS: Final = "RESOURCE_ALREADY_EXISTS"


@contextmanager
def training_run(config: MlflowConfig, note: Path) -> Iterator[str]:
    """Open the run that the callback of transformers logs to, and yield its id.

    `note` keeps the id, so that a training that was stopped goes on in its run.
    """
    os.environ[SERVER] = resolve_uri(config.tracking_uri)
    mlflow.set_tracking_uri(os.environ[SERVER])
    experiment, _ = open_experiment(config.experiment, None)
    former = note.read_text() if note.exists() else None
    if former and not _is_open(former, experiment):
        former = None
    with mlflow.start_run(former, experiment, config.run_name) as run:
        note.write_text(run.info.run_id)
        yield str(run.info.run_id)


def _is_open(run_id: str, experiment: str) -> bool:
    try:
        info = MlflowClient().get_run(run_id).info
    except mlflow.MlflowException:  # of another server
        return False
    return bool(info.experiment_id == experiment and info.lifecycle_stage == "active")


def register(target: str, run_id: str, folder: Path) -> str:
    """Log a model folder to a run and register it as NAME or NAME@ALIAS; return its `models:/` URI.

    The alias is moved last, so whoever asks for it finds the former model or the whole new one.

    Raises:
        TrackingError: if the server could not be reached, or refused.
    """
    name, _, alias = target.partition("@")
    client = MlflowClient()
    try:
        client.log_artifacts(run_id, str(folder), _MODEL)
        try:
            client.create_registered_model(name)
        except mlflow.MlflowException as error:
            if error.error_code != _EXISTS:
                raise
        source = f"{client.get_run(run_id).info.artifact_uri}/{_MODEL}"
        version = client.create_model_version(name, source=source, run_id=run_id).version
        if alias:
            client.set_registered_model_alias(name, alias, version)
    except (mlflow.MlflowException, OSError) as error:
        said = masked(f"{type(error).__name__}: {error}").splitlines()[0]
        raise TrackingError(f"{masked(os.environ[SERVER])}: {said}") from None
    return f"models:/{name}/{version}"
