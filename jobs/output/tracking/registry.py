"""The MLflow run of a training, and its model in the registry."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import mlflow
from mlflow.tracking import MlflowClient

from jobs.config import MlflowConfig
from jobs.output.tracking.client import SERVER, TrackingError, resolve_uri
from jobs.output.tracking.runs import open_experiment
from jobs.runtime.redaction import masked

_MODEL: Final = "model"  # folder of the run's artifacts
_CURVE: Final = "eval_ndcg_10"  # as the callback of transformers names nDCG@10
_RETRIES: Final = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_EXISTS: Final = "RESOURCE_ALREADY_EXISTS"


@contextmanager
def training_run(config: MlflowConfig, note: Path) -> Iterator[str]:
    """Open the run that the callback of transformers logs to, and yield its id.

    `note` keeps the id, so that a training that was stopped goes on in its run. Without a server
    the id is empty.

    Raises:
        TrackingError: at the end, if the server could not be reached, or refused.
    """
    try:
        with _explained():
            run_id = _open_run(config, note)
    except TrackingError:
        yield ""
        raise
    try:
        yield run_id
    except BaseException as error:
        with suppress(mlflow.MlflowException):  # or it would hide the error
            mlflow.end_run("FINISHED" if isinstance(error, TrackingError) else "FAILED")
        raise
    with _explained():
        mlflow.end_run()


def _open_run(config: MlflowConfig, note: Path) -> str:
    os.environ[SERVER] = resolve_uri(config.tracking_uri)
    os.environ.setdefault(_RETRIES, "3")
    mlflow.set_tracking_uri(os.environ[SERVER])
    experiment, _ = open_experiment(config.experiment, None)
    former = note.read_text() if note.exists() else None
    if former and not _is_open(former, experiment):
        former = None
    run_id = str(mlflow.start_run(former, experiment, config.run_name).info.run_id)
    note.write_text(run_id)
    return run_id


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what MLflow raises into a TrackingError."""
    try:
        yield
    except (mlflow.MlflowException, OSError) as error:
        said = masked(f"{type(error).__name__}: {error}").splitlines()[0]
        raise TrackingError(f"{masked(os.environ[SERVER])}: {said}") from None


def log_curve(run_id: str, curve: Sequence[Mapping[str, float]]) -> None:
    """Log the points of a curve that a run lacks, as its training had no server, or lost it.

    Raises:
        TrackingError: if the server could not be reached, or refused.
    """
    client = MlflowClient()
    with _explained():
        mlflow.flush_async_logging()
        there = {metric.step for metric in client.get_metric_history(run_id, _CURVE)}
        for point in curve:
            if int(point["step"]) not in there:
                client.log_metric(run_id, _CURVE, point["ndcg@10"], step=int(point["step"]))


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
    with _explained():
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
    return f"models:/{name}/{version}"
