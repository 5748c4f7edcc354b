"""Trials -> rows of plain values: medians, and how far scores are from the reference's."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from jobs.evaluation.agreement import kendall_tau, ndcg
from jobs.tune.sample import Sample
from jobs.tune.sweep import Measured
from udfs.scores import OK
from udfs.trial import Trial

Row = dict[str, Any]

NOT_MEASURED = "not measured"


def make_rows(found: Sequence[Measured], reference: Trial, sample: Sample) -> list[Row]:
    """A row per setting.

    Args:
        found: settings and their trials on `sample`.
        reference: float32 at the longest max_length, on `sample` or more pairs from the same start.
        sample: what was measured on.

    Returns:
        The setting's keys; `of_batches`; `outcome` (`ok`, or what went wrong at any time);
        `runs`; and, where there was one, medians over runs: `pairs_per_s`, `tokens_per_s`,
        `padding` (share of tokens), `ms_per_pair` and `ms_per_batch` (p50 and p95), `load_s`,
        `memory_mb`, `device_memory_mb`, `halvings`, `unscored`; and against the reference
        `kendall_tau`, `ndcg`, `ndcg_delta`, `max_abs_difference`, None where unknown.
    """
    return [_row(measured, reference, sample) for measured in found]


def _row(measured: Measured, reference: Trial, sample: Sample) -> Row:
    trials = measured.trials
    failed = [trial.outcome for trial in trials if trial.outcome != OK]
    lost = ["out_of_memory" for trial in trials if trial.unscored]
    row: Row = {
        **asdict(measured.setting),
        "engine": measured.setting.engine,
        "of_batches": measured.of_batches,
        "outcome": next(iter(failed + lost), OK) if trials else NOT_MEASURED,
        "runs": len(trials),
    }
    whole = [trial for trial in trials if trial.outcome == OK]
    return row | _speed(whole) | _agreement(whole[0], reference, sample) if whole else row


def _speed(trials: Sequence[Trial]) -> Row:
    def median(values: Sequence[float], digits: int = 3) -> float:
        return round(statistics.median(values), digits)

    def percentiles(parts: Sequence[Any]) -> dict[str, float]:
        together = np.concatenate([np.asarray(part, np.float64) for part in parts])
        return {f"p{p}": round(float(np.percentile(together, p)), 3) for p in (50, 95)}

    on_device = [trial.device_memory_mb for trial in trials if trial.device_memory_mb is not None]
    return {
        "pairs_per_s": median([len(trial.logit) / trial.seconds for trial in trials]),
        "tokens_per_s": median([trial.tokens / trial.seconds for trial in trials], 1),
        "padding": median([t.padding / max(1, t.tokens + t.padding) for t in trials], 4),
        "ms_per_pair": percentiles([trial.pair_ms for trial in trials]),
        "ms_per_batch": percentiles([trial.batch_ms for trial in trials]),
        "load_s": median([trial.load_seconds for trial in trials]),
        "memory_mb": median([trial.memory_mb for trial in trials], 1),
        "device_memory_mb": median(on_device, 1) if on_device else None,
        "halvings": max(trial.halvings for trial in trials),
        "unscored": max(trial.unscored for trial in trials),
    }


def _agreement(trial: Trial, reference: Trial, sample: Sample) -> Row:
    whole, logit = reference.logit[: len(sample)], trial.logit[: len(sample)]
    before = ndcg(sample.query_ids, sample.doc_ids, whole, sample.grades)
    after = ndcg(sample.query_ids, sample.doc_ids, logit, sample.grades)
    apart = np.abs(logit - whole)
    return {
        "kendall_tau": kendall_tau(sample.query_ids, logit, whole),
        "ndcg": after,
        "ndcg_delta": None if before is None or after is None else after - before,
        "max_abs_difference": float(np.nanmax(apart)) if np.isfinite(apart).any() else None,
    }
