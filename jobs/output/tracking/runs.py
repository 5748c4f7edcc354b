"""What is logged of a run, and what is read back. The only file that imports mlflow."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from jobs.output.tracking.uris import DATABASE, resolve_uri
from jobs.runtime.errors import RefusedError

#: Results beside run.json that are logged with it.
METRICS: Final = "metrics.json"
ARTIFACTS: Final = (METRICS, "report.html", "plots", "per_query")
#: Results beside tune.json.
TUNING_ARTIFACTS: Final = ("tune.html", "recommended.yaml")
_PARENT_TAG: Final = "mlflow.parentRunId"
_RUN_TAG: Final = "spark_rerank.run_id"
_GATE_TAG: Final = "spark_rerank.gate"
_PASSED: Final = "passed"
_TUNE: Final = "tune"
_SETTING: Final = ("backend", "precision", "max_length", "max_tokens", "max_pairs")
_LONGEST_PARAM: Final = 6000  # characters, MLflow's limit


def import_ahead(uri: str) -> None:
    """Import what logging a run to this address takes, and reach for nothing."""
    import_module("mlflow")
    if uri.startswith(DATABASE):
        import_module("mlflow.store.tracking.sqlalchemy_store")


def log_run(record: Mapping[str, Any], artifacts: Sequence[Path], run_json: Path) -> str:
    """Log one finished run to `MLFLOW_TRACKING_URI`; again after a failure, into the same run.

    The run id is put into `run_json`. Results that another run has replaced meanwhile are left
    alone and not logged.
    """
    import mlflow
    from mlflow.tracking import MlflowClient

    settings = record["config"]["mlflow"]
    gate = record.get("gate")
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
        mlflow.log_input(_dataset(record), context=str(record.get("kind", "rerank")))
        run_id = str(run.info.run_id)
        record = {**record, "mlflow_run_id": run_id}
        files = (run_json, *artifacts) if _is_of(run_json, record["run_id"]) else ()
        if files:
            _replace_text(run_json, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        for file in files:
            if not file.is_dir():
                mlflow.log_artifact(str(file))
            # Hadoop's checksums and marks are of no use there.
            for part in sorted(file.glob("[!._]*")):
                mlflow.log_artifact(str(part), file.name)
        if record.get("kind") == _TUNE:
            _log_settings(record, experiment.experiment_id, run_id)
        if gate and not gate["passed"]:
            mlflow.end_run("FAILED")
    return run_id


def artifacts_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the results beside a record that are logged with it."""
    return TUNING_ARTIFACTS if record.get("kind") == _TUNE else ARTIFACTS


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
    source = f"runs:/{runs[0].info.run_id}/{ARTIFACTS[-1]}"
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


def _log_settings(record: Mapping[str, Any], experiment: str, parent: str) -> None:
    """A run below the tuning's for each setting; those that are there already are left alone."""
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient()
    below = client.search_runs([experiment], f"tags.`{_PARENT_TAG}` = '{parent}'")
    there = {run.data.tags.get(_RUN_TAG) for run in below}
    now = int(time.time() * 1000)
    for at, row in enumerate(record["rows"]):
        tags = {_PARENT_TAG: parent, _RUN_TAG: f"{record['run_id']}/{at}"}
        if tags[_RUN_TAG] in there:
            continue
        name = f"{row['engine']} {row['max_length']}/{row['max_tokens']}/{row['max_pairs']}"
        flags = ("outcome", "recommended", "pareto", "of_batches")
        tags |= {"kind": "setting", **{flag: str(row[flag]) for flag in flags}}
        run_id = client.create_run(experiment, tags=tags, run_name=name).info.run_id
        params = [Param(key, str(row[key])) for key in _SETTING]
        metrics = [Metric(key, value, now, 0) for key, value in _numbers(row)]
        client.log_batch(run_id, metrics=metrics, params=params)
        client.set_terminated(run_id, "FINISHED" if row["outcome"] == "ok" else "FAILED")


def _numbers(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What was measured of a setting, flat."""
    flat = []
    for key, value in row.items():
        parts = value.items() if isinstance(value, Mapping) else [("", value)]
        for name, number in parts:
            if isinstance(number, int | float) and not isinstance(number, bool):
                flat.append((f"{key}.{name}" if name else key, float(number)))
    return [(key, number) for key, number in flat if key not in _SETTING]


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
    for group in ("counts", "rates", "timings", "tokens", "device_ms", "memory", "moved"):
        for key, value in (record.get(group) or {}).items():
            if isinstance(value, int | float):
                flat[f"{group}.{key}"] = float(value)
    for stage in ("first_stage", "reranked", "delta", "ceiling"):
        for measure, value in ((record.get("metrics") or {}).get(stage) or {}).items():
            # MLflow allows no parentheses or equals signs, and `@` in no version's names.
            name = measure.replace("@", "_at_").replace("(", "_").replace(")", "").replace("=", "")
            flat[f"{stage}.{name}"] = float(value)
    return flat


def _tags(record: Mapping[str, Any]) -> dict[str, str]:
    tags = {"kind": str(record.get("kind", "rerank"))}
    if model := record.get("model"):
        tags |= {
            "model": str(model["name"]),
            "model.revision": str(model["revision"] or model["digest"]),
        }
    if record.get("fingerprint"):
        tags["fingerprint"] = str(record["fingerprint"])
    if record.get("metrics"):
        gate = record.get("gate") or {"passed": True, "rules": []}
        tags[_GATE_TAG] = _PASSED if gate["passed"] else "failed"
        failed = [row["rule"] for row in gate["rules"] if not row["passed"]]
        if failed:
            tags["gate.failed"] = "; ".join(failed)
    return tags


def _dataset(record: Mapping[str, Any]) -> Any:
    import mlflow
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset

    given = record["config"]["input"]
    ranked = record["config"].get("ranked", {}).get("path") or [None]
    where = given["path"] or given["run"] or given["table"] or ranked[0]
    try:
        # MLflow knows S3 by one name only.
        source = resolve_dataset_source(str(where).replace("s3a://", "s3://", 1))
    except mlflow.MlflowException:
        source = CodeDatasetSource(tags={"path": str(where)})
    return MetaDataset(source=source, name=Path(str(where)).name or "input")  # type: ignore[abstract]


def _is_of(run_json: Path, run_id: str) -> bool:
    """Whether the results are still this run's, and not those of a run that came after it."""
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
