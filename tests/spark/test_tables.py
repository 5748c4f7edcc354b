from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.config import InputConfig
from jobs.input.columns import id_text
from jobs.input.layouts import InputTable, read_input
from jobs.input.texts import Rendering, render
from jobs.input.validation import (
    COLLAPSED,
    REJECTED,
    VALID,
    count_rows,
    resolve_duplicates,
    validate,
    validate_rows,
)
from jobs.runtime.compat import try_cast
from jobs.runtime.errors import RefusedError
from tests.unit.test_text import render as expected_text
from udfs.templates import parse_template

PLAIN = Rendering()


def write_lines(file: Path, rows: list[dict[str, object]]) -> str:
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return str(file)


def read(spark: SparkSession, rendering: Rendering = PLAIN, **keys: object) -> InputTable:
    return read_input(spark, InputConfig.model_validate(keys), rendering)


def checked(pairs: InputTable) -> DataFrame:
    """All rows, compared with each other whether they have to be or not."""
    return resolve_duplicates(validate_rows(pairs), pairs)


def texts(pairs: InputTable) -> dict[tuple[str, str], tuple[str, str]]:
    rows = pairs.rows.collect()
    return {(row["query_id"], row["doc_id"]): (row["query"], row["doc"]) for row in rows}


LONG = [
    {
        "qid": 1,
        "q": "fleas",
        "did": 10,
        "title": "Fleas",
        "body": "live",
        "bm25": 2.5,
        "lang": "en",
    },
    {"qid": 1, "q": "fleas", "did": 9, "title": None, "body": "dogs", "bm25": 1.5, "lang": "en"},
]
NAMES = {"query_id": "qid", "query": "q", "doc_id": "did", "retrieval_score": "bm25"}


def test_a_long_table_with_mapping_template_and_instructions(
    spark: SparkSession, tmp_path: Path
) -> None:
    pairs = read(
        spark,
        Rendering(query_instruction="query: "),
        path=write_lines(tmp_path / "in.jsonl", LONG),
        doc_template="{title}\\n{body}",
        **NAMES,
    )
    assert texts(pairs) == {
        ("1", "10"): ("query: fleas", "Fleas\nlive"),
        ("1", "9"): ("query: fleas", "dogs"),
    }
    assert pairs.passed == ("lang",)
    assert pairs.has == {"retrieval_score"}


def test_a_rows_own_instruction_goes_before_its_query(spark: SparkSession, tmp_path: Path) -> None:
    given = ["Find manuals: ", " ", None]
    lines = [
        {"query_id": n, "query": "fleas", "doc_id": 1, "doc": "dogs", "what": what}
        for n, what in enumerate(given)
    ]
    asked = {"path": write_lines(tmp_path / "in.jsonl", lines), "instruction": "what"}
    pairs = read(spark, Rendering("query: "), **asked)
    assert [texts(pairs)[str(n), "1"][0] for n in range(3)] == [
        "Find manuals: fleas", "query: fleas", "query: fleas"
    ]  # fmt: skip
    assert len({row.pair_key for row in pairs.rows.collect()}) == 2
    inside = read(spark, Rendering("Find it.\n", lead="Task: {instruction}\n"), **asked)
    assert texts(inside)["0", "1"][0] == "Task: Find manuals: \nfleas"
    assert texts(inside)["1", "1"][0] == "Find it.\nfleas"
    with pytest.raises(RefusedError, match=r"no column why; .*; set input\.instruction"):
        read(spark, **{**asked, "instruction": "why"})


def test_the_three_shapes_give_the_same_pairs(spark: SparkSession, tmp_path: Path) -> None:
    template = "{title}\\n{body}"
    long = read(spark, path=write_lines(tmp_path / "l.jsonl", LONG), doc_template=template, **NAMES)
    inner = [{k: row[k] for k in ("did", "title", "body", "bm25")} for row in LONG]
    nested = read(
        spark,
        path=write_lines(tmp_path / "n.jsonl", [{"qid": 1, "q": "fleas", "hits": inner}]),
        candidates="hits", doc_template=template, **NAMES,
    )  # fmt: skip
    (tmp_path / "r.trec").write_text("1 Q0 10 1 2.5 x\n1 Q0 9 2 1.5 x\n")
    normalised = read(
        spark,
        queries=write_lines(tmp_path / "q.jsonl", [{"_id": "1", "text": "fleas", "lang": "en"}]),
        corpus=write_lines(
            tmp_path / "c.jsonl",
            [{"_id": str(r["did"]), "title": r["title"] or "", "text": r["body"]} for r in LONG],
        ),
        run=str(tmp_path / "r.trec"),
    )
    assert texts(long) == texts(nested) == texts(normalised)
    assert normalised.passed == ("lang",)
    assert normalised.has == {"retrieval_score", "retrieval_rank"}


