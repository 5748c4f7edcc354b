"""Evaluations: from ranked tables to a document, a gate, a report and an exit code."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from scipy import stats

from jobs import evaluate
from jobs.evaluation.document import assemble, means, side_of
from jobs.evaluation.measures import BEFORE
from jobs.evaluation.ranked import Table, read_ranked
from jobs.evaluation.run import evaluate_run
from jobs.runtime.errors import DONE, GATE_NOT_PASSED, REFUSED, RefusedError
from tests.conftest import shared_data
from tests.spark.test_metrics import Grades, expected

ROWS = [  # query, document, rank, score, retrieval_rank, retrieval_score
    ("q", "a", 1, 3.0, 3, 1.0),
    ("q", "b", 2, 2.0, 1, 5.0),
    ("q", "c", 3, 1.0, 2, 5.0),
    ("alone", "a", 1, 1.0, 1, 1.0),
]
GRADES: Grades = {"q": {"a": 2, "c": 1, "lost": 1}, "unanswered": {"x": 1}}


SCHEMA = (
    "query_id string, doc_id string, rank int, score float, retrieval_rank int, "
    "retrieval_score double, n_tokens int, truncated boolean"
)


def as_ranked(spark: SparkSession, rows: list[Any]) -> DataFrame:
    return spark.createDataFrame([(*row, 10, False) for row in rows], SCHEMA)


def measured(
    spark: SparkSession, rows: list[Any], names: Sequence[str] = ("RR",), **table: Any
) -> dict[str, Any]:
    grades = [(q, d, g) for q, grades in GRADES.items() for d, g in grades.items()]
    qrels = spark.createDataFrame(grades, "query_id string, doc_id string, relevance int")
    run = Table("s", as_ranked(spark, rows), **table)
    found = evaluate_run(run, qrels, names, lambda _, rows: rows.cache())
    return assemble(found, [], None, names) | {"partial": found.partial}


def test_both_stages_stand_side_by_side_under_a_ceiling(spark: SparkSession) -> None:
    measures = ["nDCG@10", "RR", "R@10", "R@1", "Judged@10"]
    result = measured(spark, ROWS, measures)
    first = {"q": {"a": 1.0, "b": 5.0, "c": 5.0}}
    second = {"q": {"a": 3.0, "b": 2.0, "c": 1.0}}
    best = {"q": {"a": 2.0, "b": -9.0, "c": 1.0}}
    stages = {"first_stage": first, "reranked": second, "ceiling": best}
    for stage, run in stages.items():
        names = [*measures]
        if stage == "ceiling":
            names.remove("Judged@10")
        assert list(result[stage]) == names
        for name in names:
            values = expected(name, run, GRADES)
            assert result[stage][name] == pytest.approx(values["q"] / 2, abs=1e-6), (stage, name)
    for name, value in result["delta"].items():
        assert value == result["reranked"][name] - result["first_stage"][name]
    counts = {name: value for name, value in result.items() if name.startswith("queries")}
    assert counts == {
        "queries": 2,
        "queries_judged": 1,
        "queries_unanswered": 1,
        "queries_without_relevant": 0,
        "queries_only_in_run": 1,
    }
    assert result["first_stage_order"] == "retrieval_score"


def test_the_first_stage_is_read_from_ranks_where_scores_are_incomplete(
    spark: SparkSession,
) -> None:
    rows = [(*row[:5], None) if row[1] == "c" else row for row in ROWS]
    result = measured(spark, rows)
    assert result["first_stage_order"] == "retrieval_rank"
    assert result["first_stage"] == {"RR": 0.25}  # b, c, a: the second of q is relevant
    by_score = measured(spark, ROWS)
    assert by_score["first_stage"] == {"RR": 0.5}  # c, b, a: the tie goes to the higher id


def test_a_table_without_a_first_stage_is_measured_alone(spark: SparkSession) -> None:
    rows = [(*row[:4], None, None) for row in ROWS]
    result = measured(spark, rows)
    assert (result["first_stage"], result["delta"], result["first_stage_order"]) == (None,) * 3
    assert result["reranked"] == {"RR": 0.5}


def test_a_first_stage_with_gaps_in_both_columns_is_refused(spark: SparkSession) -> None:
    rows = [(*ROWS[0][:4], None, 1.0), (*ROWS[1][:4], 2, None)]
    with pytest.raises(
        RefusedError, match="of 2 rows 1 have a retrieval_score and 1 a retrieval_rank"
    ):
        measured(spark, rows)
    own = measured(spark, rows, record={"kind": "rerank"})
    assert own["first_stage"] is None
    assert own["partial"] == (
        "The first stage is partial and was not measured: of 2 rows 1 have a retrieval_score and "
        "1 a retrieval_rank."
    )


QUERIES, DEPTH = 40, 25
Evaluate = Callable[..., int]


def tables(folder: Path, seed: int = 1, gain: float = 1.0) -> tuple[Path, Path]:
    """A ranked table whose order is better than the first stage's, by chance, and its qrels."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(0)
    ids = [(f"q{q:02}", f"d{d:02}") for q in range(QUERIES) for d in range(DEPTH)]
    frame = pd.DataFrame(ids, columns=["query_id", "doc_id"])
    grade = truth.choice([0, 0, 0, 1, 2], size=len(frame))
    frame["retrieval_score"] = truth.normal(grade * 0.5, 1.0).round(1)  # some ties
    frame["score"] = rng.normal(grade * gain, 1.0).astype(np.float32)
    frame["rank"] = frame.groupby("query_id")["score"].rank(ascending=False).astype(int)
    frame["n_tokens"] = truth.integers(20, 513, len(frame)).astype(np.int32)
    frame["truncated"] = frame["n_tokens"] == 512
    frame["language"] = np.where(frame["query_id"] < "q15", "en", "zh")
    ranked, qrels = folder / f"run{seed}" / "ranked", folder / "qrels.txt"
    ranked.mkdir(parents=True)
    frame.to_parquet(ranked / "part-0.parquet")
    judged = frame.assign(grade=grade).query("doc_id != 'd03'")  # one unjudged document a query
    lines = [f"{r.query_id} 0 {r.doc_id} {r.grade}" for r in judged.itertuples()]
    qrels.write_text("\n".join([*lines, "lonely 0 d1 1"]) + "\n")
    return ranked, qrels


