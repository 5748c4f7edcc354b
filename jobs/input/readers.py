"""One table from any source, with records that cannot be read marked instead of lost.

Spark's JSON and CSV readers replace bytes that are not UTF-8 by U+FFFD and lone surrogates by a
question mark, and say nothing. Such texts must be rejected, not scored, so both formats are read
in a way that keeps the original bytes.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from jobs.input.columns import BYTE_ORDER_MARK, nothing, quoted
from jobs.output.filesystem import Files, literal, text_folders
from jobs.runtime.compat import condition_of, is_valid_utf8, make_valid_utf8
from jobs.runtime.errors import RefusedError

# Columns added here start like this; a source that has any like it is refused.
INTERNAL_PREFIX: Final = "_rerank_"
# Why a record could not be read, or null.
READ_ERROR: Final = f"{INTERNAL_PREFIX}error"
_RECORD: Final = f"{INTERNAL_PREFIX}record"  # what does not fit the columns
_ROW: Final = f"{INTERNAL_PREFIX}row"

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
_ENCODED: Final = frozenset({"encoding", "charset"})
_NO_LINES: Final = _ENCODED | {"multiline", "linesep"}
# RFC 4180 doubles quotes. Tab-separated collections (MS MARCO) use none and hold single ones.
USUAL: Final = {"csv": {"escape": '"'}, "tsv": {"sep": "\t", "quote": ""}}
# An escape in JSON for half of a character: a high surrogate that no low one follows, or a low
# one that no high one precedes. An even number of backslashes before the `u` is plain text.
_LONE_SURROGATE: Final = (
    r"(?i)(?<!\\)(?:\\\\)*(?:\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f][0-9a-f]{2})"
    r"|(?<!\\ud[89ab][0-9a-f]{2})\\ud[c-f][0-9a-f]{2})"
)
_TREC: Final = {"query_id": 0, "doc_id": 2, "retrieval_rank": 3, "retrieval_score": 4}


def read_source(
    spark: SparkSession,
    *,
    path: str | None = None,
    table: str | None = None,
    source_format: str = "auto",
    options: Mapping[str, str] | None = None,
    otherwise: str | None = None,
    expected: Collection[str] = (),
) -> DataFrame:
    """Read a path or a catalog table; `otherwise` is the format of an ending that says nothing.

    A path that exists as it is written is no pattern. Values of partition folders
    (`query_id=007`) are text. A header that has none of the names `expected` is taken for data.

    Returns:
        Its columns, and `READ_ERROR`: null, or `malformed_record`, `invalid_utf8` or
        `lone_surrogate`.

    Raises:
        RefusedError: if it is not there, has no header, or Spark cannot read it.
    """
    options = dict(options or {})
    try:
        with text_folders(spark):
            if table:
                rows = _read_table(spark, table)
                refuse_internal_names(rows.columns)
                return rows.withColumn(READ_ERROR, nothing())
            assert path is not None, "the configuration has a path or a table"
            kind = resolve_format(spark, path, source_format, otherwise)
            pattern = literal(path) if Files(spark).exists(path) else path
            if kind == "trec":
                return _read_trec_run(spark, pattern)
            if kind in USUAL:
                return _read_csv(spark, pattern, kind, options, expected)
            rows = spark.read.format(kind).options(**options).load(pattern)
            refuse_internal_names(rows.columns)
            if kind == "json" and not _NO_LINES & {key.lower() for key in options}:
                return _read_json_lines(spark, pattern, options, rows.schema)
            return rows.withColumn(READ_ERROR, nothing())
    except AnalysisException as error:
        what = f"input.table={table}" if table else path
        condition = condition_of(error)
        raise RefusedError(
            f"{what} cannot be read ({condition}); check its name and format"
        ) from None


def _read_table(spark: SparkSession, name: str) -> DataFrame:
    """Return a table; one of Iceberg as it is now, whatever is committed while the job reads it."""
    try:
        snapshots = spark.sql(f"SELECT snapshot_id FROM {name}.refs WHERE name = 'main'").collect()
    except AnalysisException:  # it has none
        return spark.table(name)
    if not snapshots:  # nothing was ever written to it
        return spark.table(name)
    return spark.read.option("snapshot-id", snapshots[0][0]).table(name)


def resolve_format(spark: SparkSession, path: str, given: str, otherwise: str | None) -> str:
    """Return the format of a path: as given, or by its ending; a folder's by its first file."""
    if given != "auto":
        return given
    files = Files(spark)
    there = files.entry(path)
    if there is None and literal(path) == path:
        raise RefusedError(f"{path} does not exist; check the path")
    names = [path]
    if there and there.is_folder:
        names += _first_files(files, path)
    for name in names:
        _, *endings = name.lower().rpartition("/")[2].split(".")
        found = [ending for ending in endings if ending not in _COMPRESSIONS][-1:]
        if found and found[0] in _ENDINGS:
            return _ENDINGS[found[0]]
    if any("=" in name for name in names[1:]):
        return "parquet"
    if otherwise:
        return otherwise
    raise RefusedError(f"the format of {path} does not show in its name; set input.format")


