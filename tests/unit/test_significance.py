from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jobs.evaluation.significance import EXACT_UP_TO, compare_paired, holm, interval

RNG = np.random.default_rng(3)


def test_ten_queries_that_all_rise_have_the_exact_p() -> None:
    """Of 2^10 exchanges two are as extreme: none and all."""
    before = np.arange(10) / 100
    found = compare_paired(before, before + 0.1 + np.arange(10) / 1000)
    assert found.p == pytest.approx(2 / 2**10)
    assert found.method == "paired randomisation test, all exchanges"
    assert (found.helped, found.hurt, found.tied) == (10, 0, 0)


def test_queries_without_a_change_do_not_weaken_the_test() -> None:
    before = np.concatenate([np.arange(10) / 100, np.full(500, 0.5)])
    after = before.copy()
    after[:10] += 0.2
    found = compare_paired(before, after)
    assert found.p == pytest.approx(2 / 2**10)
    assert found.tied == 500


def test_agrees_with_the_t_test_where_its_assumption_holds() -> None:
    before = RNG.normal(size=200)
    after = before + RNG.normal(0.15, 1.0, size=200)
    found = compare_paired(before, after)
    assert found.p == pytest.approx(stats.ttest_rel(after, before).pvalue, abs=0.02)
    low, high = stats.t.interval(0.95, 199, found.delta, stats.sem(after - before))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)
    assert found.effect_size == pytest.approx(found.delta / (after - before).std(ddof=1))


def test_many_queries_take_the_t_test_and_end_near_the_resampled_interval() -> None:
    values = RNG.normal(0.01, 0.3, size=EXACT_UP_TO + 1)
    many = compare_paired(np.zeros_like(values), values)
    assert many.method == "paired t-test"
    fewer = interval(values[:EXACT_UP_TO])
    assert (many.low, many.high) == pytest.approx(fewer, abs=1e-3)


@pytest.mark.parametrize("queries", [13, 14, 1023, 1024, 2000])
def test_any_number_of_queries_has_a_p_value(queries: int) -> None:
    """There are more exchanges of a thousand queries than a double can hold."""
    before = RNG.uniform(0, 0.5, queries)
    found = compare_paired(before, before + RNG.normal(0.01, 0.1, queries))
    assert 0.0 < found.p <= 1.0
    exact = queries <= 13  # 2^13 is below 9,999
    assert found.method.endswith("all exchanges" if exact else "9,999 resamples")


def test_no_change_at_all_and_the_same_change_everywhere() -> None:
    values = RNG.random(30)
    same = compare_paired(values, values)
    assert (same.p, same.delta, same.low, same.high, same.effect_size) == (1.0, 0.0, 0.0, 0.0, 0.0)
    shifted = compare_paired(np.zeros(30), np.full(30, 0.1))
    assert shifted.effect_size is None
    assert shifted.low == shifted.high == pytest.approx(0.1)
    assert shifted.p < 0.001


def test_one_query_proves_nothing() -> None:
    found = compare_paired(np.array([0.1]), np.array([0.9]))
    assert found.p == 1.0


def test_the_digits_do_not_depend_on_chance() -> None:
    before, after = RNG.random(100), RNG.random(100)
    assert compare_paired(before, after) == compare_paired(before, after)


def test_different_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="3 values against 2"):
        compare_paired(np.zeros(3), np.zeros(2))


def test_holm_by_hand() -> None:
    """0.01 * 4, 0.02 * 3, 0.03 * 2 (not below the one before), 0.04 * 1 (likewise)."""
    found = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert found == pytest.approx({"d": 0.06, "a": 0.04, "c": 0.06, "b": 0.06})


@given(st.dictionaries(st.text(), st.floats(0, 1), min_size=1))
@settings(max_examples=50)
def test_holm_only_raises_and_keeps_the_order(p_values: dict[str, float]) -> None:
    found = holm(p_values)
    assert list(found) == list(p_values)
    names = sorted(p_values, key=lambda name: p_values[name])
    assert all(p_values[name] <= found[name] <= 1 for name in names)
    assert [found[name] for name in names] == sorted(found.values())
    assert min(found.values()) <= min(1.0, len(p_values) * min(p_values.values()))