def test_a_nested_order_is_the_first_stages_order(spark: SparkSession, tmp_path: Path) -> None:
    row = {
        "query_id": "1",
        "query": "q",
        "hits": [{"doc_id": "b", "doc": "x"}, {"doc_id": "a", "doc": "y"}],
    }
    empty = {"query_id": "2", "query": "q", "hits": []}
    pairs = read(spark, path=write_lines(tmp_path / "n.jsonl", [row, empty]), candidates="hits")
    ranks = {r["doc_id"]: r["retrieval_rank"] for r in pairs.rows.collect()}
    assert ranks == {"b": 1, "a": 2, None: None}
    reasons = {r["query_id"]: r["reason"] for r in checked(pairs).collect()}
    assert reasons["2"] == "missing_doc_id"  # a query without candidates is reported, not dropped


def test_tables_of_a_normalised_input_may_be_parquet(spark: SparkSession, tmp_path: Path) -> None:
    frames = {
        "queries": spark.createDataFrame([(1, "fleas")], "query_id long, query string"),
        "corpus": spark.createDataFrame([(7, "live")], "doc_id long, doc string"),
        "run": spark.createDataFrame(
            [(1, 7, 0.5)], "query_id long, doc_id long, retrieval_score double"
        ),
    }
    for name, frame in frames.items():
        frame.write.parquet(str(tmp_path / name))
    pairs = read(spark, **{name: str(tmp_path / name) for name in frames})
    assert texts(pairs) == {("1", "7"): ("fleas", "live")}


def test_missing_columns_are_named_with_those_that_are_there(
    spark: SparkSession, tmp_path: Path
) -> None:
    path = write_lines(tmp_path / "in.jsonl", LONG)
    with pytest.raises(RefusedError) as caught:
        read(spark, path=path, query_id="qid", label="grade")
    said = caught.value.messages[0]
    assert "has no column query, doc_id, doc, grade" in said
    assert "it has: bm25, body, did, lang, q, qid, title" in said
    assert "set input.query, input.doc_id, input.doc, input.label" in said
    with pytest.raises(RefusedError, match="has to be an array of structs"):
        read(spark, path=path, candidates="title")


def test_a_template_is_rendered_as_its_rule_says(spark: SparkSession) -> None:
    values = [None, "", " \u200b", "a", "b\nc"]
    rows = [(x, y) for x in values for y in values]
    table = spark.createDataFrame(rows, "x string, y string")
    for source in ("{x}", "T: {x}\\n{y}", "{x} and {y}!", "fixed\\n{x}{{}}\\n{y}"):
        for rule in ("drop_line", "empty", "reject"):
            template = parse_template(source, rule)  # type: ignore[arg-type]
            got = [row[0] for row in table.select(render(template)).collect()]
            assert got == [expected_text(template, {"x": x, "y": y}) for x, y in rows], (
                source,
                rule,
            )


BAD_UTF8 = bytearray(b"\xff\xfe x")
SURROGATE = bytearray(b"\xed\xa0\x80 x")
POISON = [
    # query_id, query, doc_id, doc, score, expected reason
    ("1", b"q", "ok", b"fine", "1.0", None),
    ("1", None, "a", b"x", "1", "missing_query"),
    ("1", b" \t", "b", b"x", "1", "missing_query"),
    ("1", b"q", "c", None, "1", "missing_doc"),
    ("1", b"q", "d", "\u200b\u200b".encode(), "1", "missing_doc"),
    (None, b"q", "e", b"x", "1", "missing_query_id"),
    ("1", b"q", None, b"x", "1", "missing_doc_id"),
    ("1", b"q", " ", b"x", "1", "missing_doc_id"),
    ("1", b"q", "f", BAD_UTF8, "1", "invalid_utf8"),
    ("1", SURROGATE, "g", b"x", "1", "invalid_utf8"),
    ("1", b"q", "h", b"x", "NaN", "unreadable_number"),
    ("1", b"q", "i", b"x", "many", "unreadable_number"),
    ("1", b"q", "j", b"x", "1e999", "unreadable_number"),
    ("1", b"q", "twice", b"one text", "1", "conflicting_duplicate"),
    ("1", b"q", "twice", b"another", "2", "conflicting_duplicate"),
    ("1", b"q", "same", b"equal", "1", None),
    ("1", b"q", "same", b"equal", "3", None),
    ("1", b"q", "nul", b"a\x00b \x07", "1", None),
    ("1", b"q", "rtl", "שלום \u202e עולם".encode(), "", None),
]  # fmt: skip


