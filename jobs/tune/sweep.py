"""Decide which settings are measured, in which order and how often. Pure, without Spark."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from jobs.config import BatchingConfig, TuneConfig
from jobs.runtime.errors import RefusedError
from jobs.scoring.token_lengths import SampledLengths
from jobs.tune.sample import Sample
from udfs.scorers.base import OK
from udfs.spec import Backend, Precision
from udfs.trial import Trial

Engine = tuple[Backend, Precision]

#: Lengths whose effect is shown, and the powers among them that are tried [tokens].
LENGTHS: Final = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
_P95_STEP: Final = 8  # tokens; the 95th percentile is rounded up to a multiple
_RARE: Final = 0.01  # share of pairs; where fewer are cut, a longer max_length is not tried
_MAX_TOKENS: Final = {False: (1024, 4096, 16384), True: (8192, 32768, 131072)}  # True: on a GPU
_FP32: Final[Engine] = ("torch", "fp32")
_TORCH: Final[dict[str, tuple[Engine, ...]]] = {
    "cuda": (_FP32, ("torch", "fp16"), ("torch", "bf16")),
    "cpu-bf16": (_FP32, ("torch", "bf16")),
    "cpu": (_FP32,),
}
_ONNX: Final[tuple[Engine, ...]] = (("onnxruntime", "fp32"), ("onnxruntime", "int8"))
_FIRST_PASS: Final = 0.6  # share of the time for measuring every setting once
_FINALISTS: Final = 6  # settings that are measured again


@dataclass(frozen=True, order=True)
class Setting:
    """What a user may set about speed. The first four may change scores, too."""

    backend: Backend
    precision: Precision
    max_length: int
    max_tokens: int
    max_pairs: int

    @property
    def engine(self) -> str:
        """Backend and precision in a word; torch goes without saying."""
        return self.precision if self.backend == "torch" else f"{self.backend} {self.precision}"

    def distance(self, other: Setting) -> int:
        """Return the number of keys that differ; backend and precision are one."""
        keys = ("engine", "max_length", "max_tokens")
        return sum(getattr(self, key) != getattr(other, key) for key in keys)


@dataclass
class Measured:
    """A setting and its trials, all of them on the same pairs; none if time ran out before."""

    setting: Setting
    trials: list[Trial] = field(default_factory=list)
    of_batches: bool = False


MeasureSetting = Callable[[Setting, Sample], Trial]


@dataclass(frozen=True)
class Sweep:
    """What was measured.

    Attributes:
        reference: float32 at the longest max_length, on the whole sample.
        reference_at: its index in `settings`; not 0 where float32 did not work.
        pairs: number of pairs, from the sample's start, that the settings were measured on.
        settings: the grid, the reference first, then batch sizes.
    """

    reference: Trial
    reference_at: int
    pairs: int
    settings: list[Measured]


def engines(config: TuneConfig, device: str, *, has_onnx: bool) -> tuple[Engine, ...]:
    """Return backends and precisions: as configured, else what `cuda`, `cpu-bf16` or `cpu` is good
    at. ONNX Runtime, if it is installed, is tried by itself where torch has no bf16.
    """
    if not config.precisions:
        return _TORCH[device] + (_ONNX if has_onnx and device == "cpu" else ())
    known: dict[str, Engine] = {":".join(engine): engine for engine in (*_TORCH["cuda"], *_ONNX)}
    names = [name if ":" in name else f"torch:{name}" for name in config.precisions]
    return tuple(dict.fromkeys([_FP32, *(known[name] for name in names)]))


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
    config: TuneConfig,
    batching: BatchingConfig,
    engines: Sequence[Engine],
    lengths: Sequence[int],
    *,
    on_gpu: bool,
) -> list[Setting]:
    """Return every combination: the reference, float32 and the longest, then those nearest to it.

    When time runs out, every key has been tried by itself before keys are tried together.
    """
    budgets = sorted(config.max_tokens or _MAX_TOKENS[on_gpu])
    middle = budgets[(len(budgets) - 1) // 2]
    reference = Setting(*_FP32, lengths[-1], max(middle, lengths[-1]), batching.max_pairs)
    found = {
        Setting(*engine, length, max(budget, length), batching.max_pairs)
        for engine, length, budget in itertools.product(engines, lengths, budgets)
    }
    others = sorted(found - {reference})
    random.Random(config.seed).shuffle(others)
    return [reference, *sorted(others, key=reference.distance)]


def batch_sizes(config: TuneConfig, chosen: Setting) -> list[Setting]:
    """Return the chosen setting with batches of so many pairs, whatever their lengths."""
    return [
        replace(chosen, max_pairs=pairs, max_tokens=pairs * chosen.max_length)
        for pairs in sorted(set(config.max_pairs))
    ]


def sweep(
    config: TuneConfig,
    grid: Sequence[Setting],
    sample: Sample,
    measure: MeasureSetting,
    choose: Callable[[Sequence[Measured], Trial, Sample], Sequence[Measured]],
    clock: Callable[[], float] = time.monotonic,
) -> Sweep:
    """Measure every setting once, then batch sizes of the best, then the best ones in turns.

    In turns, as a machine that gets slower then does so for all of them.

    Args:
        config: `seconds` ends the measuring; the reference is measured in any case.
        grid: settings, the reference first; if it does not work, the next that does is taken.
        sample: pairs; settings get as many of them as leave time for all settings.
        measure: runs one trial.
        choose: settings that may be recommended, the best first.
        clock: tells the time [s].

    Raises:
        RefusedError: if no setting works.
    """
    start, found = clock(), [Measured(setting) for setting in grid]
    at, reference, overhead = _reference(found, sample, measure, clock)
    # Scoring gets at least as much time as the rest of a trial; fewer pairs would show little.
    given = (start + _FIRST_PASS * config.seconds - clock()) / len(grid)
    part = max(given - overhead, overhead) / max(reference.seconds, 1e-9) if given > 0 else 1.0
    pairs = sample.first(int(len(sample) * part)) if part < 1 else sample

    def run(items: Iterable[Measured], share: float) -> None:
        for item in items:
            if clock() - start >= share * config.seconds:
                return
            item.trials.append(measure(item.setting, pairs))

    rest = found[at:]
    if pairs is sample:
        rest.pop(0).trials.append(reference)
    run(rest, _FIRST_PASS)
    if best := choose(found, reference, pairs):
        batches = [Measured(s, of_batches=True) for s in batch_sizes(config, best[0].setting)]
        found += batches
        run(itertools.chain(batches, itertools.cycle(best[:_FINALISTS])), 1.0)
    return Sweep(reference, at, len(pairs), found)


def _reference(
    found: Sequence[Measured], sample: Sample, measure: MeasureSetting, clock: Callable[[], float]
) -> tuple[int, Trial, float]:
    """Return the first setting that works: index, trial, time a trial takes besides scoring [s]."""
    for at, measured in enumerate(found):
        before = clock()
        trial = measure(measured.setting, sample)
        if trial.outcome == OK and not trial.unscored:
            return at, trial, max(0.0, clock() - before - trial.seconds)
        measured.trials.append(trial)
    outcomes = sorted({measured.trials[0].outcome for measured in found})
    raise RefusedError(
        f"none of {len(found)} settings could score the sample ({', '.join(outcomes)}); try a "
        "smaller model, tune.max_lengths or tune.max_tokens, or more memory"
    )
