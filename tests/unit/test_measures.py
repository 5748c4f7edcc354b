from __future__ import annotations

import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.evaluation.measures import CUT, GRADED, UNCUT, Measure, parse_measure, parse_measures


@st.composite
def measures(draw: st.DrawFn) -> Measure:
    name = draw(st.sampled_from(sorted(UNCUT | CUT)))
    cutoffs = st.integers(1, 1000)
    cutoff = draw(cutoffs if name in CUT else cutoffs | st.none())
    return Measure(name, cutoff, 1 if name in GRADED else draw(st.integers(1, 5)))


@given(measures())
def test_the_notation_is_that_of_ir_measures_and_reads_back(measure: Measure) -> None:
    assert parse_measure(str(measure)) == measure
    assert str(ir_measures.parse_measure(str(measure))) == str(measure)


@pytest.mark.parametrize(
    ("text", "measure"),
    [
        ("nDCG@10", Measure("nDCG", 10)),
        ("RR(rel=2)@10", Measure("RR", 10, 2)),
        (" RR( rel = 1 ) ", Measure("RR", None)),
        ("AP", Measure("AP", None)),
        ("Judged@10", Measure("Judged", 10)),
    ],
)
def test_reads(text: str, measure: Measure) -> None:
    assert parse_measure(text) == measure


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["''", "supported: nDCG"]),
        ("nDCG@", ["'nDCG@'", "NAME@k"]),
        ("nDCG@1.5", ["'nDCG@1.5'", "NAME@k"]),
        ("nDCG@0", ["'nDCG@0'", "least cutoff is @1"]),
        ("P", ["'P'", "no cutoff", "P@10"]),
        ("Judged", ["'Judged'", "no cutoff"]),
        ("MRR@10", ["'MRR'", "did you mean RR?", "RR[@k]"]),
        ("NDCG@10", ["'NDCG'", "did you mean nDCG?"]),
        ("MAP", ["'MAP'", "did you mean AP?"]),
        ("ERR@10", ["'ERR'", "supported"]),
        ("nDCG(rel=2)@10", ["no threshold", "leave it out"]),
        ("Judged(rel=1)@10", ["no threshold", "leave it out"]),
        ("RR(rel=0)@10", ["grade 0", "least rel= is 1"]),
        ("nDCG(gains=2)@10", ["'gains'", "only rel="]),
        ("RR(judged_only=True)", ["cannot read"]),
    ],
)
def test_an_error_names_the_value_and_the_remedy(text: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        parse_measure(text)
    for word in words:
        assert word in str(caught.value)


def test_a_measure_made_by_hand_is_checked_too() -> None:
    with pytest.raises(ValueError, match="no cutoff"):
        Measure("R", None)


def test_several_are_read_once_each_and_all_errors_come_together() -> None:
    assert parse_measures(["AP", "RR@10", "AP(rel=1)"]) == (
        Measure("AP", None),
        Measure("RR", 10),
    )
    with pytest.raises(ValueError, match=r"(?s)'MRR'.*'P'"):
        parse_measures(["MRR", "AP", "P"])
