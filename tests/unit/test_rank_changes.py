"""Agreement of two orders, against definitions written out."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.evaluation.describe import round_edges
from jobs.evaluation.measures import kendall_tau, rank_biased_overlap

PERMUTATIONS = st.integers(2, 12).flatmap(lambda n: st.permutations(list(range(1, n + 1))))


def tau_by_pairs(before: list[int]) -> float:
    signs = [1 if left < right else -1 for left, right in combinations(before, 2)]
    return sum(signs) / len(signs)


def overlap_by_sets(before: list[int], p: float) -> float:
    """Webber et al. 2010, equation 32, for two lists of one length."""
    n = len(before)
    first = sorted(range(1, n + 1), key=lambda doc: before[doc - 1])  # the order before
    agreement = [len(set(first[:d]) & set(range(1, d + 1))) / d for d in range(1, n + 1)]
    body = sum(agreement[d - 1] * p**d for d in range(1, n + 1)) * (1 - p) / p
    return agreement[-1] * p**n + body


@given(PERMUTATIONS)
@settings(max_examples=100, deadline=None)
def test_agreement_is_what_its_definition_says(before: list[int]) -> None:
    array = np.array(before)
    assert kendall_tau(array) == pytest.approx(tau_by_pairs(before))
    assert rank_biased_overlap(array) == pytest.approx(overlap_by_sets(before, 0.9))


def test_equal_and_reversed_orders() -> None:
    same = np.arange(1, 101)
    assert kendall_tau(same) == pytest.approx(1)
    assert rank_biased_overlap(same) == pytest.approx(1)
    assert kendall_tau(same[::-1]) == pytest.approx(-1)
    assert rank_biased_overlap(same[::-1]) < 0.1
    assert math.isnan(kendall_tau(np.array([1])))
    assert rank_biased_overlap(np.array([1])) == pytest.approx(1)


def test_edges_are_round_and_hold_both_ends() -> None:
    assert round_edges(-3.2, 5.1, 10) == [-4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6]
    assert round_edges(0, 100, 10) == [10 * i for i in range(12)]
    for low, high in ((0.0, 0.0), (-7.123, -7.1229), (1e6, 1e7)):
        edges = round_edges(low, high, 40)
        assert edges[0] <= low and high < edges[-1]
