"""Names of measures, and their values for a bucket, without Spark."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ir_measures
import numpy as np
import pandas as pd
import pytest

from jobs.evaluation.document import Baseline, _aligned, _grouped, _shared
from jobs.evaluation.measures import measure_bucket, parse_measure
from jobs.runtime.cli import load_config
from jobs.runtime.errors import RefusedError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("nDCG@10", "nDCG@10"),
        ("RR(rel=2)@10", "RR(rel=2)@10"),
        (" RR( rel = 1 ) ", "RR"),
        ("MRR@10", "RR@10"),
        ("NDCG@10", "nDCG@10"),
        ("nDCG(gains={1:3,2:7})@10", "nDCG(gains={1:3,2:7})@10"),
        ("Bpref", "Bpref"),
        ("IPrec@0.1", "IPrec@0.1"),
        ("AP(judged_only=True)", "AP(judged_only=True)"),
    ],
)
def test_every_measure_that_ir_measures_names_is_read(text: str, name: str) -> None:
    assert parse_measure(text) == name
    assert str(ir_measures.parse_measure(name)) == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["''", "NAME@k"]),
        ("nDCG@", ["'nDCG@'", "NAME@k"]),
        ("nDCG@1.5", ["'nDCG@1.5'", "cutoff=1.5"]),
        ("nDCG@0", ["'nDCG@0'", "lowest cutoff is 1"]),
        ("P", ["'P' has no cutoff", "P@10"]),
        ("ndcg@10", ["'ndcg@10'", "did you mean nDCG"]),
        ("recip_rank", ["did you mean RR?"]),
        ("ndcg_cut_10", ["did you mean nDCG@10?"]),
        ("Recal@100", ["did you mean R@100"]),
        ("goodness", ["'goodness'", "did you mean"]),
        ("nDCG(rel=2)@10", ["rel", "parameters of it are cutoff"]),
        ("RR(rel=0)@10", ["lowest rel is 1"]),
        ("StRecall@10", ["'StRecall@10'", "pip install"]),
        ("1+1", ["'1+1'"]),
        ("Accuracy@5", ["undefined for lists without an irrelevant document"]),
    ],
)
def test_an_error_names_the_value_and_the_remedy(text: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        parse_measure(text)
    for word in words:
        assert word in str(caught.value)


def test_a_comma_in_a_measure_or_a_rule_splits_neither() -> None:
    words = ["--evaluation.metrics", "RR(rel=2,judged_only=True)@10", "--evaluation.metrics", "AP"]
    config = load_config([*words, "--evaluation.gate", "AP >= 0,3"]).evaluation
    assert config.metrics == ["RR(rel=2,judged_only=True)@10", "AP"]
    assert config.gate == ["AP >= 0,3"]


def bucket(rows: list[tuple[object, ...]], grades: list[tuple[str, str, int]]) -> pd.DataFrame:
    names = ["day", "query_id", "doc_id", "score", "after", "before", "truncated"]
    judged = pd.DataFrame(grades, columns=["query_id", "doc_id", "relevance"])
    table = pd.DataFrame(rows, columns=names)
    return measure_bucket(table, judged, ["day", "query_id"], ["RR", "nDCG@2", "Judged@10"])


def test_a_list_is_its_group_and_query_and_an_impression_counts_once() -> None:
    """Lists of one query share its grades; of a pair that comes twice the best ranks count."""
    rows: list[tuple[object, ...]] = [
        ("1", "q", "a", 3.0, 1, 3, False),
        ("1", "q", "a", 3.0, 2, 2, True),
        ("1", "q", "b", 2.0, 3, 1, None),
        ("2", "q", "b", 1.0, 1, 1, False),
        ("1", "nobody", "a", 1.0, 1, 1, False),
    ]
    found = bucket(rows, [("q", "b", 1), ("lost", "x", 1)]).set_index(["day", "query_id"])
    assert len(found) == 4
    first, second = found.loc["1", "q"], found.loc["2", "q"]
    assert (first["reranked RR"], first["first_stage RR"], first["ceiling RR"]) == (0.5, 1.0, 1.0)
    assert (first["n_retrieved"], first["n_repeated"], first["n_tied"]) == (2, 1, 0)
    assert (first["n_judged"], first["reranked Judged@10"], first["kendall_tau"]) == (1, 0.5, -1.0)
    assert (second["reranked RR"], second["n_repeated"]) == (1.0, 0)
    nobody = found.loc["1", "nobody"]
    assert not nobody["judged"] and np.isnan(nobody["reranked RR"])
    lost = found[~found["answered"]].iloc[0]
    assert (lost["reranked RR"], lost["n_relevant"], lost["n_retrieved"]) == (0.0, 1, 0)


def test_what_was_not_retrieved_comes_last() -> None:
    """Compat takes its score for 0, as ir_measures tells it with scores above."""
    rows = pd.DataFrame(
        [("q", "a", 3.0, 1, 1, False), ("q", "b", 2.0, 2, 2, False)],
        columns=["query_id", "doc_id", "score", "after", "before", "truncated"],
    )
    qrels = pd.DataFrame({"query_id": "q", "doc_id": ["z", "a"], "relevance": 1})
    measure = ir_measures.parse_measure("Compat(p=0.9)")
    found = measure_bucket(rows, qrels, ["query_id"], [str(measure)])
    run, truth = {"q": {"a": 3.0, "b": 2.0}}, {"q": {"z": 1, "a": 1}}
    (known,) = ir_measures.iter_calc([measure], truth, run)
    assert (
        found[f"reranked {measure}"][0]
        == pytest.approx(known.value)
        == pytest.approx(0.763, abs=1e-3)
    )


def test_slices_by_days_that_are_numbers_stay_apart() -> None:
    days = pd.Series([20260129, 20260130, 20260131, 20260201, None])
    assert list(_grouped(days)) == ["20260129", "20260130", "20260131", "20260201", "none"]
    many = _grouped(pd.Series(range(20260101, 20260131)))
    assert next(iter(many.cat.categories)) == "up to 20260108" and many.nunique() == 4


def test_a_baseline_of_another_day_is_met_query_by_query() -> None:
    def side(day: str, **more: object) -> pd.DataFrame:
        return pd.DataFrame(
            {"date": day, "query_id": ["a", "b"], "answered": True, "reranked AP": [0.5, 1.0]}
        ).assign(**more)

    keys = ("date", "query_id")
    judged: Any = SimpleNamespace(keys=keys, values=side("2026-01-02"))
    met, apart = _aligned(judged, Baseline("b", side("2026-01-01")))
    assert apart == {"date": ["2026-01-02", "2026-01-01"]}
    assert len(_shared(judged.values, met.values, keys)) == 2
    both = pd.concat([side("2026-01-01"), side("2026-01-03")])
    met, apart = _aligned(judged, Baseline("b", both))
    assert not apart
    with pytest.raises(RefusedError, match=r"share queries, but no list of \(date, query_id\)"):
        _shared(judged.values, met.values, keys)


def test_nothing_at_all_is_no_list() -> None:
    assert bucket([], []).empty
