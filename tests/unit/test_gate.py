from __future__ import annotations

from typing import Any

import pytest

from jobs.config import EvaluationConfig, ReportConfig
from jobs.evaluation.gate import OPERATIONS, judge, make_plan, parse_rule
from jobs.runtime.errors import RefusedError

SETTINGS = EvaluationConfig()

DOCUMENT: dict[str, Any] = {
    "queries": 43,
    "queries_judged": 43,
    "judged": 0.9,
    "reranked": {"nDCG@10": 0.57, "RR(rel=2)@10": 0.7},
    "first_stage": {"nDCG@10": 0.50},
    "delta": {"nDCG@10": 0.07},
    "tests": {"nDCG@10": {"p_holm": 0.2}},
    "baseline": {
        "delta": {"nDCG@10": -0.02},
        "tests": {"nDCG@10": {"p_holm": 0.001}},
        "queries_judged": 40,
        "only_baseline": 3,
        "judged": 0.9,
    },
    "moved": {"top1_change_rate": 0.4, "kendall_tau": {"mean": 0.3}},
    "operations": {
        "ms_per_pair": {"p95": 12.5},
        "reject_rate": 0.0,
        "memory": {"process_mb": 3120.4},
    },
    "scores": {"ece": 0.1, "tied_rate": 0.6},
}


@pytest.mark.parametrize(
    ("text", "value", "passed"),
    [
        ("nDCG@10 >= 0.57", 0.57, True),
        ("nDCG@10 > 0.57", 0.57, False),
        ("nDCG@10>=0.6", 0.57, False),
        ("nDCG@10 first_stage < 0.6", 0.50, True),
        ("nDCG@10  delta   >=  0", 0.07, True),
        ("RR(rel=2)@10 >= 0.7", 0.7, True),
        ("nDCG@10 vs baseline >= -0.005", -0.02, False),
        ("nDCG@10 vs baseline >= -0.005 (significant)", -0.02, False),
        ("nDCG@10 delta >= 0.1", 0.07, False),
        ("nDCG@10 delta >= 0.1 (significant)", 0.07, True),
        ("top1_change_rate <= 0.5", 0.4, True),
        ("kendall_tau >= 0.5", 0.3, False),
        ("p95_ms_per_pair <= 20", 12.5, True),
        ("p99_ms_per_pair <= 20", None, False),
        ("reject_rate <= 1e-3", 0.0, True),
        ("process_mb <= 4000", 3120.4, True),
        ("device_mb <= 4000", None, False),
        ("ece <= 0.05", 0.1, False),
        ("queries >= 40", 43, True),
        ("tied_rate <= .5", 0.6, False),
    ],
)
def test_rules(text: str, value: float | None, passed: bool) -> None:
    found = judge([parse_rule(text)], DOCUMENT, SETTINGS)
    (row,) = found["rules"]
    assert (row["value"], row["passed"], found["passed"]) == (value, passed, passed)
    assert row["note"] == ("no value is known" if value is None else row["note"])


def test_a_significant_rule_gives_its_p() -> None:
    found = judge([parse_rule("nDCG@10 vs baseline >= 0 (significant)")], DOCUMENT, SETTINGS)
    assert found["rules"][0]["note"] == "p = 0.001 after Holm"


def test_a_value_that_rests_on_too_little_fails_and_says_so() -> None:
    document = DOCUMENT | {"queries_judged": 4, "judged": 0.001}
    rules = [parse_rule(text) for text in ("nDCG@10 >= 0", "queries >= 1", "reject_rate <= 1")]
    found = judge(rules, document, SETTINGS)["rules"]
    assert [row["passed"] for row in found] == [False, True, True]
    assert found[0]["note"] == (
        "rests on 4 judged queries, evaluation.min_queries is 5; 0.10% of the first ten documents "
        "are judged, evaluation.min_judged is 1.00%"
    )
    loose = EvaluationConfig(min_queries=4, min_judged=0.0)
    assert judge(rules, document, loose)["passed"]
    few = DOCUMENT | {"baseline": {**DOCUMENT["baseline"], "queries_judged": 1}}
    versus = [parse_rule("nDCG@10 vs baseline >= -1 (significant)")]
    (row,) = judge(versus, few, SETTINGS)["rules"]
    assert not row["passed"] and "rests on 1 judged shared query" in row["note"]


def test_rules_of_operations_need_no_judgements() -> None:
    needs = {name for name in OPERATIONS if parse_rule(f"{name} >= 0").needs_judgements}
    assert needs == {"ece", "queries", "queries_unanswered"}
    assert parse_rule("AP delta >= 0").needs_judgements


def test_a_decimal_comma_is_shown_with_its_rule() -> None:
    with pytest.raises(ValueError, match=r"cannot read .nDCG@10 >= 0,3.; write a number as 0\.3"):
        parse_rule("nDCG@10 >= 0,3")


def test_counts_of_judgements_are_not_tested() -> None:
    with pytest.raises(ValueError, match=r"Judged@10 counts judgements.*leave out"):
        parse_rule("Judged@10 delta >= 0 (significant)")


def test_nothing_to_hold_is_passed_and_one_failure_fails_all() -> None:
    assert judge([], DOCUMENT, SETTINGS) == {"passed": True, "rules": []}
    rules = [parse_rule(text) for text in ("queries >= 1", "queries >= 100")]
    found = judge(rules, DOCUMENT, SETTINGS)
    assert [row["passed"] for row in found["rules"]] == [True, False]
    assert not found["passed"]


def test_all_mistakes_are_told_together() -> None:
    rules = ["nDCG10 >= 1", "nDCG@10 = 1", "queries delta >= 1", "nDCG@10 >= 1 (significant)"]
    config = EvaluationConfig(metrics=["mr", "AP", "P"], gate=rules)
    with pytest.raises(RefusedError) as error:
        make_plan(config, ReportConfig())
    lines = error.value.messages
    assert len(lines) == 6
    assert "'mr'" in lines[0] and "'P'" in lines[1]
    assert "nDCG10" in lines[2] and "top1_change_rate" in lines[2]
    assert "cannot read 'nDCG@10 = 1'" in lines[3]
    assert "one value only" in lines[4]
    assert "only a difference" in lines[5]


def test_measures_are_read_once_each_those_of_the_rules_included() -> None:
    config = EvaluationConfig(metrics=["AP", "RR@10", "AP(rel=1)"], gate=["P@1 >= 0", "AP >= 0"])
    assert make_plan(config, ReportConfig()).measures == ("AP", "RR@10", "P@1")


def test_every_operation_can_be_named() -> None:
    assert [parse_rule(f"{name} >= 0").name for name in OPERATIONS] == list(OPERATIONS)
