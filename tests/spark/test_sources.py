from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs.config import InputConfig
from jobs.input.layouts import read_input
from jobs.input.readers import READ_ERROR, read_source
from jobs.input.texts import Rendering
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
    table = read_source(spark, path=str(tmp_path / "in"), options={"pathGlobFilter": "*.jsonl"})
    got = {(row["id"], row["lang"], row[READ_ERROR]) for row in table.collect()}
    assert got == {("en-1", "en", None), ("zh-1", "zh", None)}


def test_a_byte_order_mark_and_line_ends_of_windows_are_no_data(
    spark: SparkSession, tmp_path: Path
) -> None:
    files = {
        "a.csv": b'"id","n"\r\n1,2\r\n', "a.tsv": b"id\tn\r\n1\t2\r\n",
        "a.jsonl": b'{"id": "1", "n": "2"}\r\n',
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)
        assert rows(spark, tmp_path / name) == [{"id": "1", "n": "2", READ_ERROR: None}], name
    (tmp_path / "a.trec").write_bytes(b"\xef\xbb\xbfq1 Q0 d1 1e0 1.25e1 x\r\n")
    assert rows(spark, tmp_path / "a.trec")[0] == {
        "query_id": "q1", "doc_id": "d1", "retrieval_rank": "1e0", "retrieval_score": "1.25e1",
        READ_ERROR: None,
    }  # fmt: skip


def test_csv_records_that_span_lines_are_read_whole(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "breaks.csv").write_text('id,doc\n1,"two\nlines, and ""more"""\n2,5" screen of x\n')
    got = [(row["id"], row["doc"]) for row in rows(spark, tmp_path / "breaks.csv")]
    assert got == [("1", 'two\nlines, and "more"'), ("2", '5" screen of x')]
    # A quote that nothing closes spoils its own row and swallows no other.
    (tmp_path / "stray.csv").write_text('id,doc\n1,"open\n2,x\n3,"fine"\n')
    assert [row["id"] for row in rows(spark, tmp_path / "stray.csv")] == ["1", "2", "3"]
    # Nor does it where another file has one that nothing opens.
    (tmp_path / "both").mkdir()
    (tmp_path / "stray.csv").rename(tmp_path / "both" / "a.csv")
    (tmp_path / "both" / "b.csv").write_text('id,doc\n4,monitor 27"\n')
    assert sorted(row["id"] for row in rows(spark, tmp_path / "both")) == ["1", "2", "3", "4"]


def test_a_json_document_is_refused_with_the_option_that_reads_it(
    spark: SparkSession, tmp_path: Path
) -> None:
    for name, content in (("l.json", [{"id": "1"}]), ("o.json", {"id": "1"})):
        (tmp_path / name).write_text(json.dumps(content, indent=1))
        with pytest.raises(RefusedError, match="multiLine=true"):
            rows(spark, tmp_path / name)
        assert [row["id"] for row in rows(spark, tmp_path / name, multiLine="true")] == ["1"]


@pytest.mark.parametrize("name", ["o[1]", "a [1].jsonl", "{x}.jsonl", "a b%20'*.jsonl"])
def test_a_path_that_exists_is_no_pattern(name: str, spark: SparkSession, tmp_path: Path) -> None:
    file = tmp_path / name
    if name == "o[1]":
        file.mkdir()
        file = file / "part.jsonl"
    file.write_text('{"id": "1"}\n')
    (tmp_path / "x.jsonl").write_text('{"id": "2"}\n')
    assert [row["id"] for row in rows(spark, tmp_path / name)] == ["1"]
    assert len(rows(spark, tmp_path / "[x]*.jsonl")) == 1


def test_values_of_partition_folders_are_text(spark: SparkSession, tmp_path: Path) -> None:
    for query in ("007", "7"):
        folder = tmp_path / "in" / f"query_id={query}"
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"doc_id": ["a"]}), folder / "a.parquet")
    key = "spark.sql.sources.partitionColumnTypeInference.enabled"
    before = spark.conf.get(key)
    assert {row["query_id"] for row in rows(spark, tmp_path / "in")} == {"007", "7"}
    assert spark.conf.get(key) == before


@pytest.mark.parametrize("role", ["path", "corpus"])
def test_the_first_line_of_a_file_without_header_is_not_printed(
    role: str, spark: SparkSession, tmp_path: Path
) -> None:
    line = "q1\tsecret query\td1\tsecret\n"
    (tmp_path / "in.tsv").write_text(line * 2)
    (tmp_path / "ids.jsonl").write_text('{"query_id": "q1", "doc_id": "d1", "query": "q"}\n')
    keys = {"path": str(tmp_path / "ids.jsonl"), role: str(tmp_path / "in.tsv")}
    with pytest.raises(RefusedError, match="4 fields of 2, 12, 2, 6 characters") as caught:
        read_input(spark, InputConfig.model_validate(keys), Rendering())
    assert "secret" not in str(caught.value)
    assert "header=false" in str(caught.value)
    named = InputConfig.model_validate(
        {"path": str(tmp_path / "in.tsv"), "options": {"header": "false"}, "query_id": "_c0",
         "query": "_c1", "doc_id": "_c2", "doc": "_c3"}
    )  # fmt: skip
    assert read_input(spark, named, Rendering()).rows.count() == 2
