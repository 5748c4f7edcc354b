from __future__ import annotations

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.tune.agreement import kendall_tau, ndcg

PAIRS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 30),
        st.sampled_from([-1.0, 0.0, 0.5, 2.0]),  # few values, so that there are ties
        st.sampled_from([None, 0, 1, 2, 3]),
    ),
    min_size=1,
    max_size=40,
    unique_by=lambda pair: pair[:2],
)


@settings(deadline=None)
@given(PAIRS)
def test_ndcg_is_trec_evals(pairs: list[tuple[str, int, float, int | None]]) -> None:
    queries = [query for query, *_ in pairs]
    docs = [str(doc) for _, doc, *_ in pairs]
    scores = np.array([score for *_, score, _ in pairs], np.float32)
    grades = np.array([np.nan if grade is None else grade for *_, grade in pairs], np.float64)
    run: dict[str, dict[str, float]] = {}
    qrels: dict[str, dict[str, int]] = {}
    for query, doc, score, grade in zip(queries, docs, scores.tolist(), grades, strict=True):
        run.setdefault(query, {})[doc] = score
        if not np.isnan(grade):
            qrels.setdefault(query, {})[doc] = int(grade)
    relevant = {query for query, found in qrels.items() if max(found.values()) > 0}
    oracle = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(run)
    expected = [oracle[query]["ndcg_cut_10"] for query in relevant]
    found = ndcg(queries, docs, scores, grades)
    if expected:
        assert found == pytest.approx(np.mean(expected))
    else:
        assert found is None


def test_tau_is_one_for_the_same_order_and_minus_one_for_the_reverse() -> None:
    queries = ["a", "a", "a", "b", "b", "b"]
    up, down = np.array([1.0, 2, 3, 1, 2, 3]), np.array([1.0, 2, 3, 3, 2, 1])
    assert kendall_tau(queries, up, 10 * up) == pytest.approx(1.0)
    assert kendall_tau(queries, up, down) == pytest.approx(0.0)


def test_pairs_without_a_score_are_left_out_of_tau_and_last_in_ndcg() -> None:
    lost = np.array([np.nan, 2.0, 3.0])
    whole = np.array([9.0, 2.0, 3.0])
    assert kendall_tau(["a"] * 3, lost, whole) == pytest.approx(1.0)
    grades = np.array([1.0, 0.0, 0.0])
    assert ndcg(["a"] * 3, ["1", "2", "3"], lost, grades) == pytest.approx(0.5)
    assert kendall_tau(["a", "b"], whole[:2], whole[:2]) is None
