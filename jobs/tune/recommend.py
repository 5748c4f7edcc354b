"""Turn trials into rows, compare them with the reference, and pick the setting to use. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from jobs.config import TuneConfig
from jobs.runtime.agreement import kendall_tau, ndcg
from udfs.scorers.base import OK, OUT_OF_MEMORY
from udfs.spec import Backend, Precision
from udfs.trial import Trial

Row = dict[str, Any]

NOT_MEASURED: Final = "not measured"
# Speeds that differ by less are not told apart by a few runs on a machine with other work.
_EQUALLY_FAST: Final = 0.97


class Setting(NamedTuple):
    """What a user may set about speed. The first three may change scores, too.

    `of_batches`: tried to see what batches of `max_pairs` cost, not to be recommended.
    """

    backend: Backend
    precision: Precision
    max_length: int
    max_tokens: int
    max_pairs: int
    of_batches: bool = False

    @property
    def engine(self) -> str:
        """Backend and precision in a word; torch goes without saying."""
        return self.precision if self.backend == "torch" else f"{self.backend} {self.precision}"


def setting_of(row: Row) -> Setting:
    """Return the setting that a row is about."""
    return Setting(*(row[key] for key in Setting._fields))


def make_row(
    setting: Setting, trials: Sequence[Trial], reference: Trial, sample: pd.DataFrame
) -> Row:
    """Return what was measured of a setting, compared with a reference on the same pairs or more.

    Keys: those of the setting; `engine`; `outcome` (`ok`, or what went wrong at any time); `runs`;
    and, where a trial went well, those of `_speed` and `_agreement`.
    """
    outcomes = [OUT_OF_MEMORY if trial.unscored else trial.outcome for trial in trials]
    row: Row = {
        **setting._asdict(),
        "engine": setting.engine,
        "outcome": next((o for o in outcomes if o != OK), OK) if trials else NOT_MEASURED,
        "runs": len(trials),
    }
    whole = [trial for trial in trials if trial.outcome == OK]
    return row | _speed(whole) | _agreement(whole[0], reference, sample) if whole else row


def _speed(trials: Sequence[Trial]) -> Row:
    """Return medians over trials; times [ms] at the 50th and 95th percentile, `padding` a share."""
    values = [
        {
            "pairs_per_s": len(trial.logit) / trial.seconds,
            "tokens_per_s": trial.tokens / trial.seconds,
            "padding": trial.padding / max(1, trial.tokens + trial.padding),
            "load_s": trial.load_seconds,
            "memory_mb": trial.memory_mb,
            "device_memory_mb": trial.device_memory_mb,
        }
        for trial in trials
    ]
    medians = pd.DataFrame(values, dtype=float).median().round(4)
    times: dict[str, list[Any]] = {
        "ms_per_pair": [trial.pair_ms for trial in trials],
        "ms_per_batch": [trial.batch_ms for trial in trials],
    }
    spread = {key: np.percentile(np.concatenate(parts), (50, 95)) for key, parts in times.items()}
    return {
        **{key: None if np.isnan(medians[key]) else float(medians[key]) for key in values[0]},
        **{key: {"p50": round(float(p50), 3), "p95": round(float(p95), 3)}
           for key, (p50, p95) in spread.items()},
        "halvings": max(trial.halvings for trial in trials),
        "unscored": max(trial.unscored for trial in trials),
    }  # fmt: skip


def _agreement(trial: Trial, reference: Trial, sample: pd.DataFrame) -> Row:
    """Return how far the scores are from the reference's; None where that is unknown."""
    whole, logit = reference.logit[: len(sample)], trial.logit[: len(sample)]
    queries, docs = sample["query_id"].to_list(), sample["doc_id"].to_list()
    grades = sample["grade"].to_numpy()
    before, after = (ndcg(queries, docs, scores, grades) for scores in (whole, logit))
    apart = np.abs(logit - whole)
    return {
        "kendall_tau": kendall_tau(queries, logit, whole),
        "ndcg": after,
        "ndcg_delta": None if before is None or after is None else after - before,
        "max_abs_difference": float(np.nanmax(apart)) if np.isfinite(apart).any() else None,
    }


def recommend(rows: Sequence[Row], config: TuneConfig) -> list[Row]:
    """Return the acceptable rows, the setting to use first, then by speed.

    Acceptable is what scored every pair, in nearly the order of the reference. Of the fastest
    settings, and those hardly slower, the one to use cuts least; of those it holds the least
    memory, on the GPU if there is one.
    """
    found = [
        row
        for row in _measured(rows)
        if row["kendall_tau"] is None or row["kendall_tau"] >= config.min_tau
        if row["ndcg_delta"] is None or row["ndcg_delta"] >= -config.max_loss
    ]
    near = [row for row in found if row["pairs_per_s"] >= _EQUALLY_FAST * found[0]["pairs_per_s"]]
    near.sort(key=lambda row: (-row["max_length"], row["device_memory_mb"] or row["memory_mb"]))
    return near[:1] + [row for row in found if row not in near[:1]]


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Return settings that no other beats in both speed and agreement, the fastest first."""
    front: list[Row] = []
    for row in _measured(rows):
        tau = row["kendall_tau"]
        if tau is not None and (not front or tau > front[-1]["kendall_tau"]):
            front.append(row)
    return front


def _measured(rows: Sequence[Row]) -> list[Row]:
    """Rows of the grid that scored every pair, the fastest first, then by agreement."""
    found = [row for row in rows if row["outcome"] == OK and not row["of_batches"]]
    return sorted(found, key=lambda row: (-row["pairs_per_s"], -(row["kendall_tau"] or 0.0)))
