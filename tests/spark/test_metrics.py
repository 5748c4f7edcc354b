"""trec_eval itself (compiled, through pytrec-eval) is what every measure must agree with."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.evaluation.measures import Measure, parse_measure, parse_measures
from jobs.evaluation.metrics import RunError, per_query, summarise
from jobs.evaluation.qrels import read_qrels
from jobs.runtime.errors import RefusedError

Scores = dict[str, dict[str, float]]
Grades = dict[str, dict[str, int]]

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"TREC DL19 and SciFact are not at {DATA}"
)

MEASURES = parse_measures(
    [
        *("nDCG", "nDCG@3", "AP", "AP@3", "AP(rel=2)", "RR", "RR(rel=2)", "RR(rel=2)@3", "P@5"),
        *("P(rel=2)@3", "R@100", "R(rel=2)@3", "Success@1", "Success(rel=2)@3", "Judged@2"),
    ]
)
# "9" and "10" differ as text and as numbers; the others have one to four bytes per character.
DOC_IDS = ["9", "10", "D1", "d1", "a b", "é", "z", "中文", "\uffee", "😀", "doc.with.dots", "-1"]
# Equal in float32 though not in double; equal though not bitwise; infinite.
SCORE_VALUES = [1.0, 1.0, 1.0 + 1e-9, 0.5, 2.5, -3.0, 0.0, -0.0, 1e-3, 1e30, float("inf")]
GRADE_VALUES = [0, 0, 1, 1, 2, 3, -1, -2]


def as_run(spark: SparkSession, run: Scores, kind: str = "double") -> DataFrame:
    rows = [(q, d, s) for q, docs in run.items() for d, s in docs.items()]
    return spark.createDataFrame(rows, f"query_id string, doc_id string, score {kind}")


def as_qrels(spark: SparkSession, qrels: Grades, kind: str = "int") -> DataFrame:
    rows = [(q, d, g) for q, docs in qrels.items() for d, g in docs.items()]
    schema = "query_id string, doc_id string, relevance int"
    table = spark.createDataFrame(rows, schema)
    return table.withColumn("relevance", F.col("relevance").cast(kind))


def random_queries(seed: int, queries: int = 80) -> tuple[Scores, Grades]:
    """Queries with ties, negative grades, unjudged documents, and gaps on either side."""
    rng = random.Random(seed)
    run: Scores = {}
    qrels: Grades = {}
    for query in (f"q{i}" for i in range(queries)):
        side = rng.random()
        if side < 0.9:  # else: in the qrels only
            found = rng.sample(DOC_IDS, rng.choice([1, 2, 5, len(DOC_IDS)]))
            run[query] = {doc: rng.choice(SCORE_VALUES) for doc in found}
        if side > 0.1:  # else: in the run only
            known = rng.sample(DOC_IDS, rng.choice([1, 3, 6, len(DOC_IDS)]))
            grades = rng.choice([GRADE_VALUES, [0], [-1], [3]])
            qrels[query] = {doc: rng.choice(grades) for doc in known}
    return run, qrels


def trec_eval(measure: Measure, run: Scores, qrels: Grades) -> dict[str, float]:
    """Values by query, for what trec_eval has; queries missing from the run are absent."""
    k = measure.cutoff
    cut = {"nDCG": "ndcg_cut", "AP": "map_cut", "P": "P", "R": "recall", "Success": "success"}
    uncut = {"nDCG": "ndcg", "AP": "map", "RR": "recip_rank"}
    asked, key = (
        (uncut[measure.name],) * 2
        if k is None
        else (f"{cut[measure.name]}.{k}", f"{cut[measure.name]}_{k}")
    )
    # Where every grade of a query is negative, pytrec-eval reads past an array and can crash.
    # Nothing is relevant there, which is 0 in every measure.
    usable = {query: grades for query, grades in qrels.items() if max(grades.values()) >= 0}
    judge = pytrec_eval.RelevanceEvaluator(usable, {asked}, relevance_level=measure.rel)
    values = {query: found[key] for query, found in judge.evaluate(run).items()}
    return values | dict.fromkeys(run.keys() & qrels.keys() - usable.keys(), 0.0)


def in_trec_order(run: Scores) -> Scores:
    """The same rankings with scores that leave no tie: minus the rank in trec_eval's order."""

    def key(item: tuple[str, float]) -> tuple[float, bytes]:
        with np.errstate(over="ignore"):
            return float(np.float32(item[1])), item[0].encode()

    return {
        query: {
            doc: -float(rank)
            for rank, (doc, _) in enumerate(sorted(docs.items(), key=key, reverse=True), 1)
        }
        for query, docs in run.items()
    }


