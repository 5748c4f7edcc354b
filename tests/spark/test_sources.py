from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs.input.readers import READ_ERROR, read_source
from jobs.runtime.errors import RefusedError


def rows(spark: SparkSession, path: Path, **options: str) -> list[dict[str, object]]:
    table = read_source(spark, path=str(path), options=options)
    return [row.asDict() for row in table.collect()]


def test_json_lines_keep_their_bytes_and_name_their_faults(
    spark: SparkSession, tmp_path: Path
) -> None:
    """Spark's own reader turns a lone surrogate into `?` and bad bytes into U+FFFD, silently."""
    file = tmp_path / "in.jsonl"
    file.write_bytes(
        b'{"id": "a", "doc": "fine \\u4e2d \\ud83d\\ude00"}\n'
        b'{"id": "b", "doc": "high \\ud800 alone"}\n'
        b'{"id": "c", "doc": "low \\udc00 alone"}\n'
        b'{"id": "d", "doc": "bytes \xff\xfe"}\n'
        b'{"id": "e", "doc": \n'
        b"\n"
        b'{"id": "f", "doc": "plain \\\\ud800 text"}\n'
    )
    got = {row["id"]: (row["doc"], row[READ_ERROR]) for row in rows(spark, file)}
    assert got["a"] == ("fine 中 😀", None)
    assert got["b"][1] == got["c"][1] == "lone_surrogate"
    assert got["d"][1] == "invalid_utf8"
    assert got[None][1] == "malformed_record"
    assert got["f"] == ("plain \\ud800 text", None)
    assert len(got) == 6


def test_csv_keeps_bytes_quotes_and_odd_names(spark: SparkSession, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_bytes(
        b'\xef\xbb\xbfid,"a`b.c; DROP TABLE x",\xe5\x90\x8d\n'
        b'1,"he said ""no"", twice",\xe4\xb8\xad\n'
        b"2,\xff\xfe,x\n"
        b"3,too,many,fields\n"
    )
    got = rows(spark, file)
    assert list(got[0]) == ["id", "a`b.c; DROP TABLE x", "名", READ_ERROR]
    assert got[0]["a`b.c; DROP TABLE x"] == 'he said "no", twice'
    assert got[0]["名"] == "中"
    assert [row[READ_ERROR] for row in got] == [None, None, "malformed_record"]


def test_tsv_takes_a_quote_for_a_character(spark: SparkSession, tmp_path: Path) -> None:
    file = tmp_path / "collection.tsv.gz"
    file.write_bytes(gzip.compress(b'id\tdoc\n1\t5" screen\n2\t"open\n'))
    assert [row["doc"] for row in rows(spark, file)] == ['5" screen', '"open']


def test_a_trec_run(spark: SparkSession, tmp_path: Path) -> None:
    file = tmp_path / "bm25.trec"
    file.write_text("q1 Q0  d1\t1 12.5 bm25\n\nq1 Q0 d2 2\n")
    got = rows(spark, file)
    assert got[0] == {
        "query_id": "q1", "doc_id": "d1", "retrieval_rank": "1", "retrieval_score": "12.5",
        READ_ERROR: None,
    }  # fmt: skip
    assert got[1][READ_ERROR] == "malformed_record"


def test_a_folder_of_parquet_and_one_of_orc(spark: SparkSession, tmp_path: Path) -> None:
    table = spark.createDataFrame([("a", 1)], "id string, n int")
    table.write.parquet(str(tmp_path / "p"))
    table.write.orc(str(tmp_path / "o"))
    assert rows(spark, tmp_path / "p") == rows(spark, tmp_path / "o")


@pytest.mark.parametrize("form", ["parquet", "json", "csv"])
def test_a_column_named_like_one_of_ours_is_refused(
    form: str, spark: SparkSession, tmp_path: Path
) -> None:
    table = spark.createDataFrame([("a", "b")], f"id string, {READ_ERROR} string")
    writer = table.write.option("header", "true")
    writer.format(form).save(str(tmp_path / f"in.{form}"))
    with pytest.raises(RefusedError, match=rf"has columns {READ_ERROR}; .* rename them"):
        rows(spark, tmp_path / f"in.{form}")


def test_a_catalog_table(spark: SparkSession) -> None:
    spark.createDataFrame([("a",)], "id string").createOrReplaceTempView("pairs_view")
    assert read_source(spark, table="pairs_view").columns == ["id", READ_ERROR]
    with pytest.raises(RefusedError, match="no_such_table"):
        read_source(spark, table="no_such_table")


def test_what_cannot_be_read_is_refused_with_the_remedy(
    spark: SparkSession, tmp_path: Path
) -> None:
    with pytest.raises(RefusedError, match="does not exist"):
        read_source(spark, path=str(tmp_path / "none.parquet"))
    (tmp_path / "in.data").write_text("x")
    with pytest.raises(RefusedError, match=r"set input\.format"):
        read_source(spark, path=str(tmp_path / "in.data"))
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(RefusedError, match="no JSON object"):
        read_source(spark, path=str(tmp_path / "empty.jsonl"))


def test_partitioned_json_keeps_its_folders_and_options_choose_files(
    spark: SparkSession, tmp_path: Path
) -> None:
    for language in ("en", "zh"):
        folder = tmp_path / "in" / f"lang={language}"
        folder.mkdir(parents=True)
        (folder / "a.jsonl").write_text(json.dumps({"id": f"{language}-1"}) + "\n")
        (folder / "notes.txt").write_text("no record\n")
    table = read_source(
        spark, path=str(tmp_path / "in"), source_format="json",
        options={"pathGlobFilter": "*.jsonl"},
    )  # fmt: skip
    got = {(row["id"], row["lang"], row[READ_ERROR]) for row in table.collect()}
    assert got == {("en-1", "en", None), ("zh-1", "zh", None)}
