"""`run.json`: what a run did, for people, MLflow and the next run."""

import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Final

from jobs.config import Config, RemoteConfig
from jobs.output.folder import OutputFolder
from jobs.output.tracking.client import resolve_uri
from jobs.runtime.redaction import known_secrets, masked, masked_tree
from udfs.checkpoint import Checkpoint
from udfs.scorers.base import Usage
from udfs.scorers.dialects import billed

_PACKAGES: Final = (
    "spark-rerank", "pyspark", "pandas", "pyarrow", "torch", "transformers", "tokenizers", "mlflow",
)  # fmt: skip
_COSTS: Final = ("requests", "units", "tokens")
_MEASURED: Final = ("first_stage", "reranked", "delta", "ceiling", "first_stage_order")


class Stopwatch:
    """Seconds spent in named parts of a run."""

    def __init__(self) -> None:
        """Start the clock."""
        self.started = datetime.now(UTC)
        self._start = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the `with` block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.seconds[name] = round(spent, 3)

    def timings(self) -> dict[str, float]:
        """Return the seconds of each part, and `total` since the start."""
        return {**self.seconds, "total": round(time.perf_counter() - self._start, 3)}


def make_record(kind: str, out: OutputFolder, config: Config, watch: Stopwatch) -> dict[str, Any]:
    """Return what the records of all commands have. Holds ids and settings, never a text."""
    return {
        "run_id": out.run_id,
        "kind": kind,
        "started": watch.started.isoformat(timespec="seconds"),
        "config": public_config(config),
        "timings": watch.timings(),
        "versions": {**versions(), "spark": out.spark.version},
        "metrics": None,
        "mlflow_run_id": None,
        # The run of `mlflow run`, a Databricks job or Airflow that this one is part of.
        "mlflow_parent_run_id": os.environ.get("MLFLOW_RUN_ID"),
    }


def model_record(config: Config, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what the records of jobs.rerank and jobs.tune say of the model."""
    name = config.remote.model if config.model.backend == "remote" else config.model.name
    return {
        "name": masked(str(name), known_secrets(config)),
        "revision": config.model.revision,
        "digest": checkpoint.digest,
        "architecture": checkpoint.architecture,
        "parameters": checkpoint.parameters or None,
    }


def scoring_record(
    config: Config, rows: Mapping[str, int], scoring: Any, results: Any, watch: Stopwatch
) -> dict[str, Any]:
    """Return what jobs.rerank adds: counts, rates, times and memory.

    Takes the counts of a `ValidatedInput`, its `ScoringStats` and its ranked `Results`.
    """
    counts = {
        **{name: rows[name] for name in ("input", "collapsed", "distinct")},
        "from_store": scoring.from_store, "scored": scoring.scored, **results.counts,
    }  # fmt: skip
    tokens, padding, memory = scoring.tokens, scoring.padding, scoring.memory
    changed, compared = results.written["top1_changed"], results.written["top1_compared"]
    seconds = watch.seconds["scoring"]
    return {
        "counts": counts,
        "rates": {
            "top1_change_rate": _share(changed, compared),
            "reject_rate": _share(counts["rejected"], counts["input"]) or 0.0,
            "truncated_rate": _share(counts["truncated"], counts["ranked"]) or 0.0,
            "from_store_rate": _share(counts["from_store"], counts["distinct"]) or 0.0,
            "pairs_per_s": _share(scoring.scored, seconds),
            "tokens_per_s": _share(tokens, seconds),
            "padding_share": _share(padding, tokens + padding),
            # The most of any process: pairs that half precision lost, scored again in float32.
            "rescored_share": memory and round(memory.rescored, 6),
        },
        "device_ms": scoring.device_ms,
        # The most memory [MB, 2^20 bytes] of one process that scored, and on a GPU.
        "memory": memory and {
            "process_mb": round(memory.process_mb, 1),
            "device_mb": None if memory.device_mb is None else round(memory.device_mb, 1),
        },
        "tokens": {"scored": tokens, "padding": padding},
        # What a remote model has cost; billed units and tokens as far as its answers say.
        "remote": scoring.usage and _costs(config.remote, scoring.usage),
        "reject_reasons": results.reasons,
        "start_up": {
            "session": watch.seconds.get("session"),
            "model_load": memory and round(memory.load_seconds, 3),
        },
    }  # fmt: skip


def _costs(config: RemoteConfig, usage: Usage) -> dict[str, float | None]:
    """Return what was asked for and used, and its price, None where `remote` has none."""
    spent = {name: getattr(usage, name) for name in _COSTS}
    units = billed(str(config.dialect), **spent)
    price = config.price_per_unit
    return {**spent, "billed": units, "cost": round(units * price, 6) if price else None}


def evaluation_record(document: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what an evaluation adds: means, rank changes, the gate. No values per query."""
    if document is None:
        return {}
    moved = document.get("moved") or {}
    kept = {k: v for k, v in document.items() if k in _MEASURED or k.startswith("queries")}
    return {
        "metrics": kept or None,
        "moved": {
            "top1_change_rate": moved.get("top1_change_rate"),
            "kendall_tau": (moved.get("kendall_tau") or {}).get("mean"),
            "rbo": (moved.get("rbo") or {}).get("mean"),
        },
        "gate": document.get("gate"),
    }


def public_config(config: Config) -> dict[str, Any]:
    """Return the resolved configuration without secrets.

    Of Spark settings and reader options, where keys of storage accounts are given, only the names
    are kept: no list of suspicious names is complete.
    """
    content = config.model_dump(mode="json")
    content["spark"]["settings"] = sorted(content["spark"]["settings"])
    content["input"]["options"] = sorted(content["input"]["options"])
    content["mlflow"]["tracking_uri"] = resolve_uri(config.mlflow.tracking_uri)
    public: dict[str, Any] = masked_tree(content, known_secrets(config))
    return public


def versions() -> dict[str, str]:
    """Return the versions of the libraries that take part."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None
