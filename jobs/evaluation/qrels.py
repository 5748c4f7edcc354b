"""Read qrels: which documents are relevant to which query, and to what grade.

What a file holds is told from its first line, not from its name:

    19335 Q0 1017759 0                    TREC: query, iteration (ignored), document, grade
    query-id<tab>corpus-id<tab>score      BEIR: a header, then tab-separated lines
    query_id,doc_id,label                 a comma- or tab-separated table with a header
    {"query_id": ...}                     a JSON object per line
    PAR1                                  Parquet

Grades are whole numbers, also when written 1.0 or 1e0. A byte-order mark, Windows line ends and
white space around an id are no part of the content. Error messages hold ids and positions only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.input.columns import id_text
from jobs.runtime.errors import RefusedError

#: Accepted column names, in the order in which they are looked for.
NAMES: Final = {
    "query_id": ("query_id", "query-id", "qid"),
    "doc_id": ("doc_id", "corpus-id", "doc-id", "docid"),
    "relevance": ("relevance", "label", "score", "grade"),
}

_TREC: Final = ["query_id", "iteration", "doc_id", "relevance"]
_FORMS: Final = (
    "TREC lines (query iteration document grade), a tab- or comma-separated table with a header, "
    "JSON lines or Parquet"
)
_NUMBER: Final = r"^[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?$"
_FILLED: Final = r"\S"  # a line that is not blank
_BYTE_ORDER_MARK: Final = "\ufeff"


class QrelsError(RefusedError, ValueError):
    """Qrels that cannot be used."""


def read_qrels(spark: SparkSession, path: str) -> DataFrame:
    """Read the qrels at a path or URI and check them; a file or a folder of files.

    Returns:
        query_id (string), doc_id (string), relevance (int); one row per judged pair.

    Raises:
        QrelsError: nothing there, an unknown form, a line that cannot be read (with its number), a
            grade that is no whole number, a pair with two different grades, no judgement at all.
    """
    try:
        first = _first_line(spark, path)
        raw = _read(spark, path, first)
        found = _checked(raw, f"qrels {path}", _lines_of(spark, path, first))
    except AnalysisException as error:
        condition = error.getCondition() or type(error).__name__
        raise QrelsError(
            f"qrels {path} cannot be read ({condition}); give the path of {_FORMS}"
        ) from None
    if found is None:
        raise QrelsError(f"qrels {path} hold no judgement; give at least one line with a grade")
    return found


def from_labels(table: DataFrame) -> DataFrame | None:
    """Return qrels from the label column of a table of pairs; a null label is no judgement.

    Args:
        table: query_id, doc_id, label (a whole number of any type, or a bool; NaN is taken as
            null); the rest is ignored.

    Returns:
        As `read_qrels`; None where every label is null, or there is no column label.

    Raises:
        QrelsError: a label that is no whole number, or a pair with two different ones.
    """
    if "label" not in table.columns:
        return None
    label = F.col("label")
    kind = table.schema["label"].dataType.typeName()
    if kind == "boolean":
        label = label.cast("int")
    elif kind in ("float", "double"):
        label = F.nanvl(label, F.lit(None))  # how pandas writes a missing number
    ids = [F.col(name).cast("string").alias(name) for name in ("query_id", "doc_id")]
    labelled = table.where(label.isNotNull()).select(*ids, label.cast("string").alias("relevance"))
    return _checked(labelled, "the label column", None)


def _first_line(spark: SparkSession, path: str) -> str:
    """The first line that is not blank; where it is binary, whatever a text reader makes of it."""
    # The value alone: a folder's name=value parts would add columns.
    lines = spark.read.text(path).select("value")
    row = lines.where(F.col("value").rlike(_FILLED)).first()
    if row is None:
        raise QrelsError(f"qrels {path} are empty; give {_FORMS}")
    return str(row["value"]).removeprefix(_BYTE_ORDER_MARK)


def _read(spark: SparkSession, path: str, first: str) -> DataFrame:
    """Columns query_id, doc_id, relevance as strings, unchecked; null where a line lacks them."""
    if first.startswith("PAR1"):
        return _mapped(spark.read.parquet(path), path)
    if first.lstrip().startswith("{"):
        return _mapped(spark.read.json(path), path)
    separator = _separator(first)
    if separator == ",":
        # Ids may be quoted here, so the line is not ours to split.
        return _mapped(spark.read.csv(path, header=True), path)
    # ASCII white space alone, as in the split of all lines: an id may hold another kind.
    found = len(re.findall(r"\S+", first, re.ASCII))
    if separator is None and found != len(_TREC):
        raise QrelsError(
            f"qrels {path}: the first line has {found} columns and no header that names "
            f"{', '.join(NAMES)}; give {_FORMS}"
        )
    return _parsed(spark.read.text(path).select("value"), first)


def _separator(first: str) -> str | None:
    """Tab or comma if the line is a header with the column names, else None."""
    return next((s for s in "\t," if None not in _positions(_header(first, s)).values()), None)


def _header(first: str, separator: str) -> list[str]:
    return [name.strip().strip('"') for name in first.split(separator)]


def _positions(columns: Sequence[str]) -> dict[str, int | None]:
    """Where query_id, doc_id and relevance stand under any of their names."""
    return {
        name: next((columns.index(known) for known in accepted if known in columns), None)
        for name, accepted in NAMES.items()
    }


def _mapped(table: DataFrame, path: str) -> DataFrame:
    positions = _positions(table.columns)
    missing = [name for name, at in positions.items() if at is None]
    if missing:
        wanted = "; ".join(f"{name} (or {', '.join(NAMES[name][1:])})" for name in missing)
        raise QrelsError(
            f"qrels {path} lack {wanted}; the columns present are {', '.join(table.columns)}"
        )
    # By position, for a name may hold dots or dashes.
    plain = table.toDF(*map(str, range(len(table.columns))))
    ids = [id_text(plain, str(positions[name])).alias(name) for name in ("query_id", "doc_id")]
    return plain.select(*ids, F.col(str(positions["relevance"])).cast("string").alias("relevance"))


def _parsed(lines: DataFrame, first: str) -> DataFrame:
    """Split TREC or tab-separated lines; keeps the other columns of `lines`."""
    line = F.regexp_replace("value", f"^{_BYTE_ORDER_MARK}", "")
    skip = ~F.col("value").rlike(_FILLED)
    if _separator(first) == "\t":
        columns, parts = _header(first, "\t"), F.split(line, "\t")
        skip = skip | (line == first)  # each file of a folder has the header
    else:
        columns, parts = _TREC, F.split(F.regexp_replace(line, r"^\s+|\s+$", ""), r"\s+")
    whole = F.size(parts) == len(columns)
    return lines.where(~skip).select(
        *(F.when(whole, F.get(parts, F.lit(at))).alias(name)
          for name, at in _positions(columns).items()),
        *(name for name in lines.columns if name != "value"),
    )  # fmt: skip


def _lines_of(spark: SparkSession, path: str, first: str) -> DataFrame | None:
    """Numbered lines of a text form, to say where one is wrong; None for the other forms.

    Spark numbers no lines, so this takes every file whole, and is used for an error alone.
    """
    if first.startswith("PAR1") or first.lstrip().startswith("{") or _separator(first) == ",":
        return None
    files = spark.read.text(path, wholetext=True)
    numbered = files.select(
        F.col("_metadata.file_name").alias("file"),
        F.posexplode(F.split("value", "\r\n|\r|\n")).alias("number", "value"),
    )
    return _parsed(numbered, first)


def _checked(raw: DataFrame, source: str, lines: DataFrame | None) -> DataFrame | None:
    """Grades as int, equal repetitions merged; None if there are none.

    Reads the table once to find what is wrong.
    """
    ids = {name: F.regexp_replace(name, r"^\s+|\s+$", "") for name in ("query_id", "doc_id")}
    grade = _grade()
    pairs = raw.withColumns(ids).groupBy("query_id", "doc_id").agg(
        F.min(grade).alias("least"),
        F.max(grade).alias("relevance"),
        F.max(F.when(_malformed(), 1)).alias("malformed"),
    )  # fmt: skip
    pair = F.struct("query_id", "doc_id")
    row = pairs.agg(
        F.count(F.lit(1)).alias("pairs"),
        F.count_if(F.col("malformed") == 1).alias("malformed"),
        F.min(F.when(F.col("malformed") == 1, pair)).alias("malformed_pair"),
        F.count_if(F.col("least") < F.col("relevance")).alias("conflicting"),
        F.min(F.when(F.col("least") < F.col("relevance"), pair)).alias("conflicting_pair"),
    ).first()
    assert row is not None  # an aggregate without groups has one row
    if row["malformed"]:
        where = _first_malformed(lines) if lines is not None else _named(row["malformed_pair"])
        raise QrelsError(
            f"{source}: {where} lacks a query id, a document id or a whole number as grade; "
            "mend or remove it"
        )
    if row["conflicting"]:
        raise QrelsError(
            f"{source}: {row['conflicting']} pairs have two different grades, for example "
            f"{_named(row['conflicting_pair'])}; keep one"
        )
    return pairs.select("query_id", "doc_id", "relevance") if row["pairs"] else None


def _grade() -> Column:
    """The column relevance as int, null where it is no whole number of nine digits at most."""
    text = F.trim("relevance")
    number = F.when(text.rlike(_NUMBER), text.cast("double"))
    return F.when((number == F.floor(number)) & (F.abs(number) < 1e9), number.cast("int"))


def _malformed() -> Column:
    fine = _grade().isNotNull()
    for name in ("query_id", "doc_id"):
        fine = fine & F.coalesce(F.col(name).rlike(_FILLED), F.lit(False))
    return ~fine


def _named(pair: Sequence[str | None]) -> str:
    return f"query {pair[0]!r}, document {pair[1]!r}"


def _first_malformed(lines: DataFrame) -> str:
    row = lines.where(_malformed()).orderBy("file", "number").first()
    assert row is not None  # the same lines have just been found malformed
    return f"line {row['number'] + 1} of {row['file']}"
