"""MLflow: the only file that imports it.

The job writes its data first and then starts this module as a process of its own, with a time
limit: a server that is down, or swallows packets, can neither lose data nor hold the job up.
The same command logs the run later:

    python -m jobs.tracking OUT/run.json
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from jobs.errors import DONE, NOT_TRACKED, REFUSED, RefusedError

_SQLITE: Final = "sqlite:///"
DEFAULT_URI: Final = f"{_SQLITE}mlflow.db"
_RUN_TAG: Final = "spark_rerank.run_id"
_LOCAL_LIMIT: Final = 300.0  # s; a new sqlite database takes its time on a busy machine
_CONNECT_LIMIT: Final = 5.0  # s
_LONGEST_PARAM: Final = 6000  # characters, MLflow's limit
# MLflow retries HTTP for minutes by default.
_PATIENCE: Final = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


class TrackingError(Exception):
    """The run could not be logged; the data is whole."""


def resolve_uri(tracking_uri: str | None) -> str:
    """Where runs go: as configured, else MLFLOW_TRACKING_URI, else a database in this folder.

    The path of a database is made absolute, so that a replay from another folder finds it.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI
    path = uri.removeprefix(_SQLITE)
    return uri if path == uri or path.startswith("/") else f"{_SQLITE}{Path(path).absolute()}"


def masked(uri: str) -> str:
    """A URI without user, password and query, where tokens travel.

    `abfss://CONTAINER@ACCOUNT/...` and `wasbs://` name a place before the @, and keep it.
    """
    parts = urlsplit(uri)._replace(query="", fragment="")
    if "@" in parts.netloc and parts.scheme not in ("abfs", "abfss", "wasb", "wasbs"):
        parts = parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}")
    return parts.geturl() if "://" in uri and not uri.startswith(_SQLITE) else uri


def replay_command(run_json: str) -> str:
    """The command that logs a finished run again."""
    words = [sys.executable, "-m", "jobs.tracking", run_json]
    return f"PYTHONPATH={shlex.quote(_package_root())} {shlex.join(words)}"


def track(run_json: Path, tracking_uri: str | None, timeout: float) -> str:
    """Log a finished run in a process of its own.

    Args:
        run_json: local file with the run's record.
        tracking_uri: as configured.
        timeout: longest to wait for a server [s]; a local database may take longer.

    Returns:
        MLflow's run id.

    Raises:
        TrackingError: if the server could not be reached in time, or refused.
    """
    uri = resolve_uri(tracking_uri)
    local = uri.startswith(_SQLITE) or "://" not in uri or uri.startswith("file:")
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
    environment["PYTHONPATH"] = os.pathsep.join([_package_root(), *sys.path])
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "jobs.tracking", str(run_json)],
            env=environment,
            timeout=max(timeout, _LOCAL_LIMIT) if local else max(1.0, timeout - 1.0),
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise TrackingError(f"{masked(uri)}: {error.strerror or error}") from None
    except subprocess.TimeoutExpired:
        raise TrackingError(f"{masked(uri)}: no answer in {timeout:.0f} s") from None
    if ended.returncode != DONE:
        said = ended.stderr.strip().splitlines()
        raise TrackingError(f"{masked(uri)}: {said[-1] if said else 'the client failed'}")
    return ended.stdout.strip().splitlines()[-1]


def fetch_model(tracking_uri: str | None, uri: str, folder: Path) -> Path:
    """Fetch a registered model (`models:/NAME/VERSION`) into a folder.

    Raises:
        RefusedError: if the registry does not have it.
    """
    import mlflow

    mlflow.set_tracking_uri(resolve_uri(tracking_uri))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
    except (mlflow.MlflowException, OSError) as error:
        code = getattr(error, "error_code", type(error).__name__)
        raise RefusedError(
            f"model.name={uri} cannot be fetched from the registry ({code}); check its name and "
            "version, and mlflow.tracking_uri"
        ) from None


