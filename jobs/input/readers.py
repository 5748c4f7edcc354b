"""One table from any source, with records that cannot be read marked instead of lost.

Spark's JSON and CSV readers replace bytes that are not UTF-8 by U+FFFD and lone surrogates by a
question mark, and say nothing. Such texts must be rejected, not scored, so both formats are read
in a way that keeps the original bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from jobs.input.columns import BYTE_ORDER_MARK, quoted
from jobs.output.filesystem import Files, literal
from jobs.runtime.errors import RefusedError

# Columns added here start like this; a source that has any like it is refused.
INTERNAL_PREFIX: Final = "_rerank_"
# Why a record could not be read, or null.
READ_ERROR: Final = f"{INTERNAL_PREFIX}error"
_RECORD: Final = f"{INTERNAL_PREFIX}record"

_ENDINGS: Final = {
    "parquet": "parquet", "json": "json", "jsonl": "json", "ndjson": "json", "csv": "csv",
    "tsv": "tsv", "orc": "orc", "avro": "avro", "trec": "trec", "run": "trec",
}  # fmt: skip
_COMPRESSIONS: Final = ("gz", "bz2", "zst", "snappy", "lz4", "deflate")
# Options that choose files, for the reader of lines as well.
_FILE_OPTIONS: Final = (
    "recursiveFileLookup", "pathGlobFilter", "modifiedBefore", "modifiedAfter",
)  # fmt: skip
# With one of these a record is no line of UTF-8, and Spark's own reader has to be trusted.
_PLAIN_JSON: Final = frozenset({"multiline", "encoding", "charset", "linesep"})
# With one of these, records of a CSV file are not looked at ahead of reading.
_PLAIN_CSV: Final = frozenset({"multiline", "encoding", "charset", "linesep", "quote", "escape"})
# An escape in JSON for half of a character: a high surrogate that no low one follows, or a low
# one that no high one precedes. An even number of backslashes before the `u` is plain text.
_LONE_SURROGATE: Final = (
    r"(?i)(?<!\\)(?:\\\\)*(?:\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f][0-9a-f]{2})"
    r"|(?<!\\ud[89ab][0-9a-f]{2})\\ud[c-f][0-9a-f]{2})"
)
_TYPED_FOLDERS: Final = "spark.sql.sources.partitionColumnTypeInference.enabled"


def read_source(
    spark: SparkSession,
    *,
    path: str | None = None,
    table: str | None = None,
    source_format: str = "auto",
    options: Mapping[str, str] | None = None,
    otherwise: str | None = None,
) -> DataFrame:
    """Read a path or a catalog table; `otherwise` is the format of an ending that says nothing.

    A path that exists as it is written is no pattern. Values of partition folders
    (`query_id=007`) are text.

    Returns:
        Its columns, and `READ_ERROR`: null, or `malformed_record`, `invalid_utf8` or
        `lone_surrogate`.

    Raises:
        RefusedError: if it is not there or Spark cannot read it.
    """
    options = dict(options or {})
    given = {key.lower() for key in options}
    try:
        if table:
            return _without_errors(spark.table(table))
        assert path is not None, "the configuration has a path or a table"
        kind = resolve_format(spark, path, source_format, otherwise)
        pattern = literal(path) if Files(spark).exists(path) else path
        with _text_partitions(spark):
            if kind == "json" and not _PLAIN_JSON & given:
                return _read_json_lines(spark, pattern, options)
            if kind in ("csv", "tsv"):
                return _read_csv(spark, pattern, kind, options)
            if kind == "trec":
                return _read_trec_run(spark, pattern)
            return _without_errors(spark.read.format(kind).options(**options).load(pattern))
    except AnalysisException as error:
        what = f"input.table={table}" if table else path
        condition = error.getCondition() or type(error).__name__
        raise RefusedError(
            f"{what} cannot be read ({condition}); check its name and format"
        ) from None


def resolve_format(
    spark: SparkSession, path: str, source_format: str, otherwise: str | None = None
) -> str:
    """Return the Spark source of a path: as given, or by its ending; a folder's by its first file.

    Raises:
        RefusedError: if the path is not there, or its ending says nothing.
    """
    if source_format != "auto":
        return source_format
    files = Files(spark)
    there = files.entry(path)
    if there is None and literal(path) == path:
        raise RefusedError(f"{path} does not exist; check the path")
    names = [path]
    if there and there.is_folder:
        names += [name for name in files.children(path) if not name.startswith(("_", "."))]
        if "=" in names[-1]:
            return "parquet"  # a partitioned folder; other formats have to be named
    for name in names:
        parts = name.lower().rsplit("/", 1)[-1].split(".")
        if parts[-1] in _COMPRESSIONS:
            parts.pop()
        if len(parts) > 1 and parts[-1] in _ENDINGS:
            return _ENDINGS[parts[-1]]
    if otherwise:
        return otherwise
    raise RefusedError(f"the format of {path} does not show in its name; set input.format")


@contextmanager
def _text_partitions(spark: SparkSession) -> Iterator[None]:
    """Have Spark read values of partition folders as text, in this block alone."""
    before = spark.conf.get(_TYPED_FOLDERS)
    spark.conf.set(_TYPED_FOLDERS, "false")
    try:
        yield
    finally:
        spark.conf.set(_TYPED_FOLDERS, str(before))


def _without_errors(rows: DataFrame) -> DataFrame:
    """Return a table whose reader marks nothing."""
    refuse_internal_names(rows.columns)
    return rows.withColumn(READ_ERROR, _nothing())


def refuse_internal_names(names: Iterable[str]) -> None:
    """Keep names that start with `INTERNAL_PREFIX` for the columns that are added here.

    Raises:
        RefusedError: naming those of the input.
    """
    if taken := [name for name in names if name.startswith(INTERNAL_PREFIX)]:
        raise RefusedError(
            f"the input has columns {', '.join(taken)}; names that start with "
            f"{INTERNAL_PREFIX} are taken, rename them"
        )


def _nothing() -> Column:
    return F.lit(None).cast("string")


def _lines(spark: SparkSession, path: str, options: Mapping[str, str]) -> DataFrame:
    """Return the lines that are not empty: `value`, and the columns of partition folders."""
    which = {key: value for key, value in options.items() if key in _FILE_OPTIONS}
    lines = spark.read.options(**which).text(path)
    value = F.col("value")
    marked = F.startswith(value, F.lit(BYTE_ORDER_MARK))
    return lines.withColumn("value", F.when(marked, F.substr(value, F.lit(2))).otherwise(value))


def _read_json_lines(spark: SparkSession, path: str, options: dict[str, str]) -> DataFrame:
    """Parse lines that are valid UTF-8; take the rest into the table as errors."""
    line = F.col("value")
    lines = _lines(spark, path, options).where(F.trim(line) != "")
    first = lines.select(F.left(F.trim(line), F.lit(2)).alias("start")).first()
    if first is not None and (first["start"].startswith("[") or first["start"] == "{"):
        raise RefusedError(
            f"{path} holds one JSON document, not an object per line; set input.options "
            "multiLine=true"
        )
    folders = [name for name in lines.columns if name != "value"]  # of a partitioned table
    inferred = spark.read.options(**options).json(path).schema
    schema = _without(inferred, {"_corrupt_record", *folders})
    if not schema.fields:
        raise RefusedError(f"{path} holds no JSON object; check the path and input.format")
    refuse_internal_names([*schema.names, *folders])
    schema.add(_RECORD, StringType())
    error = (
        F.when(~F.is_valid_utf8(line), "invalid_utf8")
        .when(F.lower(line).contains("\\ud") & line.rlike(_LONE_SURROGATE), "lone_surrogate")
        .otherwise(_nothing())
    )
    parsed = F.from_json(
        F.make_valid_utf8(line), schema, {**options, "columnNameOfCorruptRecord": _RECORD}
    )
    rows = lines.select(parsed.alias("row"), *map(quoted, folders), error.alias(READ_ERROR))
    return _mark_malformed(rows.select("row.*", *map(quoted, folders), READ_ERROR))


def _read_csv(spark: SparkSession, path: str, kind: str, options: dict[str, str]) -> DataFrame:
    """Read bytes one to one as Latin-1, then take them for the UTF-8 they should be."""
    given = {key.lower() for key in options}
    if kind == "csv" and not _PLAIN_CSV & given and _records_span_lines(spark, path, options):
        options = {**options, "multiLine": "true"}
    # RFC 4180 doubles quotes. Tab-separated collections (MS MARCO) use none and hold single ones.
    usual = {"sep": "\t", "quote": ""} if kind == "tsv" else {"escape": '"'}
    options = {"header": "true", **usual, **options}
    as_bytes = not {"encoding", "charset"} & given
    if as_bytes:
        options["encoding"] = "ISO-8859-1"
    names = spark.read.options(**options).csv(path).columns
    if not names:
        raise RefusedError(f"{path} holds no column; check the path and input.options")
    refuse_internal_names(names)
    schema = StructType([StructField(name, StringType()) for name in [*names, _RECORD]])
    options["columnNameOfCorruptRecord"] = _RECORD
    rows = spark.read.options(**options).schema(schema).csv(path)
    if as_bytes:
        rows = rows.select(
            *(
                F.encode(quoted(name), "ISO-8859-1").cast("string").alias(_as_utf8(name))
                for name in names
            ),
            _RECORD,
        )
    return _mark_malformed(rows.withColumn(READ_ERROR, _nothing()))


def _records_span_lines(spark: SparkSession, path: str, options: Mapping[str, str]) -> bool:
    """Whether as many lines leave a quote open as close one that an earlier line has opened.

    Only then are lines read together: a single stray quote would swallow rows.
    """
    separator = re.escape(options.get("sep", options.get("delimiter", ",")))
    line = F.col("value")
    odd = (F.length(line) - F.length(F.replace(line, F.lit('"'), F.lit("")))) % 2 == 1
    opens = line.rlike(rf'(?:^|{separator})"(?:[^"]|"")*$')
    closes = line.rlike(rf'^(?:[^"]|"")*"(?:{separator}|$)')
    lines = _lines(spark, path, options).where(line.contains('"') & odd)
    row = lines.agg(F.count_if(opens).alias("opens"), F.count_if(closes).alias("closes")).first()
    return row is not None and 0 < row["opens"] == row["closes"]


def _as_utf8(name: str) -> str:
    text = name.encode("latin-1").decode("utf-8", errors="replace")
    # Behind a byte-order mark Spark takes the quotes of the first name for a part of it.
    if text.startswith(BYTE_ORDER_MARK):
        text = text.removeprefix(BYTE_ORDER_MARK).strip('"')
    return text


def _read_trec_run(spark: SparkSession, path: str) -> DataFrame:
    """Read lines of `query_id Q0 doc_id rank score tag`, separated by any white space."""
    lines = _lines(spark, path, {})
    line = F.trim(F.regexp_replace("value", r"\s+", " "))
    parts = F.split(line, " ")
    error = (
        F.when(~F.is_valid_utf8("value"), "invalid_utf8")
        .when(F.size(parts) != 6, "malformed_record")
        .otherwise(_nothing())
    )
    return lines.where(line != "").select(
        F.get(parts, F.lit(0)).alias("query_id"),
        F.get(parts, F.lit(2)).alias("doc_id"),
        F.get(parts, F.lit(3)).alias("retrieval_rank"),
        F.get(parts, F.lit(4)).alias("retrieval_score"),
        error.alias(READ_ERROR),
    )


def _mark_malformed(rows: DataFrame) -> DataFrame:
    malformed = F.when(F.col(_RECORD).isNotNull(), "malformed_record")
    return rows.withColumn(READ_ERROR, F.coalesce(READ_ERROR, malformed)).drop(_RECORD)


def _without(schema: StructType, names: set[str]) -> StructType:
    return StructType([field for field in schema.fields if field.name not in names])