def expected(measure: Measure, run: Scores, qrels: Grades) -> dict[str, float]:
    if measure.name == "Judged" or (measure.name == "RR" and measure.cutoff is not None):
        # trec_eval has neither. ir_measures has, but breaks ties by ascending doc_id in these two
        # and compares in double; given an order without ties it has nothing to break.
        asked = [ir_measures.parse_measure(str(measure))]
        values = ir_measures.iter_calc(asked, qrels, in_trec_order(run))
        return {value.query_id: value.value for value in values}
    return trec_eval(measure, run, qrels)


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_measure_of_every_query_is_the_references(spark: SparkSession, seed: int) -> None:
    run, qrels = random_queries(seed)
    run_type, grade_type = ("float", "int") if seed % 2 else ("double", "double")
    table = per_query(
        as_run(spark, run, run_type), as_qrels(spark, qrels, grade_type), MEASURES, ceiling=True
    )
    found = {row["query_id"]: row for row in table.collect()}
    assert found.keys() == qrels.keys()
    best = {
        query: {doc: float(qrels.get(query, {}).get(doc, -9)) for doc in docs}
        for query, docs in run.items()
    }
    for measure in MEASURES:
        values = expected(measure, run, qrels)
        for query in qrels:
            want = values.get(query, 0.0)  # missing is zero, never absent
            story = (str(measure), run.get(query), qrels[query])
            assert found[query][str(measure)] == pytest.approx(want, abs=1e-6), story
        if measure.name == "Judged":
            assert f"ceiling {measure}" not in table.columns
            continue
        values = expected(measure, best, qrels)
        for query in qrels:
            want = values.get(query, 0.0)
            assert found[query][f"ceiling {measure}"] == pytest.approx(want, abs=1e-6), measure
    for query, grades in qrels.items():
        row = found[query]
        assert row["n_retrieved"] == len(run.get(query, {}))
        assert row["n_relevant"] == sum(grade > 0 for grade in grades.values())
        assert row["answered"] == (query in run)


@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_means_and_counts_are_over_the_queries_of_the_qrels(spark: SparkSession, seed: int) -> None:
    run, qrels = random_queries(seed)
    table = per_query(as_run(spark, run), as_qrels(spark, qrels), MEASURES, run_only=True)
    summary = summarise(table)
    for measure in MEASURES:
        values = expected(measure, run, qrels)
        want = sum(values.get(query, 0.0) for query in qrels) / len(qrels)
        assert summary[str(measure)] == pytest.approx(want, abs=1e-6)
    assert summary["queries"] == len(qrels)
    assert summary["queries_unanswered"] == len(qrels.keys() - run.keys())
    assert summary["queries_only_in_run"] == len(run.keys() - qrels.keys())
    assert summary["queries_without_relevant"] == sum(
        all(grade < 1 for grade in grades.values()) for grades in qrels.values()
    )


def test_the_digits_do_not_depend_on_the_partitions(
    spark: SparkSession, shuffle_partitions: Any
) -> None:
    measures = parse_measures(["nDCG", "nDCG@3", "AP", "RR", "R@2", "Judged@10"])
    run, qrels = random_queries(7, queries=300)
    printed = set()
    for n in (1, 3, 7):
        shuffle_partitions(n)
        shuffled = as_run(spark, run).repartition(n, F.rand(seed=n))
        judged = as_qrels(spark, qrels).repartition(n, F.rand(seed=n + 1))
        printed.add(repr(summarise(per_query(shuffled, judged, measures))))
    assert len(printed) == 1


@pytest.fixture
def shuffle_partitions(spark: SparkSession) -> Iterator[Any]:
    key, adaptive = "spark.sql.shuffle.partitions", "spark.sql.adaptive.enabled"
    before = spark.conf.get(key)
    spark.conf.set(adaptive, "false")  # it would make one partition of so few rows
    yield lambda n: spark.conf.set(key, str(n))
    spark.conf.set(key, before)
    spark.conf.unset(adaptive)


def test_ties_go_to_the_higher_doc_id_where_ir_measures_alone_takes_the_lower(
    spark: SparkSession,
) -> None:
    """trec_eval's order holds for all measures here: "9" comes before "10".

    ir_measures takes RR without a cutoff from trec_eval, and RR@10 from MS MARCO's script, which
    sorts by ascending id: its two values differ on the same run.
    """
    run, qrels = {"q": {"10": 1.0, "9": 1.0}}, {"q": {"10": 1}}
    measures = parse_measures(["RR", "RR@10"])
    theirs = ir_measures.calc_aggregate(
        [ir_measures.parse_measure(str(m)) for m in measures], qrels, run
    )
    assert {str(name): value for name, value in theirs.items()} == {"RR": 0.5, "RR@10": 1.0}
    ours = per_query(as_run(spark, run), as_qrels(spark, qrels), measures).first()
    assert ours is not None
    assert (ours["RR"], ours["RR@10"]) == (0.5, 0.5)
    other = per_query(
        as_run(spark, run), as_qrels(spark, qrels), measures, tie_break="doc_id_asc"
    ).first()
    assert other is not None
    assert (other["RR"], other["RR@10"]) == (1.0, 1.0)


