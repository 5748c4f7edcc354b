"""trec_eval itself (compiled, through pytrec-eval) is what every measure must agree with."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
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

from jobs.evaluation.document import means, side_of
from jobs.evaluation.measures import AFTER, CEILING
from jobs.evaluation.qrels import read_qrels
from jobs.evaluation.ranked import Table
from jobs.evaluation.run import RunEvaluation, evaluate_run
from jobs.runtime.errors import RefusedError

Scores = dict[str, dict[str, float]]
Grades = dict[str, dict[str, int]]

DATA = Path(__file__).parents[2].parent / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"TREC DL19 and SciFact are not at {DATA}"
)

MEASURES = (
    *("nDCG", "nDCG@3", "AP", "AP@3", "AP(rel=2)", "RR", "RR(rel=2)", "RR(rel=2)@3", "P@5"),
    *("P(rel=2)@3", "R@100", "R(rel=2)@3", "Success@1", "Success(rel=2)@3", "Judged@2"),
    *("Bpref", "Rprec"),
)
# "9" and "10" differ as text and as numbers; the others have one to four bytes per character.
DOC_IDS = ["9", "10", "D1", "d1", "a b", "é", "z", "中文", "\uffee", "😀", "doc.with.dots", "-1"]
# Equal in float32 though not in double; equal though not bitwise; infinite.
SCORE_VALUES = [1.0, 1.0, 1.0 + 1e-9, 0.5, 2.5, -3.0, 0.0, -0.0, 1e-3, 1e30, float("inf")]
GRADE_VALUES = [0, 0, 1, 1, 2, 3, -1, -2]


def as_run(spark: SparkSession, run: Scores, kind: str = "double") -> DataFrame:
    rows = [(q, d, s) for q, docs in run.items() for d, s in docs.items()]
    return spark.createDataFrame(rows, f"query_id string, doc_id string, score {kind}")


def as_table(run: DataFrame, name: str = "run") -> Table:
    """A run without a first stage."""
    unknown = {"retrieval_score": "double", "retrieval_rank": "int", "n_tokens": "int",
               "truncated": "boolean"}  # fmt: skip
    nulls = {column: F.lit(None).cast(kind) for column, kind in unknown.items()}
    return Table(name, run.withColumns(nulls))


def measured(
    run: DataFrame, qrels: DataFrame, measures: Sequence[str], **options: Any
) -> RunEvaluation:
    return evaluate_run(as_table(run), qrels, measures, lambda _, rows: rows.cache(), **options)


def means_of(found: RunEvaluation, names: Sequence[str]) -> dict[str, float]:
    return means(side_of(found.values, AFTER, names))


def as_qrels(spark: SparkSession, qrels: Grades) -> DataFrame:
    rows = [(q, d, g) for q, docs in qrels.items() for d, g in docs.items()]
    return spark.createDataFrame(rows, "query_id string, doc_id string, relevance int")


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


def trec_eval(name: str, run: Scores, qrels: Grades) -> dict[str, float]:
    """Values by query, for what trec_eval has; queries missing from the run are absent."""
    measure = ir_measures.parse_measure(name)
    k, rel = measure.params.get("cutoff"), measure.params.get("rel", 1)
    cut = {"nDCG": "ndcg_cut", "AP": "map_cut", "P": "P", "R": "recall", "Success": "success"}
    uncut = {"nDCG": "ndcg", "AP": "map", "RR": "recip_rank", "Bpref": "bpref", "Rprec": "Rprec"}
    asked, key = (
        (uncut[measure.NAME],) * 2
        if k is None
        else (f"{cut[measure.NAME]}.{k}", f"{cut[measure.NAME]}_{k}")
    )
    # Where every grade of a query is negative, pytrec-eval reads past an array and can crash.
    # Nothing is relevant there, which is 0 in every measure.
    usable = {query: grades for query, grades in qrels.items() if max(grades.values()) >= 0}
    judge = pytrec_eval.RelevanceEvaluator(usable, {asked}, relevance_level=rel)
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


def expected(name: str, run: Scores, qrels: Grades) -> dict[str, float]:
    if name.startswith("Judged") or (name.startswith("RR") and "@" in name):
        # trec_eval has neither. ir_measures has, but breaks ties by ascending doc_id in these two
        # and compares in double; given an order without ties it has nothing to break.
        values = ir_measures.iter_calc([ir_measures.parse_measure(name)], qrels, in_trec_order(run))
        return {value.query_id: value.value for value in values}
    return trec_eval(name, run, qrels)


@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_measure_of_every_query_is_the_references(spark: SparkSession, seed: int) -> None:
    run, qrels = random_queries(seed)
    kind = "float" if seed % 2 else "double"
    found = measured(as_run(spark, run, kind), as_qrels(spark, qrels), MEASURES)
    table = found.values.set_index("query_id")
    assert set(table.index) == qrels.keys()
    best = {
        query: {doc: float(qrels.get(query, {}).get(doc, -9)) for doc in docs}
        for query, docs in run.items()
    }
    for side, order in ((AFTER, run), (CEILING, best)):
        for name in MEASURES:
            if side == CEILING and name.startswith("Judged"):
                assert side + name not in table
                continue
            values = expected(name, order, qrels)
            for query in qrels:
                want = values.get(query, 0.0)  # missing is zero, never absent
                story = (side, name, run.get(query), qrels[query])
                assert table.at[query, side + name] == pytest.approx(want, abs=1e-6), story
    for query, grades in qrels.items():
        row = table.loc[query]
        assert row["n_retrieved"] == len(run.get(query, {}))
        assert row["n_relevant"] == sum(grade > 0 for grade in grades.values())
        assert row["answered"] == (query in run)
    reranked, counts = means_of(found, MEASURES), found.counts()
    for name in MEASURES:
        values = expected(name, run, qrels)
        want = sum(values.get(query, 0.0) for query in qrels) / len(qrels)
        assert reranked[name] == pytest.approx(want, abs=1e-6)
    assert counts == {
        "queries": len(qrels),
        "queries_judged": sum(bool(run.get(q, {}).keys() & qrels[q].keys()) for q in qrels),
        "queries_unanswered": len(qrels.keys() - run.keys()),
        "queries_without_relevant": sum(
            all(grade < 1 for grade in grades.values()) for grades in qrels.values()
        ),
        "queries_only_in_run": len(run.keys() - qrels.keys()),
    }


def test_the_digits_do_not_depend_on_the_partitions(
    spark: SparkSession, shuffle_partitions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["nDCG", "nDCG@3", "AP", "RR", "R@2", "Judged@10"]
    run, qrels = random_queries(7, queries=300)
    printed = set()
    for n, bucket in ((1, 20_000), (3, 500), (7, 100)):
        shuffle_partitions(n)
        monkeypatch.setattr("jobs.evaluation.run._BUCKET", bucket)
        shuffled = as_run(spark, run).repartition(n, F.rand(seed=n))
        judged = as_qrels(spark, qrels).repartition(n, F.rand(seed=n + 1))
        printed.add(repr(means_of(measured(shuffled, judged, names), names)))
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
    sorts by ascending id and compares in double: its two values differ on the same run.
    """
    rows = {"equal": {"10": 1.0, "9": 1.0}, "equal in float32": {"10": 1.0 + 1e-9, "9": 1.0}}
    qrels = {query: {"10": 1} for query in rows}
    names = ["RR", "RR@10"]
    theirs = ir_measures.calc_aggregate(map(ir_measures.parse_measure, names), qrels, rows)
    assert {str(name): value for name, value in theirs.items()} == {"RR": 0.5, "RR@10": 1.0}
    run, judged = as_run(spark, rows), as_qrels(spark, qrels)
    assert means_of(measured(run, judged, names), names) == {"RR": 0.5, "RR@10": 0.5}
    other = measured(run, judged, names, tie_break="doc_id_asc")
    assert means_of(other, names) == {"RR": 1.0, "RR@10": 1.0}


