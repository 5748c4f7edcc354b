"""Whether a difference between two rankings of the same queries could be chance.

The two values of a query belong together: paired tests. With up to `EXACT_UP_TO` queries nothing is
assumed of the differences: a randomisation test (Fisher 1935; for retrieval: Smucker, Allan,
Carterette, CIKM 2007) and a percentile bootstrap (Efron 1979; Sakai, SIGIR 2006). Beyond, Student's
t gives the same numbers in no time. Seeded, so that the same values give the same digits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
from numpy.typing import NDArray

EXACT_UP_TO: Final = 10_000  # queries
RESAMPLES: Final = 9_999
SIGNIFICANT: Final = 0.05  # p after Holm's correction below which a difference is marked
LEVEL: Final = 0.95  # of every interval
_SEED: Final = 20_240_229
_BATCH: Final = 2**24  # values resampled at once: 128 MiB
_SAME: Final = 1e-9  # differences below it are rounding

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, `delta`, its interval, and a two-sided test.

    `p` is the chance of a mean at least as far from 0 if the two were exchangeable; `effect_size`
    is Cohen's d_z (mean over standard deviation), None where all queries changed alike; `helped`,
    `hurt` and `tied` count queries.
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


def compare_paired(before: Values, after: Values) -> Difference:
    """Compare float64[Q] values of the same Q queries, by query id.

    Raises:
        ValueError: if the two differ in number, or there is no query.
    """
    if len(before) != len(after) or not len(after):
        raise ValueError(f"{len(before)} values against {len(after)}; both need the same queries")
    difference = after - before
    difference[np.abs(difference) < _SAME] = 0.0
    mean = float(difference.mean())
    spread = float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    alike = 0.0 if abs(mean) < _SAME else None
    effect_size = alike if spread < _SAME else mean / spread
    p, method = _p_value(difference)
    helped, hurt, tied = (int((np.sign(difference) == sign).sum()) for sign in (1, -1, 0))
    return Difference(mean, *interval(difference), p, effect_size, helped, hurt, tied, method)


def interval(values: Values) -> tuple[float, float]:
    """Return the interval of the mean of float64[Q] values; a point where all are alike."""
    from scipy import stats

    mean = float(values.mean())
    if len(values) < 2 or np.ptp(values) < _SAME:
        return mean, mean
    if len(values) > EXACT_UP_TO:
        low, high = stats.t.interval(LEVEL, len(values) - 1, mean, stats.sem(values))
        return float(low), float(high)
    found = stats.bootstrap(
        (values,), np.mean, confidence_level=LEVEL, n_resamples=RESAMPLES, method="percentile",
        batch=max(1, _BATCH // len(values)), random_state=np.random.default_rng(_SEED),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p after Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979).

    With it, the chance of even one false alarm among all the tests stays at the level of one.
    """
    ranked = sorted(p_values, key=p_values.__getitem__)
    steps = (min(1.0, (len(ranked) - at) * p_values[name]) for at, name in enumerate(ranked))
    adjusted = dict(zip(ranked, accumulate(steps, max), strict=True))
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
    # the same distribution, and the exact one for more queries. One sample: signs are exchanged.
    p = stats.permutation_test(
        (changed,), np.mean, permutation_type="samples", vectorized=True, n_resamples=RESAMPLES,
        batch=max(1, _BATCH // len(changed)), random_state=np.random.default_rng(_SEED),
    ).pvalue  # fmt: skip
    exact = len(changed) <= math.log2(RESAMPLES)
    kind = "all exchanges" if exact else f"{RESAMPLES:,} resamples"
    return float(p), f"paired randomisation test, {kind}"
