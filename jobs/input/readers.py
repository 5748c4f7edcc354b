"""One table from any source, with records that cannot be read marked instead of lost.

Spark's JSON and CSV readers replace bytes that are not UTF-8 by U+FFFD and lone surrogates by a
question mark, and say nothing. Such texts must be rejected, not scored, so both formats are read
in a way that keeps the original bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from jobs.output.filesystem import Files
from jobs.runtime.errors import RefusedError

# Columns of our own start like this; a source that has any like it is refused.
INTERNAL_PREFIX: Final = "_rerank_"
# Why a record could not be read, or null.
READ_ERROR: Final = f"{INTERNAL_PREFIX}fault"
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
_PLAIN_JSON: Final = frozenset({"multiLine", "encoding", "charset", "lineSep"})
# An escape in JSON for half of a character: a high surrogate that no low one follows, or a low
# one that no high one precedes. An even number of backslashes before the `u` is plain text.
_LONE_SURROGATE: Final = (
    r"(?i)(?<!\\)(?:\\\\)*(?:\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f][0-9a-f]{2})"
    r"|(?<!\\ud[89ab][0-9a-f]{2})\\ud[c-f][0-9a-f]{2})"
)


def quoted(name: str) -> Column:
    """A column by its exact name, whatever characters are in it."""
    return F.col("`" + name.replace("`", "``") + "`")


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

    Returns:
        Its columns, and `READ_ERROR`: null, or `malformed_record`, `invalid_utf8` or
        `lone_surrogate`.

    Raises:
        RefusedError: if it is not there or Spark cannot read it.
    """
    options = dict(options or {})
    try:
        if table:
            return _without_faults(spark.table(table))
        assert path is not None, "the configuration has a path or a table"
        kind = resolve_format(spark, path, source_format, otherwise)
        if kind == "json" and not _PLAIN_JSON & set(options):
            return _read_json_lines(spark, path, options)
        if kind in ("csv", "tsv"):
            return _read_csv(spark, path, kind, options)
        if kind == "trec":
            return _read_trec_run(spark, path)
        return _without_faults(spark.read.format(kind).options(**options).load(path))
    except AnalysisException as error:
        what = f"input.table={table}" if table else path
        condition = error.getCondition() or type(error).__name__
        raise RefusedError(
            f"{what} cannot be read ({condition}); check its name and format"
        ) from None


def resolve_format(
    spark: SparkSession, path: str, source_format: str, otherwise: str | None = None
) -> str:
    """The Spark source of a path: as given, or by its ending; a folder's by its first file.

    Raises:
        RefusedError: if the path is not there, or its ending says nothing.
    """
    if source_format != "auto":
        return source_format
    files = Files(spark)
    globbed = any(mark in path for mark in "*?[{")
    if not globbed and not files.exists(path):
        raise RefusedError(f"{path} does not exist; check the path")
    names = [path]
    if not globbed and files.is_folder(path):
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


def _without_faults(rows: DataFrame) -> DataFrame:
    """A table whose reader marks nothing."""
    refuse_own(rows.columns)
    return rows.withColumn(READ_ERROR, _nothing())


def refuse_own(names: Iterable[str]) -> None:
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


def _read_json_lines(spark: SparkSession, path: str, options: dict[str, str]) -> DataFrame:
    """Parse lines that are valid UTF-8; take the rest into the table as faults."""
    which = {key: value for key, value in options.items() if key in _FILE_OPTIONS}
    lines = spark.read.options(**which).text(path)
    folders = [name for name in lines.columns if name != "value"]  # of a partitioned table
    found = spark.read.options(**options).json(path).schema
    schema = _without(found, {"_corrupt_record", *folders})
    if not schema.fields:
        raise RefusedError(f"{path} holds no JSON object; check the path and input.format")
    refuse_own([*schema.names, *folders])
    schema.add(_RECORD, StringType())
    line = F.col("value")
    fault = (
        F.when(~F.is_valid_utf8(line), "invalid_utf8")
        .when(F.lower(line).contains("\\ud") & line.rlike(_LONE_SURROGATE), "lone_surrogate")
        .otherwise(_nothing())
    )
    parsed = F.from_json(
        F.make_valid_utf8(line), schema, {**options, "columnNameOfCorruptRecord": _RECORD}
    )
    lines = lines.where(F.trim(line) != "")
    rows = lines.select(parsed.alias("row"), *map(quoted, folders), fault.alias(READ_ERROR))
    return _mark_malformed(rows.select("row.*", *map(quoted, folders), READ_ERROR))


def _read_csv(spark: SparkSession, path: str, kind: str, options: dict[str, str]) -> DataFrame:
    """Read bytes one to one as Latin-1, then take them for the UTF-8 they should be."""
    # RFC 4180 doubles quotes. Tab-separated collections (MS MARCO) use none and hold single ones.
    usual = {"sep": "\t", "quote": ""} if kind == "tsv" else {"escape": '"'}
    options = {"header": "true", **usual, **options}
    as_bytes = "encoding" not in options and "charset" not in options
    if as_bytes:
        options["encoding"] = "ISO-8859-1"
    names = spark.read.options(**options).csv(path).columns
    if not names:
        raise RefusedError(f"{path} holds no column; check the path and input.options")
    refuse_own(names)
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


def _as_utf8(name: str) -> str:
    return name.encode("latin-1").decode("utf-8", errors="replace").removeprefix("\ufeff")


def _read_trec_run(spark: SparkSession, path: str) -> DataFrame:
    """`query_id Q0 doc_id rank score tag`, separated by any white space."""
    line = F.trim(F.regexp_replace("value", r"\s+", " "))
    parts = F.split(line, " ")
    fault = (
        F.when(~F.is_valid_utf8("value"), "invalid_utf8")
        .when(F.size(parts) != 6, "malformed_record")
        .otherwise(_nothing())
    )
    return (
        spark.read.text(path)
        .where(line != "")
        .select(
            F.get(parts, F.lit(0)).alias("query_id"),
            F.get(parts, F.lit(2)).alias("doc_id"),
            F.get(parts, F.lit(3)).alias("retrieval_rank"),
            F.get(parts, F.lit(4)).alias("retrieval_score"),
            fault.alias(READ_ERROR),
        )
    )


def _mark_malformed(rows: DataFrame) -> DataFrame:
    malformed = F.when(F.col(_RECORD).isNotNull(), "malformed_record")
    return rows.withColumn(READ_ERROR, F.coalesce(READ_ERROR, malformed)).drop(_RECORD)


def _without(schema: StructType, names: set[str]) -> StructType:
    return StructType([field for field in schema.fields if field.name not in names])


def as_text(name: str) -> Column:
    """A column as a string; binary is taken for UTF-8, and checked later like any text."""
    column = quoted(name)
    return column.cast("string")
