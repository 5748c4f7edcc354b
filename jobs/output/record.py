"""`run.json`: what a run did, for people, MLflow and the next run."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Final

from jobs.config import Config
from jobs.input.validation import ValidatedInput
from jobs.output.tracking.uris import resolve_uri
from jobs.ranking.results import Results
from jobs.runtime.redaction import known_secrets, masked, masked_tree
from jobs.scoring.fill import ScoringStats
from udfs.checkpoint import Checkpoint
from udfs.memory import Peak
from udfs.spec import ScorerSpec

_PACKAGES: Final = (
    "spark-rerank", "pyspark", "pandas", "pyarrow", "torch", "transformers", "tokenizers", "mlflow",
)  # fmt: skip


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
        """Seconds of each part, and `total` since the start."""
        return {**self.seconds, "total": round(time.perf_counter() - self._start, 3)}


def make_record(
    *,
    run_id: str,
    config: Config,
    checkpoint: Checkpoint,
    spec: ScorerSpec,
    done: ValidatedInput,
    stored: ScoringStats,
    results: Results,
    watch: Stopwatch,
    start_up: Mapping[str, float | None],
    spark_version: str,
) -> dict[str, Any]:
    """The content of run.json. Holds ids, counts and settings, never a text."""
    scoring = watch.seconds.get("scoring", 0.0)
    counts = {
        "input": done.counts["input"],
        "collapsed": done.counts["collapsed"],
        "distinct": done.counts["distinct"],
        "from_store": stored.from_store,
        "scored": stored.scored,
        **results.counts,
    }
    return {
        "run_id": run_id,
        "kind": "rerank",
        "started": watch.started.isoformat(timespec="seconds"),
        "config": public_config(config),
        "fingerprint": spec.fingerprint(),
        "model": {
            "name": masked(str(config.model.name)),
            "revision": config.model.revision,
            "digest": checkpoint.digest,
            "architecture": checkpoint.architecture,
            "parameters": checkpoint.parameters,
            "precision": spec.precision,
        },
        "counts": counts,
        "reject_reasons": results.reasons,
        "rates": {
            "top1_change_rate": _share(
                results.written["top1_changed"], results.written["top1_compared"]
            ),
            "reject_rate": _share(counts["rejected"], counts["input"]) or 0.0,
            "truncated_rate": _share(counts["truncated"], counts["ranked"]) or 0.0,
            "from_store_rate": _share(counts["from_store"], counts["distinct"]) or 0.0,
            "pairs_per_s": _share(stored.scored, scoring),
            "tokens_per_s": _share(stored.tokens, scoring),
            "padding_share": _share(stored.padding, stored.tokens + stored.padding),
        },
        "device_ms": stored.device_ms,
        "memory": _peaks(stored.memory),
        "tokens": {"scored": stored.tokens, "padding": stored.padding},
        "timings": watch.timings(),
        "start_up": {"session": watch.seconds.get("session"), **start_up},
        "metrics": None,
        "versions": {**versions(), "spark": spark_version},
        "mlflow_run_id": None,
    }


def about_scores(config: Config, spec: ScorerSpec) -> dict[str, Any]:
    """What the scores of a fingerprint are of, for people who look into a store."""
    name = masked(str(config.model.name), known_secrets(config))
    return {"model": name, "revision": config.model.revision, **spec.scoring()}


def with_evaluation(
    record: Mapping[str, Any], document: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The record with what was measured: means, what moved, the gate. No values per query."""
    if document is None:
        return dict(record)
    moved = document.get("moved") or {}
    return {
        **record,
        "metrics": {
            key: value
            for key, value in document.items()
            if key in _MEASURED or key.startswith("queries")
        },
        "moved": {
            "top1_change_rate": moved.get("top1_change_rate"),
            "kendall_tau": (moved.get("kendall_tau") or {}).get("mean"),
            "rbo": (moved.get("rbo") or {}).get("mean"),
        },
        "gate": document.get("gate"),
    }


def make_evaluation_record(
    *,
    run_id: str,
    config: Config,
    document: Mapping[str, Any],
    watch: Stopwatch,
    spark_version: str,
) -> dict[str, Any]:
    """The content of run.json of an evaluation alone."""
    operations = document.get("operations") or {}
    record = {
        "run_id": run_id,
        "kind": "evaluate",
        "started": watch.started.isoformat(timespec="seconds"),
        "config": public_config(config),
        "model": operations.get("model") or None,
        "device_ms": operations.get("ms_per_pair"),
        "timings": watch.timings(),
        "versions": {**versions(), "spark": spark_version},
        "mlflow_run_id": None,
    }
    return with_evaluation(record, document)


def public_config(config: Config) -> dict[str, Any]:
    """The resolved configuration without secrets.

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
    """Versions of the libraries that take part."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _peaks(memory: Peak | None) -> dict[str, float | None] | None:
    """The most memory [MB, 2^20 bytes] of one process that scored, and of tensors on one GPU."""
    if memory is None:
        return None
    on_device = None if memory.device_mb is None else round(memory.device_mb, 1)
    return {"process_mb": round(memory.process_mb, 1), "device_mb": on_device}


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 6) if whole else None
