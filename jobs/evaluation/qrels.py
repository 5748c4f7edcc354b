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

import re
from collections.abc import Sequence
from typing import Final

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.input.columns import BYTE_ORDER_MARK, as_text, id_text
from jobs.runtime.compat import condition_of
from jobs.runtime.errors import RefusedError

#: Accepted column names, in the order in which they are looked for.
NAMES: Final = {
    "query_id": ("query_id", "query-id", "qid"),
    "doc_id": ("doc_id", "corpus-id", "doc-id", "docid"),
    "relevance": ("relevance", "label", "score", "grade"),
}

_FORMS: Final = (
    "TREC lines (query iteration document grade), a tab- or comma-separated table with a header, "
    "JSON lines or Parquet"
)
_NUMBER: Final = r"^[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?$"
_FILLED: Final = r"\S"  # a line that is not blank
_OUTER_SPACE: Final = r"^\s+|\s+$"


def read_qrels(spark: SparkSession, path: str) -> DataFrame:
    """Read the qrels at a path or URI and check them; a file or a folder of files.

    Returns:
        query_id (string), doc_id (string), relevance (int); one row per judged pair.

    Raises:
        RefusedError: nothing there, an unknown form, a line that cannot be read (with its number),
            a grade that is no whole number, a pair with two different grades, no judgement at all.
    """
    try:
        # The value alone: a folder's name=value parts would add columns.
        lines = spark.read.text(path).select("value")
        row = lines.where(F.col("value").rlike(_FILLED)).first()
        if row is None:
            raise RefusedError(f"qrels {path} are empty; give {_FORMS}")
        first = row["value"].removeprefix(BYTE_ORDER_MARK)
        form, header = _form(first)
        if form in ("parquet", "json", "csv"):
            table = spark.read.format(form).options(header=True).load(path)
            found = _checked(_mapped(table, path), f"qrels {path}")
        else:
            # ASCII white space alone, as in the split of all lines: an id may hold another kind.
            width = len(re.findall(r"\S+", first, re.ASCII))
            if form == "trec" and width != len(header):
                raise RefusedError(
                    f"qrels {path}: the first line has {width} columns and no header that names "
                    f"{', '.join(NAMES)}; give {_FORMS}"
                )
            # Spark numbers no lines: files are taken whole to say which one is wrong.
            whole = spark.read.text(path, wholetext=True).select(
                F.col("_metadata.file_name").alias("file"),
                F.posexplode(F.split("value", "\r\n|\r|\n")).alias("number", "value"),
            )
            skipped = first if form == "tsv" else None  # each file of a folder has the header
            raw, numbered = (_split(each, header, skipped) for each in (lines, whole))
            found = _checked(raw, f"qrels {path}", numbered)
    except AnalysisException as error:
        condition = condition_of(error)
        raise RefusedError(
            f"qrels {path} cannot be read ({condition}); give the path of {_FORMS}"
        ) from None
    if found is None:
        raise RefusedError(f"qrels {path} hold no judgement; give at least one line with a grade")
    return found


def from_labels(table: DataFrame) -> DataFrame | None:
    """Return qrels from the label column of a table of pairs; a null label is no judgement.

    Args:
        table: query_id, doc_id, label (a whole number of any type, or a bool; NaN is taken as
            null); the rest is ignored.

    Returns:
        As `read_qrels`; None where every label is null, or there is no column label.

    Raises:
        RefusedError: a label that is no whole number, or a pair with two different ones.
    """
    if "label" not in table.columns:
        return None
    label, kind = F.col("label"), table.schema["label"].dataType.typeName()
    if kind == "boolean":
        label = label.cast("int")
    elif kind in ("float", "double"):
        label = F.nanvl(label, F.lit(None))  # how pandas writes a missing number
    ids = [F.col(name).cast("string").alias(name) for name in ("query_id", "doc_id")]
    labelled = table.where(label.isNotNull()).select(*ids, label.cast("string").alias("relevance"))
    remedy = "keep one, judge by evaluation.qrels, or set input.label to '' to go without labels"
    return _checked(labelled, "the label column", remedy=remedy)