def _first_files(files: Files, folder: str) -> list[str]:
    """Return the names in a folder; where its last is a partition, also those in there."""
    names = [name for name in files.children(folder) if not name.startswith(("_", "."))]
    inside = names[-1:] if names and "=" in names[-1] else []
    return names + [n for name in inside for n in _first_files(files, f"{folder}/{name}")]


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


def _lines(spark: SparkSession, path: str, options: Mapping[str, str]) -> DataFrame:
    """Return lines without a byte-order mark: `value`, and the columns of partition folders."""
    which = {key: value for key, value in options.items() if key in _FILE_OPTIONS}
    value = F.col("value")
    marked = F.startswith(value, F.lit(BYTE_ORDER_MARK))
    whole = F.when(marked, F.substr(value, F.lit(2))).otherwise(value)
    return spark.read.options(**which).text(path).withColumn("value", whole)


def _read_json_lines(
    spark: SparkSession, path: str, options: Mapping[str, str], inferred: StructType
) -> DataFrame:
    """Parse lines that are valid UTF-8; take the rest into the table as errors."""
    line = F.col("value")
    lines = _lines(spark, path, options).where(F.trim(line) != "")
    start = lines.select(F.left(F.trim(line), F.lit(2))).first()
    if start and (start[0].startswith("[") or start[0] == "{"):
        raise RefusedError(
            f"{path} holds one JSON document, not an object per line; set input.options "
            "multiLine=true"
        )
    folders = [name for name in lines.columns if name != "value"]  # of a partitioned table
    fields = [each for each in inferred if each.name not in ("_corrupt_record", *folders)]
    if not fields:
        raise RefusedError(f"{path} holds no JSON object; check the path and input.format")
    schema = StructType([*fields, StructField(_RECORD, StringType())])
    parsed = F.from_json(
        make_valid_utf8(line), schema, {**options, "columnNameOfCorruptRecord": _RECORD}
    )
    error = (
        F.when(~is_valid_utf8(line), "invalid_utf8")
        .when(F.lower(line).contains("\\ud") & line.rlike(_LONE_SURROGATE), "lone_surrogate")
        .when(F.isnotnull(f"{_ROW}.{_RECORD}"), "malformed_record")
    )
    rows = lines.withColumn(_ROW, parsed)
    rows = rows.select(f"{_ROW}.*", *map(quoted, folders), error.alias(READ_ERROR))
    return rows.drop(_RECORD)