def test_unanswered_queries_count_zero_where_trec_eval_without_c_leaves_them_out(
    spark: SparkSession,
) -> None:
    """ir_measures and `trec_eval -c` average over the qrels; plain trec_eval over the answers."""
    run, qrels = {"a": {"d": 1.0}}, {"a": {"d": 1}, "b": {"d": 1}}
    assert trec_eval("AP", run, qrels) == {"a": 1.0}
    assert ir_measures.calc_aggregate([ir_measures.AP], qrels, run) == {ir_measures.AP: 0.5}
    found = measured(as_run(spark, run), as_qrels(spark, qrels), ["AP"])
    assert means_of(found, ["AP"]) == {"AP": 0.5}
    empty = measured(as_run(spark, {}), as_qrels(spark, qrels), MEASURES)
    assert set(means_of(empty, MEASURES).values()) == {0.0}
    assert empty.counts()["queries_unanswered"] == 2


def test_a_run_with_repeated_pairs_or_missing_scores_leaves_no_number(spark: SparkSession) -> None:
    schema, qrels = "query_id string, doc_id string, score double", as_qrels(spark, {"q": {"d": 1}})
    twice = spark.createDataFrame([("q", "d", 1.0), ("q", "d", 3.0), ("r", "d", 1.0)], schema)
    with pytest.raises(RefusedError, match=r"1 rows of the run repeat .* in query 'q'"):
        measured(twice, qrels, ["AP"])
    own = replace(as_table(twice), record={"kind": "rerank"})
    found = evaluate_run(own, qrels, ["AP"], lambda _, rows: rows.cache())
    assert means_of(found, ["AP"]) == {"AP": 1.0}
    missing = spark.createDataFrame([("a", "d", float("nan")), ("b", "d", None)], schema)
    with pytest.raises(RefusedError, match=r"2 rows of run have a null or NaN score.*query 'a'"):
        measured(missing, qrels, ["AP"])


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
    table, judged = read_run(spark, DATA / run), read_qrels(spark, str(DATA / qrels))
    names = list(known)
    found = means_of(measured(table, judged, names), names)
    assert {name: round(value, 4) for name, value in found.items()} == known


@pytest.mark.slow
def test_a_query_with_100_000_candidates(spark: SparkSession) -> None:
    """One bucket then holds more rows than others; the values are trec_eval's all the same."""
    count = 100_000
    table = spark.range(count).select(
        F.lit("q").alias("query_id"), F.col("id").cast("string").alias("doc_id"),
        (F.col("id") * 7919 % 9973).cast("double").alias("score"),
    )  # fmt: skip
    run = {"q": {str(i): float(i * 7919 % 9973) for i in range(count)}}
    qrels = {"q": {str(i): i % 3 for i in range(0, count, 997)}}
    names = ["AP", "nDCG", "RR", "R@1000"]
    found = means_of(measured(table, as_qrels(spark, qrels), names), names)
    for name in names:
        assert found[name] == pytest.approx(trec_eval(name, run, qrels)["q"], abs=1e-6)