def _form(first: str) -> tuple[str, list[str]]:
    """The form that a first line shows, and the columns of its lines."""
    if first.startswith("PAR1"):
        return "parquet", []
    if first.lstrip().startswith("{"):
        return "json", []
    for form, separator in (("tsv", "\t"), ("csv", ",")):
        header = [name.strip().strip('"') for name in first.split(separator)]
        if len(_named(header)) == len(NAMES):
            return form, header
    return "trec", ["query_id", "iteration", "doc_id", "relevance"]


def _named(columns: Sequence[str]) -> dict[str, str]:
    """The columns that are query_id, doc_id and relevance under any of their names."""
    found = {name: [each for each in known if each in columns] for name, known in NAMES.items()}
    return {name: present[0] for name, present in found.items() if present}


def _mapped(table: DataFrame, path: str) -> DataFrame:
    names = _named(table.columns)
    if missing := [name for name in NAMES if name not in names]:
        wanted = "; ".join(f"{name} (or {', '.join(NAMES[name][1:])})" for name in missing)
        raise RefusedError(
            f"qrels {path} lack {wanted}; the columns present are {', '.join(table.columns)}"
        )
    ids = [id_text(table, names[name]).alias(name) for name in ("query_id", "doc_id")]
    return table.select(*ids, as_text(names["relevance"]).alias("relevance"))


def _split(lines: DataFrame, header: Sequence[str], skipped: str | None) -> DataFrame:
    """TREC lines, or tab-separated ones without their header; keeps other columns of `lines`."""
    line = F.regexp_replace("value", f"^{BYTE_ORDER_MARK}", "")
    kept = F.col("value").rlike(_FILLED)
    if skipped is None:
        parts = F.split(F.regexp_replace(line, _OUTER_SPACE, ""), r"\s+")
    else:
        kept, parts = kept & (line != skipped), F.split(line, "\t")
    whole = F.size(parts) == len(header)
    return lines.where(kept).select(
        *(F.when(whole, F.get(parts, F.lit(header.index(column)))).alias(name)
          for name, column in _named(header).items()),
        *(name for name in lines.columns if name != "value"),
    )  # fmt: skip


def _graded(raw: DataFrame) -> DataFrame:
    """Add `grade`, null where it is no whole number of nine digits at most, and `malformed`."""
    ids = {name: F.regexp_replace(name, _OUTER_SPACE, "") for name in ("query_id", "doc_id")}
    text = F.trim("relevance")
    number = F.when(text.rlike(_NUMBER), text.cast("double"))
    grade = F.when((number == F.floor(number)) & (F.abs(number) < 1e9), number.cast("int"))
    filled = F.col("query_id").rlike(_FILLED) & F.col("doc_id").rlike(_FILLED)
    malformed = ~(grade.isNotNull() & F.coalesce(filled, F.lit(False)))
    return raw.withColumns({**ids, "grade": grade, "malformed": malformed})


def _checked(
    raw: DataFrame, source: str, numbered: DataFrame | None = None, remedy: str = "keep one"
) -> DataFrame | None:
    """Grades as int, equal repetitions merged; None if there are none.

    Reads the table once to find what is wrong, and numbered lines to say where.
    """
    pairs = _graded(raw).groupBy("query_id", "doc_id").agg(
        F.min("grade").alias("least"), F.max("grade").alias("relevance"),
        F.bool_or("malformed").alias("malformed"),
    )  # fmt: skip
    pair, conflicting = F.struct("query_id", "doc_id"), F.col("least") < F.col("relevance")
    row = pairs.agg(
        F.count(F.lit(1)).alias("pairs"),
        F.min(F.when(F.col("malformed"), pair)).alias("malformed"),
        F.count_if(conflicting).alias("conflicting"),
        F.min(F.when(conflicting, pair)).alias("conflict"),
    ).collect()[0]
    if row["malformed"] is not None:
        where = "query {!r}, document {!r}".format(*row["malformed"])
        if numbered is not None:
            line = _graded(numbered).where("malformed").orderBy("file", "number").collect()[0]
            where = f"line {line['number'] + 1} of {line['file']}"
        raise RefusedError(
            f"{source}: {where} lacks a query id, a document id or a whole number as grade; "
            "mend or remove it"
        )
    if row["conflicting"]:
        raise RefusedError(
            f"{source}: {row['conflicting']} pairs have two different grades, for example "
            f"{'query {!r}, document {!r}'.format(*row['conflict'])}; {remedy}"
        )
    return pairs.select("query_id", "doc_id", "relevance") if row["pairs"] else None