def run(out: Path, ranked: Sequence[object], *words: str) -> int:
    given = [word for path in ranked for word in ("--ranked.path", str(path))]
    return evaluate.main(["--output.path", str(out), *given, *words])


@pytest.fixture
def command(spark: SparkSession) -> Evaluate:
    return run


OFF = ("--mlflow.enabled", "false")
SLICES = ("--evaluation.slices", "language", "--evaluation.slices", "n_tokens")


def document(out: Path) -> dict[str, Any]:
    """The measures, also of a gate that was not passed."""
    file = out / "metrics.json"
    kept = out.glob("unpublished/*/metrics.json")
    content: dict[str, Any] = json.loads((file if file.exists() else next(kept)).read_text())
    return content


@pytest.fixture(scope="module")
def evaluated(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ranked table, its qrels, and `same`, their evaluation."""
    folder = tmp_path_factory.mktemp("evaluated")
    ranked, qrels = tables(folder)
    words = ("--evaluation.qrels", str(qrels), *SLICES, *OFF)
    assert run(folder / "same", [f"same={ranked}"], *words) == DONE
    return folder


def test_the_whole_evaluation(evaluated: Path) -> None:
    ranked, out = evaluated / "run1" / "ranked", evaluated / "same"
    found = document(out)
    assert (found["queries"], found["queries_unanswered"]) == (QUERIES + 1, 1)
    frame = pq.read_table(ranked).to_pandas()

    # Per query: the table, the tests and the plot are one set of numbers.
    per_query = pq.read_table(out / "per_query").to_pandas().set_index("query_id").sort_index()
    before, after = per_query["first_stage nDCG@10"], per_query["reranked nDCG@10"]
    assert after.mean() == pytest.approx(found["reranked"]["nDCG@10"])
    test = found["tests"]["nDCG@10"]
    assert test["p"] == pytest.approx(stats.ttest_rel(after, before).pvalue, abs=0.02)
    assert test["helped"] == (after > before).sum()
    assert sorted(found["per_query"]["differences"]) == pytest.approx(sorted(after - before))
    best = found["per_query"]["most_helped"][0]
    assert best["delta"] == (after - before).max()
    low, high = found["intervals"]["delta"]["nDCG@10"]
    assert low < found["delta"]["nDCG@10"] < high

    # What moved, against pandas.
    order = ["retrieval_score", "doc_id"]
    first = frame.sort_values(order, ascending=False).groupby("query_id").cumcount() + 1
    frame["before"] = first.reindex(frame.index)
    moved = found["moved"]
    top = frame[frame["rank"] == 1]
    assert moved["top1_change_rate"] == (top["before"] != 1).mean()
    tau = [stats.kendalltau(rows["rank"], rows["before"]).statistic
           for _, rows in frame.groupby("query_id")]  # fmt: skip
    assert moved["kendall_tau"]["mean"] == pytest.approx(np.mean(tau), abs=1e-4)
    change = frame["before"] - frame["rank"]
    assert moved["rank_change"]["mean_absolute"] == pytest.approx(change.abs().mean())
    assert sum(count for _, count in moved["rank_change"]["histogram"]) == len(frame)
    flow = {row["from"]: row["count"] for row in moved["flow"]["rows"]}
    assert flow["11-20"] == ((frame["rank"] <= 10) & frame["before"].between(11, 20)).sum()
    cut = frame[frame["truncated"]]
    assert moved["truncation"]["pairs"] == len(cut)
    assert moved["truncation"]["queries"] == cut["query_id"].nunique()

    # Scores, lengths, slices.
    assert sum(map(sum, (found["scores"][k] for k in ("relevant", "not_relevant")))) == len(
        frame[frame["doc_id"] != "d03"]
    )
    assert sum(found["scores"]["unjudged"]) == QUERIES
    assert found["lengths"]["p95"] == np.quantile(frame["n_tokens"], 0.95, method="inverted_cdf")
    language, length = found["slices"]
    assert [(row["value"], row["queries"]) for row in language["rows"]] == [
        ("en", 15), ("zh", 25), ("none", 1),
    ]  # fmt: skip
    english = per_query[per_query["language"] == "en"]["reranked nDCG@10"].mean()
    assert language["rows"][0]["reranked"]["nDCG@10"] == pytest.approx(english)
    assert sum(row["queries"] for row in length["rows"]) == QUERIES + 1
    assert length["rows"][0]["value"].startswith("up to")

    report = (out / "report.html").read_text()
    assert "nDCG@10" in report and "q00" in report


def test_the_reliability_of_a_probability(evaluated: Path) -> None:
    scores = document(evaluated / "same")["scores"]
    frame = pq.read_table(evaluated / "run1" / "ranked").to_pandas()
    grades = pd.read_csv(
        evaluated / "qrels.txt", sep=" ", names=["query_id", "_", "doc_id", "grade"]
    )
    both = frame.merge(grades, on=["query_id", "doc_id"])
    probability = 1 / (1 + np.exp(-both["score"].astype(float)))
    bins = np.minimum((probability * 10).astype(int), 9)
    gaps = 0.0
    for at, row in enumerate(scores["reliability"]):
        inside = bins == at
        assert row["pairs"] == inside.sum()
        if inside.any():
            share = (both["grade"][inside] >= 1).mean()
            assert row["share_relevant"] == pytest.approx(share)
            assert row["mean_probability"] == pytest.approx(probability[inside].mean())
            gaps += abs(share - probability[inside].mean()) * inside.sum()
    assert scores["ece"] == pytest.approx(gaps / len(both))


def test_no_digit_depends_on_the_partitions(
    command: Evaluate, evaluated: Path, spark: SparkSession, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    table = spark.read.parquet(str(evaluated / "run1" / "ranked"))
    shuffled = tmp_path / "shuffled" / "ranked"
    table.repartition(7, F.rand(3)).write.parquet(str(shuffled))
    words = ("--evaluation.qrels", str(evaluated / "qrels.txt"), *SLICES, *OFF)
    assert command(tmp_path / "eval", [f"same={shuffled}"], *words) == DONE
    assert document(tmp_path / "eval") == document(evaluated / "same")
    said = capsys.readouterr().out
    assert f"over {QUERIES + 1} queries" in said and "1 queries without a candidate" in said


def test_a_list_is_its_group_and_its_query(
    command: Evaluate, evaluated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log of two days: measured per day and query, against the grades of the query."""
    frame = pq.read_table(evaluated / "run1" / "ranked").to_pandas()
    log = pd.concat([frame.assign(day=day) for day in ("1", "2")])
    log.to_parquet(tmp_path / "log.parquet")
    words = ("--evaluation.qrels", str(evaluated / "qrels.txt"), *OFF)
    assert command(tmp_path / "1", [tmp_path / "log.parquet"], *words) == REFUSED
    assert "name the columns of a list in input.group" in capsys.readouterr().err
    group = ("--input.group", "day", "--evaluation.slices", "day")
    assert command(tmp_path / "1", [tmp_path / "log.parquet"], *words, *group) == DONE
    found, alone = document(tmp_path / "1"), document(evaluated / "same")
    assert (found["queries"], found["queries_unanswered"]) == (2 * QUERIES + 1, 1)
    for name, value in alone["reranked"].items():
        assert found["reranked"][name] * found["queries"] == pytest.approx(
            2 * value * alone["queries"]
        )
    assert found["per_query"]["most_helped"][0]["day"] == "1"
    (slices,) = found["slices"]
    assert [row["value"] for row in slices["rows"]] == ["1", "2", "none"]
    per_query = pq.read_table(tmp_path / "1" / "per_query").to_pandas()
    assert len(per_query[["day", "query_id"]].dropna().drop_duplicates()) == 2 * QUERIES


def test_tables_without_rows_without_a_first_stage_and_with_infinite_scores(
    command: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranked, qrels = tables(tmp_path)
    frame = pq.read_table(ranked).to_pandas()[["query_id", "doc_id", "score"]]
    frame.loc[[3, 7], "score"] = [np.inf, -np.inf]
    frame.to_parquet(tmp_path / "alone.parquet")
    frame.head(0).to_parquet(tmp_path / "empty.parquet")
    paths = [f"{name}={tmp_path}/{name}.parquet" for name in ("alone", "empty")]
    words = ("--evaluation.qrels", str(qrels), *OFF)
    assert command(tmp_path / "1", paths, *words) == DONE
    found = document(tmp_path / "1")
    assert (found["first_stage"], found["moved"], found["tests"]) == (None, None, None)
    assert [(row["name"], row["versus"] is None) for row in found["systems"]] == [
        ("alone", True), ("empty", False),
    ]  # fmt: skip
    assert found["systems"][1]["values"]["nDCG@10"] == 0.0
    classes = ("relevant", "not_relevant", "unjudged")
    assert sum(sum(found["scores"][name]) for name in classes) == len(frame) - 2
    rules = ("--evaluation.gate", "nDCG@10 >= 0", "--evaluation.gate", "ece <= 1")
    assert command(tmp_path / "2", paths[::-1], *words, *rules) == GATE_NOT_PASSED
    assert "FAIL ece <= 1: unknown (no value is known)" in capsys.readouterr().out
    assert document(tmp_path / "2")["queries_unanswered"] == QUERIES + 1


def test_several_tables_and_a_baseline(
    command: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, qrels = tables(tmp_path, seed=1, gain=1.5)
    poor, _ = tables(tmp_path, seed=2, gain=0.2)
    out = tmp_path / "eval"
    words = ("--evaluation.qrels", str(qrels), "--evaluation.baseline", "poor",
             "--evaluation.gate", "nDCG@10 vs baseline >= 0 (significant)", *OFF)  # fmt: skip
    assert command(out, [f"good={good}", f"poor={poor}"], *words) == DONE
    found = document(out)
    assert [row["name"] for row in found["systems"]] == ["first stage", "good", "poor"]
    assert found["systems"][2]["versus"] is None
    better = found["systems"][1]["versus"]["nDCG@10"]
    assert better["delta"] == pytest.approx(
        found["reranked"]["nDCG@10"] - found["systems"][2]["values"]["nDCG@10"]
    )
    assert better["p_holm"] < 0.01
    assert found["baseline"]["delta"]["nDCG@10"] == pytest.approx(better["delta"])
    assert "(baseline)" in capsys.readouterr().out
    # The other way round the rule is broken.
    assert command(out, [f"poor={poor}", f"good={good}"], *words[:3], "good", *words[4:]) == (
        GATE_NOT_PASSED
    )
    assert "FAIL nDCG@10 vs baseline >= 0 (significant): -0." in capsys.readouterr().out


def shifted(ranked: Path, folder: Path, queries: int) -> Path:
    """The same table with the first queries under other names."""
    frame = pq.read_table(ranked).to_pandas()
    other = frame["query_id"] < f"q{queries:02}"
    frame.loc[other, "query_id"] = "r" + frame["query_id"]
    frame.to_parquet(folder / "shifted.parquet")
    return folder / "shifted.parquet"


def test_a_baseline_is_compared_on_the_queries_that_both_rank(
    command: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 14: the rule was about 4 shared queries, and the terminal showed 12."""
    ranked, qrels = tables(tmp_path)
    few = shifted(ranked, tmp_path, QUERIES - 4)
    words = ("--evaluation.qrels", str(qrels), "--evaluation.baseline", str(few),
             "--evaluation.gate", "nDCG@10 vs baseline >= 0", *OFF)  # fmt: skip
    assert command(tmp_path / "1", [ranked], *words) == GATE_NOT_PASSED
    found = document(tmp_path / "1")
    baseline = found["baseline"]
    assert (baseline["queries"], baseline["only_here"], baseline["only_baseline"]) == (
        4 + 1, QUERIES - 4, 0,  # the query that neither ranks counts 0 in both
    )  # fmt: skip
    frame = pq.read_table(tmp_path / "1" / "per_query").to_pandas()
    shared = frame[frame["query_id"].between("q36", "q39")]["reranked nDCG@10"].sum() / 5
    systems = {row["name"]: row for row in found["systems"]}
    for value in (baseline["reranked"], baseline["values"], systems["run1"]["values"]):
        assert value["nDCG@10"] == pytest.approx(shared)
    assert found["gate"]["rules"][0]["value"] == baseline["delta"]["nDCG@10"] == 0.0
    assert {row["queries"] for row in found["systems"]} == {5}
    assert any("over the 5 queries that both rank or neither; 36 are only here" in w
               for w in found["warnings"])  # fmt: skip
    said = capsys.readouterr().out
    assert "rests on 4 judged shared queries, evaluation.min_queries is 5" in said
    assert command(tmp_path / "2", [ranked], *words, "--evaluation.min_queries", "4") == DONE
    none = shifted(ranked, tmp_path, QUERIES)
    words = tuple(str(none) if word == str(few) else word for word in words)
    assert command(tmp_path / "3", [ranked], *words) == REFUSED
    assert "'q00', 'q01', 'q02' here" in capsys.readouterr().err


def test_a_gate_does_not_pass_on_nothing(
    command: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 14: ids that meet nowhere gave 0 everywhere, and 'delta >= 0' held."""
    ranked, _ = tables(tmp_path)
    rule = ("--evaluation.gate", "nDCG@10 delta >= 0", *OFF)
    other, docs, few = (tmp_path / name for name in ("other", "docs", "few"))
    other.write_text("nobody 0 nothing 1\n")
    docs.write_text("q00 0 doc-1 1\n")
    few.write_text("".join(f"q{q:02} 0 d0{q} 1\n" for q in range(4)))
    assert command(tmp_path / "1", [ranked], "--evaluation.qrels", str(other), *rule) == REFUSED
    assert "'q00', 'q01', 'q02' here, 'nobody' there" in capsys.readouterr().err
    assert command(tmp_path / "1", [ranked], "--evaluation.qrels", str(docs), *rule) == REFUSED
    assert "'d00', 'd01', 'd02' here, 'doc-1' there" in capsys.readouterr().err
    assert not list(tmp_path.glob("1/[!.]*"))
    words = ("--evaluation.qrels", str(few), *rule)
    assert command(tmp_path / "2", [ranked], *words) == GATE_NOT_PASSED
    said = capsys.readouterr().out
    assert "rests on 4 judged queries, evaluation.min_queries is 5" in said
    assert any("Only 4 of 4" in warning for warning in document(tmp_path / "2")["warnings"])


def test_operational_rules_need_no_labels_and_ties_are_told(
    command: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A constant scorer was ranked and measured without a word."""
    ranked, qrels = tables(tmp_path)
    frame = pq.read_table(ranked).to_pandas()
    frame.assign(score=np.float32(0.5)).to_parquet(tmp_path / "same.parquet")
    rules = ("--evaluation.gate", "tied_rate <= 0.9", "--evaluation.gate", "kendall_tau <= 1")
    assert command(tmp_path / "1", [tmp_path / "same.parquet"], *rules, *OFF) == GATE_NOT_PASSED
    assert "FAIL tied_rate <= 0.9: 1.0000" in capsys.readouterr().out
    found = document(tmp_path / "1")
    assert (found["scores"]["tied_rate"], found["scores"]["constant"]) == (1.0, True)
    assert found["warnings"][0].startswith("All scores are equal")
    assert "reranked" not in found and found["operations"] is None
    # Half of them equal in pairs, and a Judged@10 that falls.
    rank = frame.groupby("query_id")["doc_id"].rank().astype(int)
    frame["score"] = (rank // 2).astype(np.float32)
    frame["retrieval_score"] = -frame["score"].astype(float)
    frame.to_parquet(tmp_path / "pairs.parquet")
    lines = [f"{q} 0 d0{d} 1" for q in frame["query_id"].unique() for d in (0, 1, 2)]
    qrels.write_text("\n".join(lines) + "\n")
    words = ("--evaluation.qrels", str(qrels), *OFF)
    assert command(tmp_path / "2", [tmp_path / "pairs.parquet"], *words) == DONE
    found = document(tmp_path / "2")
    assert found["scores"]["tied_rate"] == 24 / 25
    assert any(warning.startswith("96% of the candidates") for warning in found["warnings"])
    assert any("Judged@10 fell from 0.300 (first stage) to 0.000" in w for w in found["warnings"])


@pytest.mark.slow
def test_a_gate_in_mlflow_and_the_latest_passing_run_as_baseline(
    command: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against a real sqlite store: begin, pass, fail; the failed run is no baseline."""
    from mlflow.tracking import MlflowClient

    good, qrels = tables(tmp_path, seed=1, gain=1.5)
    poor, _ = tables(tmp_path, seed=2, gain=0.2)
    store = f"sqlite:///{tmp_path}/mlflow.db"
    words = ("--evaluation.qrels", str(qrels), "--evaluation.baseline", "mlflow:nightly",
             "--evaluation.gate", "nDCG@10 vs baseline >= -0.01 (significant)",
             "--mlflow.experiment", "nightly", "--mlflow.tracking_uri", store)  # fmt: skip
    assert command(tmp_path / "1", [good], *words) == DONE
    assert "no passing run yet" in capsys.readouterr().out
    assert command(tmp_path / "2", [poor], *words) == GATE_NOT_PASSED
    assert command(tmp_path / "3", [good], *words) == DONE
    third = document(tmp_path / "3")["baseline"]
    assert (third["queries"], third["only_here"], third["only_baseline"]) == (QUERIES + 1, 0, 0)
    assert third["delta"]["nDCG@10"] == 0.0
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("nightly")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    assert [run.info.status for run in runs] == ["FINISHED", "FAILED", "FINISHED"]
    assert runs[1].data.tags["gate.failed"] == "nDCG@10 vs baseline >= -0.01 (significant)"
    assert set(runs[0].data.metrics) == set(runs[2].data.metrics)
    assert {file.path for file in client.list_artifacts(runs[0].info.run_id)} == {
        "run.json", "metrics.json", "report.html", "per_query", "plots",
    }  # fmt: skip
    plots = {file.path for file in client.list_artifacts(runs[0].info.run_id, "plots")}
    assert {"plots/win_loss.svg", "plots/flow.svg", "plots/scores.svg"} <= plots
    elsewhere = [word.replace("mlflow:nightly", "mlflow:nowhere") for word in words]
    assert command(tmp_path / "4", [good], *elsewhere) == REFUSED
    assert "no such experiment" in capsys.readouterr().err
    # A gate that failed outweighs a server that is down.
    down = [word.replace(store, "http://127.0.0.1:9") for word in words if "baseline" not in word]
    del down[down.index("--evaluation.gate")]
    keys = ["--evaluation.gate", "nDCG@10 >= 0.99"]
    down = [w for w in down if w != "mlflow:nightly"]
    assert command(tmp_path / "5", [good], *down, *keys) == GATE_NOT_PASSED
    assert "MLflow could not be reached" in capsys.readouterr().err


def test_texts_are_shown_only_on_demand(
    command: Evaluate, spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranked, qrels = tables(tmp_path)
    words = ("--evaluation.qrels", str(qrels), *OFF, "--report.examples", "2")
    assert command(tmp_path / "no", [ranked], *words) == REFUSED
    assert "set input.path" in capsys.readouterr().err
    pairs = pq.read_table(ranked).to_pandas()[["query_id", "doc_id"]]
    pairs["query"], pairs["doc"] = "text of " + pairs["query_id"], "<b>" + pairs["doc_id"] + "</b>"
    pairs.to_parquet(tmp_path / "in.parquet")
    out = tmp_path / "out"
    assert command(out, [ranked], *words, "--input.path", str(tmp_path / "in.parquet")) == DONE
    report = (out / "report.html").read_text()
    found = document(out)["per_query"]
    for side in ("most_helped", "most_hurt"):
        assert f"text of {found[side][0]['query_id']}" in report
    assert report.count("text of ") == 2
    assert "&lt;b&gt;d0" in report and "<b>d0" not in report
    for name in ("metrics.json", "run.json"):
        assert "text of" not in (out / name).read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "set evaluation.qrels, or give a ranked table with grades in a column label"),
        (("--evaluation.qrels", "/no/file"), "/no/file"),
        (("--evaluation.slices", "tongue"), "lacks tongue; the columns present are query_id"),
        (("--evaluation.gate", "nDCG@10 is good"), "cannot read 'nDCG@10 is good'; write NAME"),
        (("--evaluation.gate", "nDCG@10 >= 0,3"), "'nDCG@10 >= 0,3'; write a number as 0.3"),
        (("--evaluation.gate", "goodness >= 1"), "top1_change_rate"),
        (("--evaluation.gate", "AP vs baseline >= 0"), "set evaluation.baseline"),
        (("--evaluation.metrics", "ndgc@5"), "did you mean nDCG@5"),
        (("--evaluation.slices", "rbo"), "rbo is a column of the table per query"),
        (("--evaluation.baseline", "run1"), "run1 is the table that is judged"),
        (("--ranked.path", "/no/table"), "/no/table"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    words: tuple[str, ...], said: str, command: Evaluate, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    ranked, _ = tables(tmp_path)
    assert command(tmp_path / "out", [ranked], *words, *OFF) == REFUSED
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_grades_made_of_scores_judge_no_partition_either(
    spark: SparkSession, tmp_path: Path
) -> None:
    folder = tmp_path / "ranked" / "date=2026-01-31" / "lang=en"
    folder.mkdir(parents=True)
    rows = {"query_id": ["q"], "doc_id": ["a"], "score": [1.0], "label": [1]}
    pd.DataFrame(rows).to_parquet(folder / "part-0.parquet")
    config = {"label": {"thresholds": [0.5], "column": "label"}, "input": {"group": ["date"]}}
    record = {"run_id": "1", "kind": "rerank", "config": config}
    (tmp_path / "run.json").write_text(json.dumps(record))
    for path in (folder, folder.parent, tmp_path / "ranked"):
        found = read_ranked(spark, "x", f"{path}/")
        assert found.own and "label" not in found.candidates.columns
        assert found.group == ("date",)
        assert [str(row["date"]) for row in found.candidates.collect()] == ["2026-01-31"]


def test_a_ranked_table_of_text(spark: SparkSession, tmp_path: Path) -> None:
    """As pandas writes it; and one whose first line is none of names, and must not be printed."""
    path = tmp_path / "ranked.csv"
    path.write_text("query_id,doc_id,score,retrieval_rank\nq,a,1.5,2.0\nq,b,high,1.0\n")
    found = read_ranked(spark, "x", str(path)).candidates.orderBy("doc_id").collect()
    assert [(row["score"], row["retrieval_rank"]) for row in found] == [(1.5, 2), (None, 1)]
    path.write_text("q,a secret,1.5\n")
    with pytest.raises(RefusedError, match="has none of the columns doc_id, query_id, score") as e:
        read_ranked(spark, "x", str(path))
    assert "secret" not in str(e.value)


def test_a_table_that_repeats_a_pair_is_refused(
    command: Evaluate, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ranked, qrels = tables(tmp_path)
    part = ranked / "part-0.parquet"
    part.with_name("part-1.parquet").write_bytes(part.read_bytes())
    assert command(tmp_path / "o", [ranked], "--evaluation.qrels", str(qrels), *OFF) == REFUSED
    assert "rows of the run repeat" in capsys.readouterr().err
    assert not list((tmp_path / "o").glob("[!.]*"))


@pytest.mark.parametrize(
    ("part", "known"),
    [
        ("dev", {"AP": 0.520, "RR": 0.660, "P@1": 0.519, "P@5": 0.421}),
        ("test", {"AP": 0.560, "RR": 0.680, "P@1": 0.538, "P@5": 0.425}),
    ],
)
def test_askubuntu(spark: SparkSession, part: str, known: dict[str, float]) -> None:
    """The published figures of BM25, over queries with a positive.

    They were computed in the order of the file, in which equal scores stand anyhow; trec_eval's
    order of ties gives an AP of 0.521 (dev) and 0.559 (test) instead.
    """
    rows, grades = [], []
    for line in Path(shared_data(f"metrics/askubuntu.{part}.txt")).read_text().splitlines():
        query, positives, candidates, _ = line.split("\t")
        rows += [
            (query, doc, 0, 0.0, rank, None) for rank, doc in enumerate(candidates.split(), start=1)
        ]
        grades += [(query, doc, 1) for doc in positives.split()]
    qrels = spark.createDataFrame(grades, "query_id string, doc_id string, relevance int")
    measures = list(known)
    run = Table("s", as_ranked(spark, rows))
    found = evaluate_run(run, qrels, measures, lambda _, rows: rows.cache())
    values = means(side_of(found.values, BEFORE, measures))
    assert {name: round(value, 3) for name, value in values.items()} == known


@pytest.mark.slow
def test_cmedqa2(spark: SparkSession, tmp_path: Path) -> None:
    """400,000 candidates of 4,000 queries, against trec_eval itself."""
    import pytrec_eval

    with zipfile.ZipFile(shared_data("metrics/cmedqa2.test_candidates.zip")) as archive:
        frame = pd.read_csv(archive.open("test_candidates.txt"), dtype={"question_id": str})
    assert len(frame) == 400_000
    # A score with many ties; the labels stay what they are.
    frame["doc_id"] = frame["ans_id"].astype(str)
    frame["score"] = (frame["ans_id"] * 7919 % 89).astype(np.float32)
    frame = frame.drop_duplicates(["question_id", "doc_id"])
    names = {"nDCG@10": "ndcg_cut_10", "AP": "map", "RR": "recip_rank", "P@5": "P_5"}
    run: dict[str, dict[str, float]] = {}
    grades: dict[str, dict[str, int]] = {}
    columns = (frame[name].tolist() for name in ("question_id", "doc_id", "score", "label"))
    for query, doc, score, label in zip(*columns, strict=True):
        run.setdefault(query, {})[doc] = score
        grades.setdefault(query, {})[doc] = label
    judge = pytrec_eval.RelevanceEvaluator(grades, {"ndcg_cut.10", "map", "recip_rank", "P.5"})
    known = pd.DataFrame(judge.evaluate(run)).T.sort_index()
    # A file, and not rows in the plan: every step of the optimiser would copy all of them.
    frame = frame.rename(columns={"question_id": "query_id"})
    frame[["query_id", "doc_id", "score", "label"]].to_parquet(tmp_path / "ranked.parquet")
    table = spark.read.parquet(str(tmp_path / "ranked.parquet")).withColumns(
        {name: F.lit(None).cast(kind) for name, kind in (
            ("retrieval_score", "double"), ("retrieval_rank", "int"), ("n_tokens", "int"),
            ("truncated", "boolean"),
        )}
    )  # fmt: skip
    qrels = table.select("query_id", "doc_id", F.col("label").cast("int").alias("relevance"))
    found = evaluate_run(Table("s", table), qrels, list(names), lambda _, rows: rows.cache())
    assert found.values["query_id"].tolist() == known.index.tolist()
    for name, trec in names.items():
        mine = found.values[f"reranked {name}"].to_numpy()
        np.testing.assert_allclose(mine, known[trec].to_numpy(dtype=float), atol=1e-6)
