"""Measure settings for as long as there is time, and pick the one to use. Pure, without Spark."""

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from jobs.config import TuneConfig
from jobs.runtime.errors import RefusedError
from jobs.tune.agreement import kendall_tau, ndcg
from jobs.tune.sample import first_queries
from jobs.tune.settings import Setting, batch_sizes, setting_of
from udfs.scorers.base import OK, OUT_OF_MEMORY
from udfs.trial import Trial

Measure = Callable[[Setting, pd.DataFrame], Trial]
Row = dict[str, Any]

NOT_MEASURED: Final = "not measured"
_FIRST_PASS: Final = 0.6  # share of the time for measuring every setting once
_FINALISTS: Final = 6  # settings that are measured again
# Speeds that differ by less are not told apart by a few runs on a machine with other work.
_EQUALLY_FAST: Final = 0.97


def sweep(
    config: TuneConfig, grid: Sequence[Setting], sample: pd.DataFrame, measure: Measure,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[Row], int, pd.DataFrame]:  # fmt: skip
    """Measure every setting once, then batch sizes of the best, then the best ones in turns.

    In turns, as a machine that gets slower then does so for all of them. `config.seconds` ends the
    measuring; the reference, the first setting of the grid that works, is measured in any case, on
    the whole sample. The others get as many pairs as leave time for all of them.

    Returns:
        Rows of the grid, then of batch sizes; which of them is the reference; the pairs that all
        of them were measured on.

    Raises:
        RefusedError: if no setting works.
    """
    start, trials = clock(), {setting: list[Trial]() for setting in grid}
    at, reference, overhead = _reference(trials, sample, measure, clock)
    # Scoring gets at least as much time as the rest of a trial; fewer pairs would show little.
    given = (start + _FIRST_PASS * config.seconds - clock()) / len(grid)
    part = max(given - overhead, overhead) / max(reference.seconds, 1e-9) if given > 0 else 1.0
    pairs = first_queries(sample, int(len(sample) * part)) if part < 1 else sample

    def run(settings: Iterable[Setting], share: float) -> list[Row]:
        for setting in settings:
            if clock() - start >= share * config.seconds:
                break
            trials[setting].append(measure(setting, pairs))
        return [make_row(setting, found, reference, pairs) for setting, found in trials.items()]

    if pairs is sample:
        trials[grid[at]].append(reference)
    rows = run(grid[at + (pairs is sample) :], _FIRST_PASS)
    if best := [setting_of(row) for row in recommend(rows, config)]:
        sizes = batch_sizes(config, best[0])
        trials |= {setting: [] for setting in sizes}
        rows = run(itertools.chain(sizes, itertools.cycle(best[:_FINALISTS])), 1.0)
    return rows, at, pairs


def _reference(
    trials: dict[Setting, list[Trial]], sample: pd.DataFrame, measure: Measure,
    clock: Callable[[], float],
) -> tuple[int, Trial, float]:  # fmt: skip
    """Return the first setting that works: index, trial, time a trial takes besides scoring [s]."""
    for at, (setting, failed) in enumerate(trials.items()):
        before = clock()
        trial = measure(setting, sample)
        if trial.outcome == OK and not trial.unscored:
            return at, trial, max(0.0, clock() - before - trial.seconds)
        failed.append(trial)
    outcomes = sorted({failed[0].outcome for failed in trials.values()})
    raise RefusedError(
        f"none of {len(trials)} settings could score the sample ({', '.join(outcomes)}); try a "
        "smaller model, tune.max_lengths or tune.max_tokens, or more memory"
    )


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