@pytest.fixture
def poison(spark: SparkSession) -> InputTable:
    schema = "query_id string, query binary, doc_id string, doc binary, retrieval_score string"
    rows = [tuple(bytearray(v) if isinstance(v, bytes) else v for v in row[:5]) for row in POISON]
    spark.createDataFrame(rows, schema).createOrReplaceTempView("poison")
    return read(spark, table="poison")


@pytest.mark.parametrize("ansi", ["true", "false"])
def test_every_row_gets_its_reason_and_none_is_lost(
    ansi: str, poison: InputTable, spark: SparkSession
) -> None:
    spark.conf.set("spark.sql.ansi.enabled", ansi)
    try:
        rows = checked(poison).collect()
    finally:
        spark.conf.unset("spark.sql.ansi.enabled")
    assert len(rows) == len(POISON)
    got = sorted((str(r["doc_id"]), str(r["reason"])) for r in rows)
    assert got == sorted((str(row[2]).strip(), str(row[5])) for row in POISON)
    for row in rows:
        assert row["status"] in (VALID, COLLAPSED, REJECTED)
        assert (row["status"] == REJECTED) == (row["reason"] is not None)


def test_rows_are_compared_only_where_ids_repeat(poison: InputTable) -> None:
    found = count_rows(validate_rows(poison), poison)
    assert found.repeated and found.derive_ranks
    assert (found.counts["valid"], found.counts["distinct"]) == (7, 6)
    done = count_rows(checked(poison), poison)
    # Two impressions of `same` differ in their retrieval score, and both stay.
    assert done.counts == {"input": 19, "valid": 5, "collapsed": 0, "rejected": 14, "distinct": 4}
    assert done.repeated
    ids = ~F.coalesce(F.col("doc_id"), F.lit("")).isin("same", "twice")
    alone = replace(poison, rows=poison.rows.where(ids))
    assert not count_rows(validate_rows(alone), alone).repeated
    assert sorted(map(str, validate_rows(alone).collect())) == sorted(
        map(str, checked(alone).collect())
    )


def test_details_carry_columns_and_lengths_and_no_texts(poison: InputTable) -> None:
    details = {row["doc_id"]: row["detail"] for row in checked(poison).collect()}
    assert details["i"] == "column retrieval_score; bytes: query_id: 1, query: 1, doc_id: 1, doc: 1"
    assert details["twice"] == "2 rows with differing texts"
    assert details["d"].startswith("bytes: ")
    assert "another" not in str(details)


IMPRESSION = (
    "query_id string, query string, doc_id string, doc string, label int, day string, "
    "at timestamp, tags map<string,int>"
)


def impressions(spark: SparkSession, rows: list[tuple[object, ...]], **keys: object) -> InputTable:
    from datetime import UTC, datetime

    rows = [("1", "q", doc_id, text, label, day, datetime(2026, 3, 1, microsecond=at, tzinfo=UTC),
             {"a": 1}) for doc_id, text, label, day, at in rows]  # fmt: skip
    spark.createDataFrame(rows, IMPRESSION).createOrReplaceTempView("impressions")
    return read(spark, table="impressions", **keys)


