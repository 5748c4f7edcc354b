"""The order in which pairs go to the workers."""

from __future__ import annotations

from pathlib import Path

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs.config import Config, ScoringConfig
from jobs.input.layouts import InputTable, pair_texts, read_input
from jobs.input.texts import Rendering
from jobs.scoring.fill import _longest_first
from jobs.scoring.stage import tasks_have_gpus
from jobs.scoring.token_lengths import sample_lengths
from udfs.devices import has_gpu
from udfs.scorers.base import OK
from udfs.spec import ScorerSpec
from udfs.udf import rerank_udf, run_trial


def pairs_of(spark: SparkSession, rows: list[tuple[object, ...]], folder: Path) -> InputTable:
    columns = "query_id string, query binary, doc_id string, doc binary"
    spark.createDataFrame(rows, columns).select(
        "query_id", F.col("query").cast("string"), "doc_id", F.col("doc").cast("string")
    ).write.parquet(str(folder / "pairs"))
    config = Config.model_validate({"input": {"path": str(folder / "pairs")}})
    return read_input(spark, config.input, Rendering())


def test_pairs_are_sorted_by_bytes_and_then_by_key(spark: SparkSession, tmp_path: Path) -> None:
    docs = ["cat", "dog", "fox", "月食月食", "a flea lives for a year", "x" * 200_000]
    rows = [("q", b"fleas", str(at), doc.encode()) for at, doc in enumerate(docs)]
    table = pair_texts(pairs_of(spark, rows, tmp_path)).cache()

    def order(given: list[str]) -> list[str]:
        shuffled = table.orderBy(F.array_position(F.lit(given), F.col("doc")))
        return [row["doc"] for row in shuffled.coalesce(1).sortWithinPartitions(_longest_first())
                .select("doc").collect()]  # fmt: skip

    found = order(docs)
    assert found[:3] == [docs[5], docs[4], docs[3]]  # three bytes for each of 月食月食
    assert sorted(found[3:]) == ["cat", "dog", "fox"]
    assert found == order(docs[::-1])


def test_texts_that_a_worker_cannot_read_are_left_out_and_keys_are_the_checked_ones(
    spark: SparkSession, tmp_path: Path
) -> None:
    rows = [
        ("q", b"fleas", "1", b"a flea"), ("q", b"fleas", "2", b"\xff\xfe"),
        ("q", b"fleas", "3", None), ("q", b"fleas", "4", b"  "), (None, b"fleas", "5", b"a dog"),
    ]  # fmt: skip
    pairs = pairs_of(spark, rows, tmp_path)
    found = {row["doc"]: row["pair_key"] for row in pair_texts(pairs).collect()}
    assert set(found) == {"a flea", "", "a dog"}
    checked = {row["doc_id"]: row["pair_key"] for row in pairs.rows.collect()}
    assert checked == {"1": found["a flea"], "2": None, "3": None, "4": None, "5": None}


def test_an_empty_partition_loads_no_model(spark: SparkSession) -> None:
    none = spark.range(4).selectExpr("'q' AS query", "'d' AS doc").where("rand() > 2")
    scored = none.select(rerank_udf(ScorerSpec("/no/such/model", ""))("query", "doc"))
    assert scored.collect() == []


def test_lengths_of_long_texts_are_estimated_by_their_beginning(
    spark: SparkSession, tiny_bert: Path, tmp_path: Path
) -> None:
    """A dry run with a long max_length once said that texts of 60,000 characters are not cut."""
    rows = [("q", b"fleas", "1", b"a flea " * 10_000), ("q", b"fleas", "2", b"a flea")]
    spec = ScorerSpec(str(tiny_bert), "")
    lengths = sample_lengths(pairs_of(spark, rows, tmp_path), tiny_bert, spec)
    assert lengths is not None
    short, long = sorted(lengths.docs)
    assert abs(long / (short * 10_000) - 1) < 0.01
    assert lengths.cut_at(8192).share == 0.5


def test_a_trial_is_measured_in_a_task(spark: SparkSession, tiny_bert: Path) -> None:
    spec = ScorerSpec(str(tiny_bert), "", max_length=64)
    task = run_trial(spec, ["fleas"], ["fleas on dogs"])
    trial = spark.sparkContext.parallelize([0], 1).mapPartitions(task).first()
    assert trial.outcome == OK and len(trial.logit) == 1


def test_tasks_have_gpus_where_spark_gives_them_some(spark: SparkSession) -> None:
    assert tasks_have_gpus(spark, ScoringConfig()) is has_gpu()  # a local session
