"""What is logged of a run, and what is read back. The only file that imports mlflow."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from jobs.output.names import METRICS, PER_QUERY, PLOTS, RECOMMENDED, REPORT, TUNING_PAGE
from jobs.output.tracking.client import DATABASE, SERVER, resolve_uri
from jobs.runtime.errors import RefusedError

_PARENT_TAG: Final = "mlflow.parentRunId"
_RUN_TAG: Final = "spark_rerank.run_id"
_GATE_TAG: Final = "spark_rerank.gate"
_PASSED: Final = "passed"
_TUNE: Final = "tune"
_SETTING: Final = ("backend", "precision", "max_length", "max_tokens", "max_pairs")
_LONGEST_PARAM: Final = 6000  # characters, MLflow's limit


def artifacts_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the results beside a record that are logged with it."""
    if record.get("kind") == _TUNE:
        return TUNING_PAGE, RECOMMENDED
    return METRICS, REPORT, PLOTS, PER_QUERY


def log_run(record: Mapping[str, Any], run_json: Path) -> str:
    """Log a finished run to `MLFLOW_TRACKING_URI`; again after a failure, into the same run.

    The run's id is put into `run_json`. Results that another run has replaced meanwhile are left
    alone and not logged.
    """
    import mlflow
    from mlflow.tracking import MlflowClient

    settings, gate = record["config"]["mlflow"], record.get("gate")
    experiment, parent = _experiment(settings["experiment"], record.get("mlflow_parent_run_id"))
    query = f"tags.`{_RUN_TAG}` = '{record['run_id']}'"
    found = MlflowClient().search_runs([experiment], query, max_results=1)
    tags = {_RUN_TAG: record["run_id"], **({_PARENT_TAG: parent} if parent else {})}
    with (
        mlflow.start_run(run_id=found[0].info.run_id)
        if found
        else mlflow.start_run(
            experiment_id=experiment, run_name=settings.get("run_name"), tags=tags
        )
    ) as run:
        if not found or not found[0].data.params:
            mlflow.log_params(dict(_params(record)))
        mlflow.log_metrics(_metrics(record))
        mlflow.set_tags(_tags(record))
        mlflow.log_input(_dataset(record), context=str(record.get("kind", "rerank")))
        run_id = str(run.info.run_id)
        if _is_of(run_json, record["run_id"]):
            whole = {**record, "mlflow_run_id": run_id}
            _replace_text(run_json, json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
            for file in (run_json, *map(run_json.with_name, artifacts_of(record))):
                if file.is_dir():
                    mlflow.log_artifacts(str(file), file.name)
                elif file.exists():
                    mlflow.log_artifact(str(file))
        if record.get("kind") == _TUNE:
            _log_settings(record, experiment, run_id)
        if gate and not gate["passed"]:
            mlflow.end_run("FAILED")
    return run_id


def check_experiment(name: str) -> str:
    """Find out whether runs can be logged to an experiment; one that is not there will be made.

    Raises:
        RefusedError: if it was deleted, or MLflow refuses its store.
    """
    import mlflow
    from mlflow.tracking import MlflowClient

    try:
        found = MlflowClient().get_experiment_by_name(name)
    except mlflow.MlflowException as error:
        if "://" in os.environ[SERVER].removeprefix("file://").removeprefix(DATABASE):
            raise
        said = str(error).split(". ")[0]
        raise RefusedError(
            f"{said}; set mlflow.tracking_uri to sqlite:////PATH/mlflow.db"
        ) from None
    if found is not None and found.lifecycle_stage == "deleted":
        raise RefusedError(
            f"mlflow.experiment={name} was deleted; restore it (mlflow experiments restore -x "
            f"{found.experiment_id}), or name another one"
        )
    return "ready"


def find_baseline(experiment: str, folder: Path) -> Path | None:
    """Download the table per query of the latest run that passed and has one."""
    import mlflow
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    runs = client.search_runs(
        [found.experiment_id],
        f"tags.`{_GATE_TAG}` = '{_PASSED}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    if not runs:
        return None
    source = f"runs:/{runs[0].info.run_id}/{PER_QUERY}"
    return Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder)))


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


def _experiment(name: str, parent: str | None) -> tuple[str, str | None]:
    """Return the experiment's id, and the run that this one is part of if the server knows it.

    That is the run of `mlflow run`, a Databricks job or Airflow (MLFLOW_RUN_ID).
    """
    import mlflow
    from mlflow.tracking import MlflowClient

    client, uri = MlflowClient(), os.environ[SERVER]
    if parent:
        with suppress(mlflow.MlflowException):
            return client.get_run(parent).info.experiment_id, parent
    if uri.startswith(DATABASE) and client.get_experiment_by_name(name) is None:
        # Beside the database; MLflow's default is a folder of the working directory.
        artifacts = Path(uri.removeprefix(DATABASE)).parent / "mlruns"
        with suppress(mlflow.MlflowException):  # another run was faster
            client.create_experiment(name, artifact_location=artifacts.as_uri())
    return mlflow.set_experiment(name).experiment_id, None


