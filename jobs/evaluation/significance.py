"""Whether a difference between two rankings of the same queries could be chance.

The unit is the query, and the two values of a query belong together: paired tests. With up to
`EXACT_UP_TO` queries nothing is assumed of the differences: a randomisation test (Fisher 1935;
for retrieval: Smucker, Allan, Carterette, CIKM 2007) and a percentile bootstrap (Efron 1979;
Sakai, SIGIR 2006), both scipy's. Beyond, means are normal for all practical purposes, and
Student's t gives the same numbers in no time.

Everything is seeded and takes its values in the order of query ids, so that the same tables give
the same digits wherever their rows came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

EXACT_UP_TO: Final = 10_000  # queries
RESAMPLES: Final = 9_999
SIGNIFICANT: Final = 0.05  # p after Holm's correction below which a difference is marked
_SEED: Final = 20_240_229
_BATCH: Final = 2**24  # values resampled at once: 128 MiB
_SAME: Final = 1e-9  # differences below it are rounding

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """What is known of the mean of paired differences.

    Attributes:
        delta: mean of after minus before.
        low: lower end of the interval of the mean.
        high: its upper end.
        p: chance of a mean at least as far from 0 if the two were exchangeable, two-sided.
        effect_size: mean over standard deviation of the differences (Cohen's d_z); 0 if all are 0,
            None if they are all alike otherwise.
        helped: queries whose value rose [queries].
        hurt: queries whose value fell [queries].
        tied: the rest [queries].
        method: name of the test.
    """

    delta: float
    low: float
    high: float
    p: float
    effect_size: float | None
    helped: int
    hurt: int
    tied: int
    method: str

    def test(self) -> dict[str, Any]:
        """The test alone, for a report."""
        kept = asdict(self)
        return {key: kept[key] for key in kept if key not in ("delta", "low", "high")}


def compare_paired(before: Values, after: Values, *, level: float = 0.95) -> Difference:
    """Compare two values of each query.

    Args:
        before: float64[Q], by query id.
        after: float64[Q], of the same queries.
        level: of the interval of the mean difference.

    Raises:
        ValueError: if the two differ in number, or there is no query.
    """
    if len(before) != len(after) or not len(after):
        raise ValueError(f"{len(before)} values against {len(after)}; both need the same queries")
    difference = after - before
    difference[np.abs(difference) < _SAME] = 0.0
    low, high = interval(difference, level=level)
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    mean = float(difference.mean())
    flat = spread < _SAME
    p, method = _p_value(difference)
    return Difference(
        delta=mean,
        low=low,
        high=high,
        p=p,
        effect_size=(0.0 if abs(mean) < _SAME else None) if flat else mean / spread,
        helped=int((difference > 0).sum()),
        hurt=int((difference < 0).sum()),
        tied=int((difference == 0).sum()),
        method=method,
    )


def interval(values: Values, *, level: float = 0.95) -> tuple[float, float]:
    """The interval of the mean of float64[Q] values; a point where all are alike."""
    from scipy import stats

    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) < _SAME:
        return mean, mean
    if len(values) > EXACT_UP_TO:
        low, high = stats.t.interval(level, len(values) - 1, mean, stats.sem(values))
        return float(low), float(high)
    found = stats.bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH // len(values)),
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979).

    With it, the chance of even one false alarm among all the tests stays at the level of one.
    """
    adjusted: dict[str, float] = {}
    floor = 0.0
    for place, name in enumerate(sorted(p_values, key=lambda key: (p_values[key], key))):
        floor = max(floor, min(1.0, (len(p_values) - place) * p_values[name]))
        adjusted[name] = floor
    return {name: adjusted[name] for name in p_values}


def _p_value(difference: Values) -> tuple[float, str]:
    from scipy import stats

    changed = difference[difference != 0]
    if len(changed) < 2:  # one change is as likely as its opposite
        return 1.0, f"{len(changed)} queries changed"
    if len(difference) > EXACT_UP_TO:
        if np.ptp(difference) < _SAME:
            return 0.0, "every query changed alike"
        return float(stats.ttest_1samp(difference, 0.0).pvalue), "paired t-test"
    # Queries that did not change stay where they are under every exchange: leaving them out gives
    # the same distribution, and the exact one for more queries.
    result = stats.permutation_test(
        (changed, np.zeros_like(changed)),
        _mean_difference,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, _BATCH // len(changed)),
        rng=np.random.default_rng(_SEED),
    )
    exact = len(changed) <= math.log2(RESAMPLES)
    kind = "all exchanges" if exact else f"{RESAMPLES:,} resamples"
    return float(result.pvalue), f"paired randomisation test, {kind}"


def _mean_difference(after: Values, before: Values, axis: int) -> Values:
    result: Values = (after - before).mean(axis=axis)
    return result