def _read_csv(
    spark: SparkSession, path: str, kind: str, options: dict[str, str], expected: Collection[str]
) -> DataFrame:
    """Read bytes one to one as Latin-1, then take them for the UTF-8 they should be."""
    options = csv_options(spark, path, kind, options)
    if as_bytes := not _ENCODED & {key.lower() for key in options}:
        options["encoding"] = "ISO-8859-1"
    names = spark.read.options(**options).csv(path).columns
    if not names:
        raise RefusedError(f"{path} holds no column; check the path and input.options")
    refuse_internal_names(names)
    schema = StructType([StructField(name, StringType()) for name in [*names, _RECORD]])
    options["columnNameOfCorruptRecord"] = _RECORD
    rows = spark.read.options(**options).schema(schema).csv(path)
    if as_bytes:
        texts = [F.encode(quoted(name), "ISO-8859-1").cast("string") for name in names]
        names = [_as_utf8(name) for name in names]
        rows = rows.select(*texts, _RECORD).toDF(*names, _RECORD)
    if expected and options["header"].lower() == "true" and not {*expected} & {*names}:
        # Its fields are texts, and must not be printed.
        lengths = ", ".join(str(len(name)) for name in names)
        raise RefusedError(
            f"{path}: its first line, of {len(names)} fields of {lengths} characters, has none of "
            f"the columns {', '.join(sorted(filter(None, expected)))}. If it is no header, add "
            "one; for an input, you can instead set input.options header=false and name columns by "
            "their places: input.query_id=_c0, input.query=_c1 and so on"
        )
    malformed = F.when(F.isnotnull(_RECORD), "malformed_record")
    return rows.withColumn(READ_ERROR, malformed).drop(_RECORD)


def csv_options(
    spark: SparkSession, path: str, kind: str, options: Mapping[str, str]
) -> dict[str, str]:
    """Return the options that a kind of CSV is read with: those given, and what its lines ask for.

    `kind` is a key of `USUAL`.
    """
    given, lines = {key.lower() for key in options}, {}
    if kind == "csv" and not (_NO_LINES | {"quote", "escape"}) & given:
        lines["multiLine"] = str(_records_span_lines(spark, path, options)).lower()
    return {"header": "true", **USUAL[kind], **options, **lines}


def _records_span_lines(spark: SparkSession, path: str, options: Mapping[str, str]) -> bool:
    """Whether as many lines leave a quote open as close one that an earlier line has opened.

    In every file: only then are lines read together. A single stray quote would swallow rows.
    """
    separator = re.escape(options.get("sep", options.get("delimiter", ",")))
    line = F.col("value")
    odd = (F.length(line) - F.length(F.replace(line, F.lit('"'), F.lit("")))) % 2 == 1
    opens = line.rlike(rf'(?:^|{separator})"(?:[^"]|"")*$')
    closes = line.rlike(rf'^(?:[^"]|"")*"(?:{separator}|$)')
    lines = _lines(spark, path, options).where(line.contains('"') & odd)
    counts = lines.groupBy(F.input_file_name()).agg(
        F.count_if(opens).alias("opened"), F.count_if(closes).alias("closed")
    )
    opened, uneven = counts.agg(
        F.sum("opened"), F.count_if(F.col("opened") != F.col("closed"))
    ).collect()[0]
    return bool(opened and not uneven)


def _as_utf8(name: str) -> str:
    text = name.encode("latin-1").decode("utf-8", errors="replace")
    # Behind a byte-order mark Spark takes the quotes of the first name for a part of it.
    return text[1:].strip('"') if text.startswith(BYTE_ORDER_MARK) else text


def _read_trec_run(spark: SparkSession, path: str) -> DataFrame:
    """Read lines of `query_id Q0 doc_id rank score tag`, separated by any white space."""
    line = F.trim(F.regexp_replace("value", r"\s+", " "))
    parts = F.split(line, " ")
    error = F.when(~is_valid_utf8("value"), "invalid_utf8").when(
        F.size(parts) != 6, "malformed_record"
    )
    return (
        _lines(spark, path, {})
        .where(line != "")
        .select(
            *(F.get(parts, F.lit(at)).alias(name) for name, at in _TREC.items()),
            error.alias(READ_ERROR),
        )
    )
