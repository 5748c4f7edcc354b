"""Which setting is measured when: an order, a budget of time, and no knowledge of Spark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from jobs.runtime.errors import RefusedError
from jobs.tune.sample import Sample
from jobs.tune.settings import Setting
from udfs.scores import OK
from udfs.trial import Trial

# Parts of the budget after which each stage ends, and the next has its turn.
_ONCE: Final = 0.6
_BATCH_SIZES: Final = 0.75
# Of the settings that may be recommended, the fastest so many are measured again.
_FINALISTS: Final = 6

MeasureSetting = Callable[[Setting, Sample], Trial]


@dataclass
class Measured:
    """A setting and its trials, all of them on the same pairs.

    Attributes:
        setting: what was measured.
        trials: in the order of time; empty if its turn never came.
        of_batches: whether it belongs to the table of batch sizes.
    """

    setting: Setting
    trials: list[Trial] = field(default_factory=list)
    of_batches: bool = False

    @property
    def worked(self) -> bool:
        """Whether every pair was scored."""
        return bool(self.trials) and all(t.outcome == OK and not t.unscored for t in self.trials)


@dataclass(frozen=True)
class Sweep:
    """What was measured.

    Attributes:
        reference: float32 at the longest max_length, on the whole sample.
        reference_at: its place in `settings`; not the first where float32 did not work.
        pairs: number of pairs, from the sample's start, that the settings were measured on.
        settings: the grid, the reference first, then batch sizes.
    """

    reference: Trial
    reference_at: int
    pairs: int
    settings: list[Measured]


class Budget:
    """Time for measuring.

    Args:
        seconds: how much of it [s].
        clock: tells the time [s].
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        """Start it."""
        self._seconds, self._clock, self._start = seconds, clock, clock()

    def left(self, share: float = 1.0) -> float:
        """Time until so much of the budget is spent [s]; negative beyond it."""
        return share * self._seconds - (self._clock() - self._start)


def sweep(
    grid: Sequence[Setting],
    sample: Sample,
    measure: MeasureSetting,
    budget: Budget,
    choose: Callable[[Sequence[Measured], Trial, Sample], Sequence[Measured]],
    batches_of: Callable[[Setting], Sequence[Setting]],
) -> Sweep:
    """Measure every setting once, then batch sizes of the best, then the best ones in turn.

    A setting that is measured several times is so in turns with the others: a machine that gets
    slower does so for all.

    Args:
        grid: the reference first; where it does not work, the next that does takes its place.
        sample: pairs; the settings get as many of them as leave time for all settings.
        measure: runs one trial.
        budget: ends each stage; the reference is measured in any case.
        choose: settings that may be recommended, the best first (see `recommend`).
        batches_of: settings of the table of batch sizes.

    Raises:
        RefusedError: if no setting works.
    """
    found = [Measured(setting) for setting in grid]
    at, reference, overhead = _reference(found, sample, measure, budget)
    given = budget.left(_ONCE) / len(grid)
    pairs = _fitting(sample, reference, overhead, given) if given > 0 else sample
    rest = found[at:]
    if len(pairs) == len(sample):
        rest.pop(0).trials.append(reference)
    for measured in _while(rest, budget, _ONCE):
        measured.trials.append(measure(measured.setting, pairs))
    best = choose(found, reference, pairs)
    if best:
        batches = [Measured(s, of_batches=True) for s in batches_of(best[0].setting)]
        for measured in _while(batches, budget, _BATCH_SIZES):
            measured.trials.append(measure(measured.setting, pairs))
        found += batches
        finalists = best[:_FINALISTS]
        while budget.left() > 0:
            for measured in _while(finalists, budget, 1.0):
                measured.trials.append(measure(measured.setting, pairs))
    return Sweep(reference, at, len(pairs), found)


def _reference(
    found: Sequence[Measured], sample: Sample, measure: MeasureSetting, budget: Budget
) -> tuple[int, Trial, float]:
    """The first setting that works: its place, its trial, and what a trial takes besides [s]."""
    for at, measured in enumerate(found):
        before = budget.left()
        trial = measure(measured.setting, sample)
        if trial.outcome == OK and not trial.unscored:
            return at, trial, max(0.0, before - budget.left() - trial.seconds)
        measured.trials.append(trial)
    outcomes = sorted({measured.trials[0].outcome for measured in found})
    raise RefusedError(
        f"none of {len(found)} settings could score the sample ({', '.join(outcomes)}); try a "
        "smaller model, tune.max_lengths or tune.max_tokens, or more memory"
    )


def _fitting(sample: Sample, reference: Trial, overhead: float, given: float) -> Sample:
    """As much of the sample as a trial has time for.

    Args:
        sample: all of it took the reference `reference.seconds`.
        reference: its trial.
        overhead: time a trial takes besides scoring [s].
        given: time for each trial if all settings are to have their turn [s]. Scoring gets as much
            time as the rest of a trial in any case: on fewer pairs there would be little to see.
    """
    part = max(given - overhead, overhead) / max(reference.seconds, 1e-9)
    return sample.first(int(len(sample) * part)) if part < 1 else sample


def _while(items: Sequence[Measured], budget: Budget, share: float) -> Iterator[Measured]:
    for item in items:
        if budget.left(share) <= 0:
            return
        yield item