def test_scores_that_differ_beyond_float32_are_ties_as_in_trec_eval_and_not_in_ir_measures(
    spark: SparkSession,
) -> None:
    run, qrels = {"q": {"10": 1.0 + 1e-9, "9": 1.0}}, {"q": {"10": 1}}
    measures = parse_measures(["RR", "RR@10"])
    theirs = ir_measures.calc_aggregate([ir_measures.RR, ir_measures.RR @ 10], qrels, run)
    assert {str(name): value for name, value in theirs.items()} == {"RR": 0.5, "RR@10": 1.0}
    ours = summarise(per_query(as_run(spark, run), as_qrels(spark, qrels), measures))
    assert (ours["RR"], ours["RR@10"]) == (0.5, 0.5)


def test_unanswered_queries_count_zero_where_trec_eval_without_c_leaves_them_out(
    spark: SparkSession,
) -> None:
    """ir_measures and `trec_eval -c` average over the qrels; plain trec_eval over the answers."""
    run, qrels = {"a": {"d": 1.0}}, {"a": {"d": 1}, "b": {"d": 1}}
    assert trec_eval(parse_measure("AP"), run, qrels) == {"a": 1.0}
    assert ir_measures.calc_aggregate([ir_measures.AP], qrels, run) == {ir_measures.AP: 0.5}
    ours = summarise(per_query(as_run(spark, run), as_qrels(spark, qrels), [Measure("AP", None)]))
    assert (ours["AP"], ours["queries"], ours["queries_unanswered"]) == (0.5, 2, 1)


def test_an_empty_run_scores_zero(spark: SparkSession) -> None:
    table = per_query(as_run(spark, {}), as_qrels(spark, {"a": {"d": 1}}), MEASURES)
    summary = summarise(table)
    assert {summary[str(measure)] for measure in MEASURES} == {0.0}
    assert summary["queries_unanswered"] == 1


def test_empty_qrels_are_refused(spark: SparkSession) -> None:
    with pytest.raises(RunError, match="hold no query"):
        summarise(per_query(as_run(spark, {"a": {"d": 1.0}}), as_qrels(spark, {}), MEASURES))


def test_faults_are_refused_together_and_leave_no_number(spark: SparkSession) -> None:
    rows = [
        ("twice", "d", 1.0),
        ("twice", "e", 2.0),
        ("twice", "d", 3.0),
        ("nan", "d", float("nan")),
        ("none", "d", None),
        ("fine", "d", 1.0),
    ]
    run = spark.createDataFrame(rows, "query_id string, doc_id string, score double")
    grades = [(q, "d", 1) for q in ("twice", "nan", "none", "fine", "torn")] + [("torn", "d", 2)]
    qrels = spark.createDataFrame(grades, "query_id string, doc_id string, relevance int")
    table = per_query(run, qrels, [Measure("AP", None)])
    values = {row["query_id"]: row["AP"] for row in table.collect()}
    assert values == {"twice": None, "nan": None, "none": None, "torn": None, "fine": 1.0}
    with pytest.raises(RunError) as caught:
        summarise(table)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RefusedError)
    repeated, unscored, conflicting = caught.value.messages
    assert repeated.startswith("1 rows of the run repeat")
    assert "'twice'" in repeated
    assert unscored.startswith("2 rows of the run have a null or NaN score")
    assert "'nan'" in unscored
    assert "two different grades" in conflicting
    assert "'torn'" in conflicting


def read_run(spark: SparkSession, path: Path) -> DataFrame:
    parts = F.split("value", r"\s+")
    return spark.read.text(str(path)).select(
        parts[0].alias("query_id"), parts[2].alias("doc_id"), parts[4].cast("double").alias("score")
    )


@needs_data
@pytest.mark.parametrize(
    ("run", "qrels", "known"),
    [
        (
            "trec-dl19/run.bm25.trec",
            "trec-dl19/qrels.txt",
            {"nDCG@10": 0.5058, "AP(rel=2)": 0.2476, "RR(rel=2)": 0.7036},
        ),
        (
            "scifact/run.bm25.trec",
            "scifact/qrels/test.tsv",
            {"nDCG@10": 0.6767, "R@100": 0.9287},
        ),
    ],
)
def test_known_values(spark: SparkSession, run: str, qrels: str, known: dict[str, float]) -> None:
    table = per_query(
        read_run(spark, DATA / run),
        read_qrels(spark, str(DATA / qrels)),
        parse_measures(known),
    )
    summary = summarise(table)
    assert {name: round(summary[name], 4) for name in known} == known
