"""Turn trials into rows, compare them with the reference, and pick the setting to use. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from jobs.config import TuneConfig
from jobs.runtime.agreement import kendall_tau, ndcg
from jobs.tune.sample import Sample
from jobs.tune.sweep import Measured
from udfs.scorers.base import OK, OUT_OF_MEMORY
from udfs.trial import Trial

Row = dict[str, Any]

NOT_MEASURED: Final = "not measured"
# Speeds that differ by less are not told apart by a few runs on a machine with other work.
_EQUALLY_FAST: Final = 0.97


def make_row(measured: Measured, reference: Trial, sample: Sample) -> Row:
    """Return what was measured of a setting, compared with a reference on the same pairs or more.

    Keys: those of the setting; `engine`; `of_batches`; `outcome` (`ok`, or what went wrong at any
    time); `runs`; and, where a trial went well, those of `_speed` and `_agreement`.
    """
    trials = measured.trials
    failed = [trial.outcome for trial in trials if trial.outcome != OK]
    failed += [OUT_OF_MEMORY for trial in trials if trial.unscored]
    row: Row = {
        **asdict(measured.setting),
        "engine": measured.setting.engine,
        "of_batches": measured.of_batches,
        "outcome": (failed or [OK])[0] if trials else NOT_MEASURED,
        "runs": len(trials),
    }
    whole = [trial for trial in trials if trial.outcome == OK]
    return row | _speed(whole) | _agreement(whole[0], reference, sample) if whole else row


def _speed(trials: Sequence[Trial]) -> Row:
    """Return medians over trials; times [ms] at the 50th and 95th percentile, `padding` a share."""

    def median(values: Sequence[float], digits: int = 3) -> float:
        return round(float(np.median(values)), digits)

    def percentiles(parts: Sequence[Any]) -> dict[str, float]:
        p50, p95 = np.percentile(np.concatenate(parts).astype(np.float64), (50, 95))
        return {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}

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
    """Return how far the scores are from the reference's; None where that is unknown."""
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


def acceptable(row: Row, config: TuneConfig) -> bool:
    """Return whether the setting scored every pair, in nearly the order of the reference."""
    if row["outcome"] != OK or row["of_batches"]:
        return False
    tau, delta = row["kendall_tau"], row["ndcg_delta"]
    return (tau is None or tau >= config.min_tau) and (delta is None or delta >= -config.max_loss)


def recommend(rows: Sequence[Row], config: TuneConfig) -> list[Row]:
    """Return the acceptable rows, the setting to use first, then by speed.

    Of the fastest settings, and those hardly slower, the one to use cuts least; of those it holds
    the least memory, on the GPU if there is one.
    """
    found = [row for row in rows if acceptable(row, config)]
    found.sort(key=lambda row: -row["pairs_per_s"])
    near = [row for row in found if row["pairs_per_s"] >= _EQUALLY_FAST * found[0]["pairs_per_s"]]
    near.sort(key=lambda row: (-row["max_length"], row["device_memory_mb"] or row["memory_mb"]))
    return near[:1] + [row for row in found if row not in near[:1]]


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Return settings that no other beats in both speed and agreement, the fastest first."""
    known = [row for row in rows if row["outcome"] == OK and not row["of_batches"]]
    known = [row for row in known if row["kendall_tau"] is not None]
    front: list[Row] = []
    for row in sorted(known, key=lambda row: (-row["pairs_per_s"], -row["kendall_tau"])):
        if not front or row["kendall_tau"] > front[-1]["kendall_tau"]:
            front.append(row)
    return front


def choose(
    config: TuneConfig, found: Sequence[Measured], reference: Trial, sample: Sample
) -> list[Measured]:
    """Return the acceptable settings in the order of `recommend`."""
    rows = [make_row(measured, reference, sample) for measured in found]
    index = {id(row): at for at, row in enumerate(rows)}
    return [found[index[id(row)]] for row in recommend(rows, config)]