def log_run(record: Mapping[str, Any], artifacts: Sequence[Path], run_json: Path) -> str:
    """Log one finished run to `MLFLOW_TRACKING_URI`; again after a failure, into the same run.

    The run id is put into `run_json`, which is logged last.
    """
    import mlflow
    from mlflow.tracking import MlflowClient

    settings = record["config"]["mlflow"]
    experiment = mlflow.set_experiment(settings["experiment"])
    found = MlflowClient().search_runs(
        [experiment.experiment_id], f"tags.`{_RUN_TAG}` = '{record['run_id']}'", max_results=1
    )
    started = (
        mlflow.start_run(run_id=found[0].info.run_id)
        if found
        else mlflow.start_run(run_name=settings.get("run_name"), tags={_RUN_TAG: record["run_id"]})
    )
    with started as run:
        if not found or not found[0].data.params:
            mlflow.log_params(dict(_params(record)))
        mlflow.log_metrics(_metrics(record))
        mlflow.set_tags(_tags(record))
        mlflow.log_input(_dataset(record), context="rerank")
        run_id = str(run.info.run_id)
        record = {**record, "mlflow_run_id": run_id}
        _replace_text(run_json, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        for file in (run_json, *artifacts):
            mlflow.log_artifact(str(file))
    return run_id


def main(argv: Sequence[str]) -> int:
    """`python -m jobs.tracking OUT/run.json`: log a finished run, or log it again."""
    if len(argv) != 1 or argv[0].startswith("-"):
        sys.stderr.write("usage: python -m jobs.tracking OUT/run.json\n")
        return REFUSED
    run_json = Path(argv[0])
    try:
        record = json.loads(run_json.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        sys.stderr.write(f"{run_json} is not a run's record; name the run.json of a finished run\n")
        return REFUSED
    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ["MLFLOW_TRACKING_URI"] = resolve_uri(record["config"]["mlflow"]["tracking_uri"])
    os.environ.update({key: os.environ.get(key, value) for key, value in _PATIENCE.items()})
    beside = [run_json.with_name("metrics.json")]
    try:
        if os.environ["MLFLOW_TRACKING_URI"].startswith(("http://", "https://")):
            _connect(os.environ["MLFLOW_TRACKING_URI"])
        run_id = log_run(record, [file for file in beside if file.is_file()], run_json)
    except Exception as error:  # the client raises many kinds; none may pass unreported
        sys.stderr.write(f"MLflow: {type(error).__name__}: {str(error).splitlines()[0][:300]}\n")
        return NOT_TRACKED
    sys.stdout.write(f"{run_id}\n")
    return DONE


def _params(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The configuration, flat; MLflow's own section and free-form settings stay out of it."""
    pairs = []
    for section, values in record["config"].items():
        if section in ("mlflow", "spark") or not isinstance(values, Mapping):
            continue
        for key, value in values.items():
            if value not in (None, "", [], {}):
                pairs.append((f"{section}.{key}", str(value)[:_LONGEST_PARAM]))
    return pairs


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Counts, rates, timings and, where there are labels, measures of both orders."""
    flat: dict[str, float] = {}
    for group in ("counts", "rates", "timings", "tokens"):
        for key, value in record.get(group, {}).items():
            if isinstance(value, int | float):
                flat[f"{group}.{key}"] = float(value)
    for stage in ("first_stage", "reranked", "delta"):
        for measure, value in (record.get("metrics") or {}).get(stage, {}).items():
            # MLflow allows no parentheses or equals signs, and `@` in no version's names.
            name = measure.replace("@", "_at_").replace("(", "_").replace(")", "").replace("=", "")
            flat[f"{stage}.{name}"] = float(value)
    return flat


def _tags(record: Mapping[str, Any]) -> dict[str, str]:
    model = record["model"]
    return {
        "model": str(model["name"]),
        "model.revision": str(model["revision"] or model["digest"]),
        "fingerprint": str(record["fingerprint"]),
    }


def _dataset(record: Mapping[str, Any]) -> Any:
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset

    given = record["config"]["input"]
    where = given["path"] or given["run"] or given["table"]
    try:
        # MLflow knows S3 by one name only.
        source = resolve_dataset_source(str(where).replace("s3a://", "s3://", 1))
    except mlflow.MlflowException:
        source = CodeDatasetSource(tags={"path": str(where)})
    return MetaDataset(source=source, name=Path(str(where)).name or "input")  # type: ignore[abstract]


def _connect(uri: str) -> None:
    """Find out within seconds that nobody listens.

    Raises:
        OSError: if there is no connection.
    """
    parts = urlsplit(uri)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_LIMIT).close()


def _replace_text(file: Path, text: str) -> None:
    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)
    # Hadoop keeps a checksum beside a local file, which is that of the former content.
    file.with_name(f".{file.name}.crc").unlink(missing_ok=True)


def _package_root() -> str:
    return str(Path(__file__).parent.parent)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
