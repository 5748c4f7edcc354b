"""What is logged of a run, and what is read back. Runs in the process that `client` starts."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import mlflow
import pandas as pd
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset

from jobs.output.names import PER_QUERY, artifacts_of
from jobs.output.tracking.client import DATABASE, SERVER
from jobs.runtime.errors import RefusedError

_PARENT_TAG: Final = "mlflow.parentRunId"
_RUN_TAG: Final = "spark_rerank.run_id"
_GATE_TAG: Final = "spark_rerank.gate"
_SETTING: Final = ("backend", "precision", "max_length", "max_tokens", "max_pairs")
_LONGEST_PARAM: Final = 6000  # characters, MLflow's limit


def log_run(record: Mapping[str, Any], run_json: Path) -> str:
    """Log a finished run to `MLFLOW_TRACKING_URI`; again after a failure, into the same run.

    The run's id is put into `run_json`. Results that another run has replaced meanwhile are left
    alone and not logged.
    """
    settings, gate = record["config"]["mlflow"], record.get("gate")
    experiment, parent = open_experiment(settings["experiment"], record.get("mlflow_parent_run_id"))
    found = _tagged(experiment, _RUN_TAG, record["run_id"])
    tags = {_RUN_TAG: record["run_id"], **({_PARENT_TAG: parent} if parent else {})}
    former, name = found[0].info.run_id if found else None, settings.get("run_name")
    with mlflow.start_run(
        run_id=former, experiment_id=experiment, run_name=None if former else name, tags=tags
    ) as run:
        mlflow.log_params(_params(record))
        mlflow.log_metrics(_metrics(record))
        for row in record.get("drift") or []:  # a step a day, e.g. 20260131
            numbers = {f"drift.{name}": value for name, value in _numbers(row).items()}
            mlflow.log_metrics(numbers, step=int(row["day"].replace("-", "")))
        mlflow.set_tags(_tags(record))
        mlflow.log_input(_dataset(record), context=str(record.get("kind", "rerank")))
        run_id = str(run.info.run_id)
        if _is_of(run_json, record["run_id"]):
            _replace_json(run_json, {**record, "mlflow_run_id": run_id})
            for file in (run_json, *map(run_json.with_name, artifacts_of(record))):
                if file.is_dir():
                    mlflow.log_artifacts(str(file), file.name)
                elif file.exists():
                    mlflow.log_artifact(str(file))
        if record.get("kind") == "tune":
            _log_settings(record, experiment, run_id)
        if gate and not gate["passed"]:
            mlflow.end_run("FAILED")
    return run_id


def check_experiment(name: str) -> str:
    """Refuse an experiment that was deleted, or whose store MLflow refuses; a new one is fine."""
    try:
        found = mlflow.get_experiment_by_name(name)
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
    """Download the table per query of the latest run that failed no gate; None without any."""
    found = mlflow.get_experiment_by_name(experiment)
    runs = _tagged(found.experiment_id, _GATE_TAG, "passed") if found else []
    if not runs:
        return None
    source = f"runs:/{runs[0].info.run_id}/{PER_QUERY}"
    return Path(mlflow.artifacts.download_artifacts(source, dst_path=str(folder)))


def _tagged(experiment: str, tag: str, value: str, most: int = 1) -> list[Any]:
    """Return the runs of an experiment that have a tag, the latest first."""
    found = mlflow.search_runs(
        [experiment], f"tags.`{tag}` = '{value}'", max_results=most,
        order_by=["attributes.start_time DESC"], output_format="list",
    )  # fmt: skip
    return list(found)


def open_experiment(name: str, parent: str | None) -> tuple[str, str | None]:
    """Return the experiment of the run, made if it is not there, and the run it is part of.

    The run that MLFLOW_RUN_ID named, if this server knows it, decides the experiment.
    """
    if parent:
        with suppress(mlflow.MlflowException):
            return mlflow.get_run(parent).info.experiment_id, parent
    uri = os.environ[SERVER]
    if uri.startswith(DATABASE) and mlflow.get_experiment_by_name(name) is None:
        # Beside the database; MLflow's default is a folder of the working directory.
        artifacts = Path(uri.removeprefix(DATABASE)).parent / "mlruns"
        with suppress(mlflow.MlflowException):  # another run was faster
            mlflow.create_experiment(name, artifact_location=artifacts.as_uri())
    return mlflow.set_experiment(name).experiment_id, None


def _log_settings(record: Mapping[str, Any], experiment: str, parent: str) -> None:
    """Log a run below the tuning's for each setting; those that are there stay."""
    below = _tagged(experiment, _PARENT_TAG, parent, len(record["rows"]))
    there = {run.data.tags.get(_RUN_TAG) for run in below}
    for index, row in enumerate(record["rows"]):
        tag = f"{record['run_id']}/{index}"
        if tag in there:
            continue
        name = f"{row['engine']} {row['max_length']}/{row['max_tokens']}/{row['max_pairs']}"
        flags = ("outcome", "recommended", "pareto", "of_batches")
        tags = {_RUN_TAG: tag, "kind": "setting", **{flag: str(row[flag]) for flag in flags}}
        with mlflow.start_run(experiment_id=experiment, run_name=name, nested=True, tags=tags):
            mlflow.log_params({key: row[key] for key in _SETTING})
            mlflow.log_metrics({k: v for k, v in _numbers(row).items() if k not in _SETTING})
            if row["outcome"] != "ok":
                mlflow.end_run("FAILED")