def _log_settings(record: Mapping[str, Any], experiment: str, parent: str) -> None:
    """Log a run below the tuning's for each setting; those that are there stay."""
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    below = client.search_runs([experiment], f"tags.`{_PARENT_TAG}` = '{parent}'")
    there = {run.data.tags.get(_RUN_TAG) for run in below}
    now = int(time.time() * 1000)
    for index, row in enumerate(record["rows"]):
        tags = {_PARENT_TAG: parent, _RUN_TAG: f"{record['run_id']}/{index}"}
        if tags[_RUN_TAG] in there:
            continue
        name = f"{row['engine']} {row['max_length']}/{row['max_tokens']}/{row['max_pairs']}"
        flags = ("outcome", "recommended", "pareto", "of_batches")
        tags |= {"kind": "setting", **{flag: str(row[flag]) for flag in flags}}
        run_id = client.create_run(experiment, tags=tags, run_name=name).info.run_id
        params = [Param(key, str(row[key])) for key in _SETTING]
        numbers = [pair for pair in _numbers(row) if pair[0] not in _SETTING]
        metrics = [Metric(key, value, now, 0) for key, value in numbers]
        client.log_batch(run_id, metrics=metrics, params=params)
        client.set_terminated(run_id, "FINISHED" if row["outcome"] == "ok" else "FAILED")


def _numbers(tree: Mapping[str, Any], above: str = "") -> list[tuple[str, float]]:
    """Return the numbers in nested mappings under dotted names."""
    flat: list[tuple[str, float]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat += _numbers(value, f"{above}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat.append((f"{above}{key}", float(value)))
    return flat


def _params(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the configuration, flat, without MLflow's own section and free-form settings."""
    return [
        (f"{section}.{key}", str(value)[:_LONGEST_PARAM])
        for section, values in record["config"].items()
        if section not in ("mlflow", "spark") and isinstance(values, Mapping)
        for key, value in values.items()
        if value not in (None, "", [], {})
    ]


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Return counts, rates, timings and, where there are labels, measures of both orders."""
    groups = ("counts", "rates", "timings", "tokens", "device_ms", "memory", "moved")
    stages = ("first_stage", "reranked", "delta", "ceiling")
    tree = {group: record.get(group) or {} for group in groups}
    measured = record.get("metrics") or {}
    tree |= {stage: measured.get(stage) or {} for stage in stages}
    # MLflow allows no parentheses or equals signs, and `@` in no version's names.
    table = str.maketrans({"@": "_at_", "(": "_", ")": "", "=": ""})
    return {name.translate(table): value for name, value in _numbers(tree)}


def _tags(record: Mapping[str, Any]) -> dict[str, str]:
    tags = {"kind": str(record.get("kind", "rerank"))}
    if model := record.get("model"):
        version = str(model["revision"] or model["digest"])
        tags |= {"model": str(model["name"]), "model.revision": version}
    if record.get("fingerprint"):
        tags["fingerprint"] = str(record["fingerprint"])
    gate = record.get("gate") or {"passed": True, "rules": []}
    if record.get("metrics"):  # without measures, nothing can be compared with it
        tags[_GATE_TAG] = _PASSED if gate["passed"] else "failed"
    if failed := [row["rule"] for row in gate["rules"] if not row["passed"]]:
        tags["gate.failed"] = "; ".join(failed)
    return tags


def _dataset(record: Mapping[str, Any]) -> Any:
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset

    given = record["config"]["input"]
    ranked = record["config"].get("ranked", {}).get("path") or [None]
    where = str(given["path"] or given["run"] or given["table"] or ranked[0])
    try:
        # MLflow knows S3 by one name only.
        source = resolve_dataset_source(where.replace("s3a://", "s3://", 1))
    except mlflow.MlflowException:
        source = CodeDatasetSource(tags={"path": where})
    return MetaDataset(source=source, name=Path(where).name or "input")  # type: ignore[abstract]


def _is_of(run_json: Path, run_id: str) -> bool:
    """Return whether the results are still this run's, and not those of a later run."""
    try:
        return bool(json.loads(run_json.read_text(encoding="utf-8"))["run_id"] == run_id)
    except FileNotFoundError:  # its results are being replaced just now
        return False


def _replace_text(file: Path, text: str) -> None:
    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)
    # Hadoop keeps a checksum beside a local file, which is that of the former content.
    file.with_name(f".{file.name}.crc").unlink(missing_ok=True)
