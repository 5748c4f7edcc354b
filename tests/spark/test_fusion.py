"""Fusion: several scores of a list become one order, in jobs.rerank and over ranked tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs import evaluate
from jobs.config import RankingConfig
from jobs.evaluation.ranked import Table
from jobs.fuse.__main__ import fuse, union
from jobs.fuse.__main__ import main as fuse_main
from jobs.fuse.fusion import FUSED, with_fused_score
from jobs.runtime.errors import DONE, REFUSED
from tests.spark.conftest import Job
from tests.spark.test_rerank import read, record

# Made by ranx 0.3.21 of random runs in trec_eval's order, with ties and missing documents; a list
# of one document, and one whose scores are equal. `b_whole` has every document of `a`.
RANX = json.loads(Path(__file__).with_name("fusion_ranx.json").read_text("utf-8"))
SCHEMA = "query_id string, doc_id string, score float, retrieval_rank int, retrieval_score double"
WEIGHTS = {"a": 0.7, "b": 0.3}
WAYS: dict[str, dict[str, Any]] = {
    "rrf": {"fusion": "rrf"},
    "rrf10": {"fusion": "rrf", "fusion_k": 10},
    **{
        way: {"fusion": "weighted", "fusion_normalise": way, "fusion_scores": WEIGHTS}
        for way in ("minmax", "rank", "zscore", "none")
    },
}


def table(spark: SparkSession, name: str, run: dict[str, dict[str, float]]) -> Table:
    rows = [(q, d, s, None, None) for q, docs in run.items() for d, s in docs.items()]
    return Table(name, spark.createDataFrame(rows, SCHEMA).repartition(3))


@pytest.mark.parametrize("way", WAYS)
def test_fused_scores_are_those_of_ranx(spark: SparkSession, way: str) -> None:
    # What ranx makes of a missing score is 0, which is not a low one on every scale.
    second = "b_whole" if way in ("zscore", "none") else "b"
    tables = [
        table(spark, "a", RANX["runs"]["a"]),
        table(spark, "b", RANX["runs"][second]),
    ]
    found = fuse(union(tables), tables, RankingConfig(**WAYS[way])).toPandas()
    expected = {(q, d): s for q, docs in RANX["fused"][way].items() for d, s in docs.items()}
    assert {(row.query_id, row.doc_id) for row in found.itertuples()} == set(expected)
    by_ranx = [expected[row.query_id, row.doc_id] for row in found.itertuples()]
    np.testing.assert_allclose(found["score"], by_ranx, rtol=1e-6, atol=1e-7)
    order = found.sort_values(["query_id", "score", "doc_id"], ascending=[True, False, False])
    assert order.groupby("query_id")["rank"].apply(list).map(sorted).tolist() == (
        order.groupby("query_id")["rank"].apply(list).tolist()
    )


def oracle(rows: pd.DataFrame, weights: dict[str, float], config: RankingConfig) -> pd.Series:
    """The same in plain pandas, for one list."""
    total = pd.Series(0.0, rows.index)
    values = rows[list(weights)].replace([np.inf, -np.inf], np.nan).astype(float)
    for name, weight in weights.items():
        value = values[name]
        order = rows.assign(v=value).dropna(subset=["v"])
        order = order.sort_values(["v", "doc_id"], ascending=False)
        rank = pd.Series(range(1, len(order) + 1), order.index, dtype=float)
        low, filled = value.min(), value.fillna(value.min())
        if config.fusion == "rrf":
            part = 1 / (config.fusion_k + rank)
        elif config.fusion_normalise == "rank":
            part = 1 - (rank - 1) / len(order)
        elif config.fusion_normalise == "none":
            part = filled
        else:
            zero, unit = low, value.max() - low
            if config.fusion_normalise == "zscore":
                zero, unit = value.mean(), value.std(ddof=0)
            part = (filled - zero) / unit if unit > 1e-12 else filled * 0
        total += weight * part.reindex(rows.index).fillna(0.0)
    total = total.where(values.notna().any(axis=1)).astype("float32").astype(float)
    none = rows[total.isna()].sort_values(
        ["retrieval_rank", "doc_id"], ascending=[True, False], na_position="last"
    )
    low = 0.0 if total.isna().all() else total.min()
    total[none.index] = low - np.arange(1, len(none) + 1)
    return total


@pytest.mark.parametrize("way", WAYS)
def test_missing_tied_and_lone_scores_are_defined(spark: SparkSession, way: str) -> None:
    """Also NaN and infinity; whatever the partitions are."""
    random = np.random.default_rng(7)
    rows = pd.DataFrame({"query_id": random.integers(0, 40, 400).astype(str)})
    rows["doc_id"] = [f"d{at}" for at in range(len(rows))]
    rows["retrieval_rank"] = random.permutation(len(rows)) + 1
    for name in WEIGHTS:
        rows[name] = random.normal(size=len(rows)).round(1)
        rows.loc[random.random(len(rows)) < 0.4, name] = np.nan
    rows.loc[rows["query_id"] < "2", "a"] = 1.5
    rows.loc[rows["query_id"] == "3", ["a", "b"]] = np.nan
    rows.loc[rows["query_id"] == "4", "b"] = np.inf
    rows.loc[len(rows)] = ["alone", "x", 1, 3.0, np.nan]
    rows["retrieval_rank"] = rows["retrieval_rank"].where(rows["doc_id"].str[-1] != "7")
    config = RankingConfig(**WAYS[way])
    expected = pd.concat(
        [oracle(group, WEIGHTS, config) for _, group in rows.groupby("query_id")]
    ).reindex(rows.index)
    assert not rows[["a", "b"]].notna().any(axis=1).all()
    given = spark.createDataFrame(
        [tuple(None if v is np.nan else v for v in row) for row in rows.astype(object).values],
        "query_id string, doc_id string, retrieval_rank double, a double, b double",
    ).withColumn("retrieval_score", F.lit(None).cast("double"))
    tables = []
    for parts in (1, 5):
        fused = with_fused_score(
            given.repartition(parts, "doc_id"), {name: F.col(name) for name in WEIGHTS}, WEIGHTS,
            config, [F.col("query_id")], [F.desc("doc_id")],
        )  # fmt: skip
        tables.append(fused.toPandas().set_index("doc_id")[FUSED].reindex(rows["doc_id"]))
    pd.testing.assert_series_equal(*tables)
    np.testing.assert_allclose(tables[0], expected, rtol=1e-5, atol=1e-6)


def test_jobs_rerank_ranks_by_the_fused_score(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, out, judged = tmp_path / "plain", tmp_path / "out", tmp_path / "judged"
    store, label = {"store__path": tmp_path / "scores"}, {"input__label": "label"}
    assert job(plain, **store, **label) == DONE
    weights = {"score": 0.7, "retrieval_score": 0.3}
    fusion = tmp_path / "fusion.yaml"
    fusion.write_text(json.dumps({"ranking": {"fusion": "weighted", "fusion_scores": weights}}))
    keys: dict[str, object] = {"config": fusion, **store, **label}
    assert job(out, **keys) == DONE
    before, ranked = read(plain), read(out)
    assert record(out)["fingerprint"] == record(plain)["fingerprint"]
    assert [*ranked.columns] == [*before.columns[:4], FUSED, *before.columns[4:]]
    config = RankingConfig(fusion="weighted")
    expected = pd.concat([oracle(rows, weights, config) for _, rows in before.groupby("query_id")])
    ids = ["query_id", "doc_id"]
    both = ranked.merge(before.assign(expected=expected), on=ids, suffixes=("", "_before"))
    np.testing.assert_allclose(both[FUSED], both["expected"], atol=1e-6)
    assert (both["score"] == both["score_before"]).all()
    order = ranked.sort_values(["query_id", FUSED, "doc_id"], ascending=[True, False, False])
    assert (order.groupby("query_id").cumcount() + 1 == order["rank"]).all()
    assert (both["rank"] != both["rank_before"]).any()
    # It is measured as it is ranked, by itself or by jobs.evaluate.
    metrics = record(out)["metrics"]["reranked"]
    assert metrics != record(plain)["metrics"]["reranked"]
    assert "ece" not in json.loads((out / "metrics.json").read_text("utf-8"))["scores"]
    words = ["--ranked.path", str(out / "ranked"), "--output.path", str(judged)]
    assert evaluate.main([*words, "--mlflow.enabled", "false"]) == DONE
    assert record(judged)["metrics"]["reranked"] == metrics
    # A cut is counted, and changes neither ranks nor measures.
    limit = float(before["score"].median())
    assert job(out, ranking__top_k=3, ranking__min_score=limit, **keys) == DONE
    cut = read(out)
    fit = ranked[ranked["score"] >= limit].sort_values(["query_id", "rank"])
    fit = fit[fit.groupby("query_id").cumcount() < 3]
    assert cut.sort_values(["query_id", "rank"])["doc_id"].tolist() == fit["doc_id"].tolist()
    assert record(out)["counts"]["cut"] == len(ranked) - len(cut)
    assert record(out)["metrics"]["reranked"] == metrics
    capsys.readouterr()
    assert job(out, ranking__fusion_scores="clicks=1", **keys) == REFUSED
    assert (
        "there is no score clicks; name some of score, retrieval_score" in capsys.readouterr().err
    )


def test_jobs_fuse_writes_a_table_that_jobs_evaluate_takes(
    job: Job, tmp_path: Path, tiny_xlmr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    label = {"input__label": "label"}
    assert job(tmp_path / "a", **label) == DONE
    assert job(tmp_path / "b", model__name=tiny_xlmr, ranking__top_k=4, **label) == DONE
    out, judged = tmp_path / "out", tmp_path / "judged"
    paths = [f"--ranked.path={name}={tmp_path / name}/ranked" for name in "ab"]
    words = [*paths, "--output.path", str(out), "--mlflow.enabled", "false"]
    assert fuse_main([*words, "--ranking.top_k", "5"]) == DONE
    a, b, fused = read(tmp_path / "a"), read(tmp_path / "b"), read(out)
    lists = a["query_id"].nunique()
    assert record(out)["kind"] == "fuse"
    assert record(out)["config"]["ranking"]["fusion"] == "rrf"
    assert record(out)["counts"] == {
        "input": len(a) + len(b), "merged": len(b), "cut": len(a) - len(fused),
        "ranked": len(fused), "queries": lists,
    }  # fmt: skip
    ids = ["query_id", "doc_id"]
    ranks = a.merge(b, on=ids, how="left", suffixes=("", "_b"))
    rrf = 1 / (60 + ranks["rank"]) + (1 / (60 + ranks["rank_b"])).fillna(0)
    both = fused.merge(ranks.assign(rrf=rrf), on=ids, suffixes=("", "_of_a"))
    assert len(both) == len(fused)
    np.testing.assert_allclose(both["score"], both["rrf"], rtol=1e-6)
    for name in ("retrieval_rank", "retrieval_score", "label"):
        assert both[name].tolist() == both[f"{name}_of_a"].tolist(), name
    order = fused.sort_values(["query_id", "score", "doc_id"], ascending=[True, False, False])
    assert (order.groupby("query_id").cumcount() + 1 == order["rank"]).all()
    assert np.isnan(both["score_b"]).any() and (both["score_a"] == both["score_of_a"]).all()

    words[-4:-2] = ["--output.path", str(out)]
    raw = ["--ranking.fusion=weighted", "--ranking.fusion_normalise=none"]
    assert fuse_main([*words, *raw]) == DONE
    whole = read(out).merge(ranks, on=ids, suffixes=("", "_of_a"))
    lowest = whole.groupby("query_id")["score_b"].transform("min")
    total = whole["score_of_a"] + whole["score_b"].fillna(lowest)
    np.testing.assert_allclose(whole["score"], total, rtol=1e-5, atol=1e-6)
    paths.insert(0, f"--ranked.path=fused={out}/ranked")
    assert evaluate.main([*paths, "--output.path", str(judged), *words[-2:]]) == DONE
    metrics = json.loads((judged / "metrics.json").read_text("utf-8"))
    assert metrics["first_stage"] == record(tmp_path / "a")["metrics"]["first_stage"]
    systems = [system["name"] for system in metrics["systems"]]
    assert [name for name in systems if "first stage" not in name] == ["fused", "a", "b"]
    assert "ece" not in metrics["scores"]

    capsys.readouterr()
    weights = ["--ranking.fusion_scores", "a=1", "--ranking.fusion_scores", "c=1"]
    assert fuse_main([*words, *weights]) == REFUSED
    assert "there is no score c; name some of a, b" in capsys.readouterr().err
    assert fuse_main([*words, *weights[:2], "--output.partition_by", "date"]) == REFUSED
    said = capsys.readouterr().err
    assert "no weight of b" in said and "not partitioned by date" in said
    assert fuse_main([*words[1:]]) == REFUSED
    assert "is one table" in capsys.readouterr().err
    # What ranks nothing replaces nothing.
    former = record(out)["run_id"]
    assert fuse_main([*words, "--ranking.min_score", "1e9"]) == DONE
    assert record(out)["run_id"] == former
    assert len(list((out / "unpublished").iterdir())) == 1


@pytest.mark.slow
def test_a_list_of_100_000_candidates_is_fused(spark: SparkSession) -> None:
    rows = spark.range(100_000).select(
        F.lit("q").alias("query_id"), F.col("id").cast("string").alias("doc_id"),
        F.rand(1).cast("float").alias("score"), F.lit(None).cast("int").alias("retrieval_rank"),
        F.lit(None).cast("double").alias("retrieval_score"),
    )  # fmt: skip
    tables = [Table("a", rows), Table("b", rows.withColumn("score", F.rand(2).cast("float")))]
    config = RankingConfig(fusion="weighted", fusion_normalise="zscore")
    ranked = fuse(union(tables), tables, config)
    assert ranked.agg(F.max("rank"), F.count_distinct("rank")).collect()[0][:] == (100_000,) * 2
