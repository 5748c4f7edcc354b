"""Decide which settings are measured, in which order and how often. Pure, without Spark."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, cast

import pandas as pd

from jobs.config import BatchingConfig, TuneConfig
from jobs.runtime.errors import RefusedError
from jobs.scoring.token_lengths import SampledLengths
from jobs.tune.recommend import Row, Setting, make_row, recommend, setting_of
from jobs.tune.sample import first_queries
from udfs.scorers.base import OK
from udfs.spec import Backend, Precision
from udfs.trial import Trial

Measure = Callable[[Setting, pd.DataFrame], Trial]

#: Lengths whose effect is shown, and the powers among them that are tried [tokens].
LENGTHS: Final = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
_P95_STEP: Final = 8  # tokens; the 95th percentile is rounded up to a multiple
_RARE: Final = 0.01  # share of pairs; where fewer are cut, a longer max_length is not tried
_MAX_TOKENS: Final = {False: (1024, 4096, 16384), True: (8192, 32768, 131072)}  # True: on a GPU
# What is tried unless `tune.precisions` says it; ONNX Runtime where torch has no bf16.
_PRECISIONS: Final = {
    "cuda": ("fp32", "fp16", "bf16"),
    "cpu-bf16": ("fp32", "bf16"),
    "cpu": ("fp32", "onnxruntime:fp32", "onnxruntime:int8"),
}
_FIRST_PASS: Final = 0.6  # share of the time for measuring every setting once
_FINALISTS: Final = 6  # settings that are measured again


def engines(
    config: TuneConfig, device: str, *, has_onnx: bool
) -> tuple[tuple[Backend, Precision], ...]:
    """Return backends and precisions: float32, then those configured, else what `cuda`, `cpu-bf16`
    or `cpu` is good at.
    """
    known = [name for name in _PRECISIONS[device] if has_onnx or ":" not in name]
    parts = [name.rpartition(":") for name in ["fp32", *(config.precisions or known)]]
    found = {(backend or "torch", precision): None for backend, _, precision in parts}
    return cast(tuple[tuple[Backend, Precision], ...], tuple(found))


def lengths_to_try(
    config: TuneConfig, lengths: SampledLengths, positions: int | None
) -> tuple[int, ...]:
    """Return values of max_length, the longest last: as configured; else the 95th percentile, the
    first power of two that cuts next to nothing, and the one below. The model's positions limit.
    """
    limit = positions or LENGTHS[-1]
    if config.max_lengths:
        return tuple(sorted({min(length, limit) for length in config.max_lengths}))
    enough = next((n for n in LENGTHS if n <= limit and lengths.cut_at(n).share < _RARE), limit)
    p95 = -(-int(lengths.percentile(95)) // _P95_STEP) * _P95_STEP
    below = max((n for n in LENGTHS if n < enough), default=enough)
    return tuple(sorted({below, min(max(p95, LENGTHS[0]), enough), enough}))


def make_grid(
    config: TuneConfig, batching: BatchingConfig, engines: Sequence[tuple[Backend, Precision]],
    lengths: Sequence[int], *, on_gpu: bool,
) -> list[Setting]:  # fmt: skip
    """Return every combination: the reference, float32 and the longest, then those nearest to it.

    When time runs out, every key has been tried by itself before keys are tried together.
    """
    budgets = sorted(config.max_tokens or _MAX_TOKENS[on_gpu])
    middle = budgets[(len(budgets) - 1) // 2]
    reference = Setting(*engines[0], lengths[-1], max(middle, lengths[-1]), batching.max_pairs)
    found = {
        Setting(*engine, length, max(budget, length), batching.max_pairs)
        for engine, length, budget in itertools.product(engines, lengths, budgets)
    }
    others = sorted(found - {reference})
    random.Random(config.seed).shuffle(others)

    def distance(setting: Setting) -> int:
        keys = ("engine", "max_length", "max_tokens")
        return sum(getattr(setting, key) != getattr(reference, key) for key in keys)

    return [reference, *sorted(others, key=distance)]


def sweep(
    config: TuneConfig,
    grid: Sequence[Setting],
    sample: pd.DataFrame,
    measure: Measure,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[Row], int, pd.DataFrame]:
    """Measure every setting once, then batch sizes of the best, then the best ones in turns.

    In turns, as a machine that gets slower then does so for all of them.

    Args:
        config: `seconds` ends the measuring; the reference is measured in any case.
        grid: settings, the reference first; if it does not work, the next that does is taken.
        sample: pairs; settings get as many of them as leave time for all settings.
        measure: runs one trial.
        clock: tells the time [s].

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


def batch_sizes(config: TuneConfig, chosen: Setting) -> list[Setting]:
    """Return the chosen setting with batches of so many pairs, whatever their lengths."""
    return [
        chosen._replace(max_pairs=pairs, max_tokens=pairs * chosen.max_length, of_batches=True)
        for pairs in sorted(set(config.max_pairs))
    ]


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
