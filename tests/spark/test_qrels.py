from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.evaluation.qrels import from_labels, read_qrels
from jobs.runtime.errors import RefusedError

WANTED = {("1", "9", 2), ("1", "10", 0), ("é", "中 文", -1)}

# No name ends as its content would suggest: the content decides.
TEXTS = {
    "trec": "1 Q0 9 2\n1\t0\t10   0\n\n \t\n  é 0 中文 -1  \n",
    "trec with windows line ends": "1 Q0 9 2\r\n1 0 10 0\r\né 0 中文 -1\r\n",
    "trec with a byte order mark": "\ufeff1 Q0 9 2\n1 0 10 0\né 0 中文 -1\n",
    "trec with grades as spreadsheets leave them": "1 Q0 9 2e0\n1 0 10 0.0E+00\né 0 中文 -1.\n",
    "spaces around ids": "query-id\tcorpus-id\tscore\n 1\t9 \t 2\n1 \t10\t0\né\t中 文\t-1\n",
    "trec said twice": "1 Q0 9 2\n1 0 10 0\né 0 中文 -1\n1 Q0 9 2\n",
    "beir": "query-id\tcorpus-id\tscore\n1\t9\t2\n1\t10\t0\né\t中 文\t-1\n",
    "beir with a byte order mark": (
        "\ufeffquery-id\tcorpus-id\tscore\r\n1\t9\t2.0\r\n1\t10\t0\r\né\t中 文\t-1\r\n"
    ),
    "columns in another order": (
        "note\tlabel\tdoc_id\tquery_id\nx\t2\t9\t1\n\t0\t10\t1\n\t-1\t中 文\té\n"
    ),
    "csv": 'query_id,doc_id,relevance\n1,9,2\n1,"10",0\né,中 文,-1\n',
    "json": (
        '{"query_id": "1", "doc_id": "9", "score": 2}\n'
        '{"query_id": "1", "doc_id": "10", "score": 0}\n'
        '{"query_id": "é", "doc_id": "中 文", "score": -1}\n'
    ),
}


def rows(qrels: DataFrame) -> set[tuple[str, str, int]]:
    assert qrels.dtypes == [("query_id", "string"), ("doc_id", "string"), ("relevance", "int")]
    found = [tuple(row) for row in qrels.collect()]
    assert len(found) == len(set(found))
    return set(found)


def write(folder: Path, text: str, name: str = "qrels.dat") -> str:
    file = folder / name
    file.write_bytes(text.encode())
    return str(file)


@pytest.mark.parametrize("form", TEXTS)
def test_the_form_is_told_from_the_content(spark: SparkSession, tmp_path: Path, form: str) -> None:
    wanted = {(q, d.replace(" ", "") if "trec" in form else d, g) for q, d, g in WANTED}
    assert rows(read_qrels(spark, write(tmp_path, TEXTS[form]))) == wanted


def test_a_folder_of_parquet_with_numbers_as_ids(spark: SparkSession, tmp_path: Path) -> None:
    table = spark.range(4).select(
        F.lit(7.0).alias("query-id"), F.col("id").alias("corpus-id"), F.lit(1.0).alias("score")
    )
    table.repartition(2).write.parquet(str(tmp_path / "qrels"))
    found = rows(read_qrels(spark, str(tmp_path / "qrels")))
    assert found == {("7", str(i), 1) for i in range(4)}


def test_a_folder_of_text_files_each_with_its_header(spark: SparkSession, tmp_path: Path) -> None:
    header = "query-id\tcorpus-id\tscore\n"
    write(tmp_path, header + "1\t9\t2\n1\t10\t0\n", "a.tsv")
    write(tmp_path, header + "é\t中 文\t-1\n", "b.tsv")
    assert rows(read_qrels(spark, str(tmp_path))) == WANTED


SECRET = "the words of a document"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"1 Q0 9 2\n\n1 Q0 10 {SECRET}\n1 Q0 11\n", "line 3 of qrels.dat lacks"),
        ("1 Q0 9 2\n1 Q0 10\n", "line 2 of qrels.dat lacks"),
        ("1 Q0 9 2\r\n1 Q0 10 high\r\n", "line 2 of qrels.dat lacks"),
        ("1 Q0 9 0.5\n", "whole number as grade"),
        ("1 Q0 9 99999999999\n", "whole number as grade"),
        ("query-id\tcorpus-id\tscore\n1\t9\t1\n1\t\t1\n", "line 3 of qrels.dat lacks"),
        (f"query-id\tcorpus-id\tscore\n1\t9\t{SECRET}\n", "line 2 of qrels.dat lacks"),
        ("query_id,doc_id,label\n1,9,\n", "query '1', document '9' lacks"),
        ('{"query_id": 1, "doc_id": 9, "score": 0.5}\n', "query '1', document '9' lacks"),
        ('{"query_id": 1, "doc_id": 9}\n', "lack relevance (or label, score, grade)"),
        (f"{SECRET} 2\n", "the first line has 6 columns and no header"),
        ("1\t9\t2\n", "the first line has 3 columns and no header"),
        ("1 Q0 9 2\n1 0 9 1\n", "1 pairs have two different grades, for example query '1'"),
        ("query-id\tcorpus-id\tscore\n", "hold no judgement"),
        ("\n \n", "are empty"),
        ("", "are empty"),
    ],
)
def test_an_error_gives_the_place_and_the_remedy_but_no_text(
    spark: SparkSession, tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        read_qrels(spark, write(tmp_path, text))
    message = str(caught.value)
    assert words in message
    assert "qrels.dat" in message
    assert not any(word in message for word in ("words", "high", "0.5"))


def test_a_path_that_is_not_there(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"cannot be read \(PATH_NOT_FOUND"):
        read_qrels(spark, str(tmp_path / "none"))


@pytest.mark.parametrize("kind", ["int", "bigint", "double", "boolean", "string", "decimal(5,2)"])
def test_labels_of_any_type_are_grades_and_null_is_no_judgement(
    spark: SparkSession, kind: str
) -> None:
    pairs = [(1, "a", 1), (1, "a", 1), (1, "b", 0), (2, "a", None)]
    table = spark.createDataFrame(pairs, "query_id int, doc_id string, label int")
    table = table.withColumn("label", F.col("label").cast(kind))
    assert rows(from_labels(table)) == {("1", "a", 1), ("1", "b", 0)}


def test_nan_as_pandas_writes_a_missing_label_is_no_judgement(spark: SparkSession) -> None:
    pairs = [("1", "a", 1.0), ("1", "b", float("nan"))]
    table = spark.createDataFrame(pairs, "query_id string, doc_id string, label double")
    assert rows(from_labels(table)) == {("1", "a", 1)}


def test_a_table_without_a_label_gives_no_qrels(spark: SparkSession) -> None:
    table = spark.createDataFrame([("1", "a", None)], "query_id string, doc_id string, label int")
    assert from_labels(table) is None


@pytest.mark.parametrize(
    ("labels", "words"),
    [([0.5], "query '1', document 'a' lacks"), ([1.0, 2.0], "two different grades")],
)
def test_labels_that_are_no_grades_are_refused(
    spark: SparkSession, labels: list[float], words: str
) -> None:
    pairs = [("1", "a", label) for label in labels]
    table = spark.createDataFrame(pairs, "query_id string, doc_id string, label double")
    with pytest.raises(RefusedError, match=f"the label column.*{words}"):
        from_labels(table)