def _numbers(tree: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers in nested mappings under dotted names."""
    (flat,) = pd.json_normalize(dict(tree)).to_dict("records")
    return {
        str(key): float(value)
        for key, value in flat.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _params(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the configuration, flat, without MLflow's own section and free-form settings."""
    return {
        f"{section}.{key}": str(value)[:_LONGEST_PARAM]
        for section, values in record["config"].items()
        if section not in ("mlflow", "spark") and isinstance(values, Mapping)
        for key, value in values.items()
        if value not in (None, "", [], {})
    }


def _metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """Return counts, rates, timings and, where there are labels, measures of both orders."""
    groups = ("counts", "rates", "timings", "tokens", "remote", "device_ms", "memory", "moved",
              "labels", "passages")  # fmt: skip
    measured = record.get("metrics") or {}
    tree = {group: record.get(group) or {} for group in groups}
    tree |= {k: measured.get(k) or {} for k in ("first_stage", "reranked", "delta", "ceiling")}
    # MLflow's names have no parentheses, commas, quotes or equals signs, and `@` in no version.
    table = str.maketrans({"@": "_at_", "(": "_", ")": "", "=": ""})
    return {
        re.sub(r"[^\w./ -]", "_", name.translate(table)): value
        for name, value in _numbers(tree).items()
    }


def _tags(record: Mapping[str, Any]) -> dict[str, str]:
    model = record.get("model") or {}
    gate = record.get("gate") or {"passed": True, "rules": []}
    tags = {
        "kind": record.get("kind", "rerank"),
        "model": model.get("name"),
        "model.revision": model.get("revision") or model.get("digest"),
        "fingerprint": record.get("fingerprint"),
        # Without measures, nothing can be compared with it.
        _GATE_TAG: record.get("metrics") and ("passed" if gate["passed"] else "failed"),
        "gate.failed": "; ".join(row["rule"] for row in gate["rules"] if not row["passed"]),
    }
    return {name: str(value) for name, value in tags.items() if value}


def _dataset(record: Mapping[str, Any]) -> MetaDataset:
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


def _replace_json(file: Path, content: Mapping[str, Any]) -> None:
    beside = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)
    # Hadoop keeps a checksum beside a local file, which is that of the former content.
    file.with_name(f".{file.name}.crc").unlink(missing_ok=True)