def test_only_rows_equal_in_all_columns_collapse(spark: SparkSession) -> None:
    rows: list[tuple[object, ...]] = [
        ("a", "x", 1, "mon", 1), ("a", "x", 1, "mon", 1),  # equal
        ("a", "x", 1, "mon", 2),  # a microsecond later
        ("a", "x ", None, "tue", 1),  # the same text but for white space at its end
        ("b", "y", 0, "mon", 1), ("b", "y", 1, "tue", 1),  # labels that contradict each other
        ("c", "z", 0, "mon", 1), ("c", "zz", 0, "tue", 1),  # texts that do
    ]  # fmt: skip
    found = checked(impressions(spark, rows))
    kinds = [(r["doc_id"], r["status"], r["detail"]) for r in found.collect()]
    assert sorted(kinds, key=str) == sorted(
        [("a", COLLAPSED, None)] + [("a", VALID, None)] * 3
        + [("b", REJECTED, "2 rows with differing labels")] * 2
        + [("c", REJECTED, "2 rows with differing texts")] * 2, key=str,
    )  # fmt: skip
    by_day = impressions(spark, rows, group=["day"])
    lists = count_rows(checked(by_day), by_day)
    assert lists.repeated
    assert lists.counts == {"input": 8, "valid": 7, "collapsed": 1, "rejected": 0, "distinct": 4}


def test_white_space_at_the_ends_is_no_part_of_ids_and_texts(spark: SparkSession) -> None:
    rows = [(" 1\u3000", "\u00a0q\n", "a\t", " x y "), ("1", "q", "b", "x y"), ("1", "q", "c", " ")]
    schema = "query_id string, query string, doc_id string, doc string"
    spark.createDataFrame(rows, schema).createOrReplaceTempView("spaces")
    found = {row["doc_id"]: row for row in read(spark, table="spaces").rows.collect()}
    assert {row["query_id"] for row in found.values()} == {"1"}
    assert found["a"]["pair_key"] == found["b"]["pair_key"]
    assert found["b"]["pair_key"] == hashlib.sha256(b"1:qx y").hexdigest()
    assert found["c"]["reason"] == "missing_doc"


def test_whole_numbers_of_any_type_are_the_same_ids(spark: SparkSession) -> None:
    values = [0.0, -0.0, 7.0, 0.5, 1e10, 2.0**53, 1e22, float("nan"), None]
    table = spark.createDataFrame([(v,) for v in values], "d double")
    decimal = table.select(try_cast(F.col("d"), "decimal(20,2)").alias("m"))
    assert [row[0] for row in table.select(id_text(table, "d")).collect()] == [
        "0", "0", "7", "0.5", "10000000000", "9007199254740992", "10000000000000000000000", None,
        None,
    ]  # fmt: skip
    assert [row[0] for row in decimal.select(id_text(decimal, "m")).collect()][:4] == [
        "0", "0", "7", "0.50",
    ]  # fmt: skip
    ids = spark.createDataFrame([(1.0, "q", "d", "x")], "query_id double, query string, "
                                "doc_id string, doc string")  # fmt: skip
    ids.createOrReplaceTempView("floats")
    assert "column query_id is double: whole numbers" in read(spark, table="floats").notes[0]


def test_labels_that_are_words_are_refused_or_mapped(spark: SparkSession) -> None:
    schema = "query_id string, query string, doc_id string, doc string, label string"
    rows = [("1", "q", "a", "x", "good"), ("1", "q", "b", "y", "bad "), ("1", "q", "c", "z", None)]
    spark.createDataFrame(rows, schema).createOrReplaceTempView("words")
    with pytest.raises(RefusedError, match="column label has no numbers") as caught:
        validate(read(spark, table="words"))
    assert "input.label_map" in str(caught.value)
    mapped = read(spark, table="words", label_map={"good": 1, "bad": 0})
    assert [row["label"] for row in mapped.rows.orderBy("doc_id").collect()] == [1.0, 0.0, None]
    partly = validate(read(spark, table="words", label_map={"good": 1}))
    (bad,) = partly.rows.where("status = 'rejected'").collect()
    assert (bad["doc_id"], bad["reason"]) == ("b", "unreadable_number")
    assert bad["detail"].startswith("column label; bytes")


def test_an_input_without_rows_is_refused_unless_allowed(spark: SparkSession) -> None:
    schema = "query_id string, query string, doc_id string, doc string"
    spark.createDataFrame([], schema).createOrReplaceTempView("nothing")
    with pytest.raises(RefusedError, match=r"no rows.*input\.allow_empty"):
        validate(read(spark, table="nothing"))
    assert validate(read(spark, table="nothing", allow_empty=True)).counts["input"] == 0


def test_texts_that_are_missing_come_from_other_tables(spark: SparkSession, tmp_path: Path) -> None:
    schema = "query_id double, doc_id string, query string, doc string, day string"
    rows = [
        (1.0, "a", None, "own", "mon"), (1.0, "b", "own query", None, "mon"),
        (1.0, "b ", None, " ", "tue"), (2.0, "c", None, "own", "mon"),
        (1.0, "d", None, None, "mon"),
    ]  # fmt: skip
    spark.createDataFrame(rows, schema).createOrReplaceTempView("some_texts")
    corpus = [{"_id": "a", "title": "no", "text": "no"}, {"_id": "b", "title": "T", "text": "B"}]
    keys = {
        "corpus": write_lines(tmp_path / "c.jsonl", corpus),
        "queries": write_lines(tmp_path / "q.jsonl", [{"_id": "1", "text": "found"}]),
    }
    found = read(spark, table="some_texts", **keys)
    assert found.passed == ("day",)
    got = [tuple(row) for row in found.rows.orderBy("doc_id", "`in.day`")
           .select("doc_id", "query", "doc", "reason").collect()]  # fmt: skip
    assert got == [
        ("a", "found", "own", None), ("b", "own query", "T\nB", None), ("b", "found", "T\nB", None),
        ("c", None, "own", "unknown_query"), ("d", "found", None, "unknown_doc"),
    ]  # fmt: skip
    # Without columns of texts, and with a template of the corpus's fields.
    spark.table("some_texts").drop("query", "doc").createOrReplaceTempView("no_texts")
    bare = read(spark, table="no_texts", doc_template="{text}", **keys)
    assert {row["doc"] for row in bare.rows.collect()} == {"no", "B", None}


def test_a_pair_key_tells_apart_pairs_with_the_same_concatenation(spark: SparkSession) -> None:
    rows = [("1", "ab", "x", "c"), ("1", "a", "y", "bc")]
    schema = "query_id string, query string, doc_id string, doc string"
    spark.createDataFrame(rows, schema).createOrReplaceTempView("close")
    keys = [row["pair_key"] for row in read(spark, table="close").rows.collect()]
    assert len(set(keys)) == 2


def test_a_field_of_the_corpus_may_share_its_name_with_a_column_elsewhere(
    spark: SparkSession, tmp_path: Path
) -> None:
    """TREC topics have a title too; the document's own must be the one that is rendered."""
    (tmp_path / "bm25.msmarco.txt").write_text("1 Q0 7 1 2.5 x\n")
    pairs = read(
        spark,
        queries=write_lines(tmp_path / "q.jsonl", [{"_id": 1, "text": "fleas", "title": "topic"}]),
        corpus=write_lines(tmp_path / "c.jsonl", [{"_id": 7, "title": "Fleas", "text": "live"}]),
        run=str(tmp_path / "bm25.msmarco.txt"),
    )
    assert texts(pairs) == {("1", "7"): ("fleas", "Fleas\nlive")}
    assert pairs.passed == ("title",)


def test_labels_may_be_booleans_and_a_default_name_may_be_spelled_out(
    spark: SparkSession,
) -> None:
    schema = "query_id string, query string, doc_id string, doc string, label boolean, nan double"
    rows = [("1", "q", "a", "x", True, 1.0), ("1", "q", "b", "y", False, float("nan"))]
    spark.createDataFrame(rows, schema).createOrReplaceTempView("clicks")
    pairs = read(spark, table="clicks", label="label", retrieval_rank="retrieval_rank")
    assert [row["label"] for row in pairs.rows.orderBy("doc_id").collect()] == [1.0, 0.0]
    nan = read(spark, table="clicks", label="nan")
    assert [row["label"] for row in nan.rows.orderBy("doc_id").collect()] == [1.0, None]
    none = read(spark, table="clicks", label="")
    assert none.passed == ("label", "nan")


def test_a_field_that_the_rule_demands_is_the_reason(spark: SparkSession) -> None:
    schema = "query_id string, query string, doc_id string, title string, body string"
    rows = [("1", "q", "a", None, "x"), ("1", "q", "b", " ", None)]
    spark.createDataFrame(rows, schema).createOrReplaceTempView("fields")
    for rule, expected in (
        ("reject", {"a": "missing_field", "b": "missing_field"}),
        ("empty", {"a": None, "b": "missing_doc"}),
    ):
        pairs = read(spark, table="fields", doc_template="T: {title}\\nB: {body}", doc_missing=rule)
        assert {r["doc_id"]: r["reason"] for r in checked(pairs).collect()} == expected
