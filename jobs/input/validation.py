"""Which rows can be scored: every row gets a pair key, or a reason why it is rejected.

The result holds no texts. It is written once, and counts, ranking and rejects are taken from
what was written, so that they agree whatever the input does meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from jobs.input.columns import is_blank, quoted
from jobs.input.duplicates import COLLAPSED, REJECTED, VALID, resolve_duplicates
from jobs.input.layouts import DETAIL, InputTable
from jobs.input.readers import READ_ERROR
from jobs.input.templates import pair_key
from jobs.output.folder import OutputFolder
from jobs.runtime.errors import RefusedError

_TEXTS: Final = ("query_id", "query", "doc_id", "doc")


@dataclass(frozen=True)
class RowCounts:
    """Rows of each kind.

    Attributes:
        valid: to be ranked.
        collapsed: equal to a valid one in every column.
        rejected: the others.
        distinct: pair keys of valid rows.
        without_rank: valid rows with a retrieval score and no rank.
        reasons: rejected rows by reason.
        repeated: whether a document may be more than once in a list of candidates.
        labels: rows whose label is a number.
        unreadable_labels: rejected rows whose label is none.
    """

    valid: int
    collapsed: int
    rejected: int
    distinct: int
    without_rank: int
    reasons: Mapping[str, int]
    repeated: bool
    labels: int
    unreadable_labels: int


@dataclass(frozen=True)
class ValidatedInput:
    """Input rows without their texts, and how many there are of each kind.

    Attributes:
        rows: query_id, doc_id, pair_key, retrieval_score, retrieval_rank, label, `in.*`, reason,
            detail, status.
        tally: their counts.
        group: columns of `rows` that, with query_id, make a list of candidates.
    """

    rows: DataFrame
    tally: RowCounts
    group: tuple[str, ...] = ()

    @property
    def valid(self) -> DataFrame:
        """Rows to be ranked."""
        return self.rows.where(F.col("status") == VALID).drop("status", "reason", "detail")

    @property
    def counts(self) -> dict[str, int]:
        """input, collapsed, rejected, valid, distinct."""
        kinds = {"valid": self.tally.valid, "collapsed": self.tally.collapsed,
                 "rejected": self.tally.rejected}  # fmt: skip
        return {"input": sum(kinds.values()), **kinds, "distinct": self.tally.distinct}


def validate(table: InputTable, out: OutputFolder | None = None) -> ValidatedInput:
    """Validate every row and count them.

    Rows are compared with each other, which takes a shuffle and a sort, only if ids repeat.

    Args:
        table: the input.
        out: where the validated rows are staged; None computes them without a write.

    Raises:
        RefusedError: an input without rows, or a column of labels without a number.
    """

    def staged(name: str, rows: DataFrame) -> ValidatedInput:
        rows = out.stage(name, rows, "parquet") if out else rows
        return ValidatedInput(rows, count_rows(rows, table), table.group)

    found = staged("validated", validate_rows(table))
    _refuse_unusable(found, table)
    if found.tally.repeated:
        found = staged("resolved", resolve_duplicates(found.rows, table.group))
    return found


def _refuse_unusable(found: ValidatedInput, table: InputTable) -> None:
    if not found.counts["input"] and not table.allow_empty:
        raise RefusedError(
            "the input has no rows; check its path, or set input.allow_empty=true to accept that"
        )
    if found.tally.unreadable_labels and not found.tally.labels:
        raise RefusedError(
            f"column {table.label_column} has no numbers ({found.tally.unreadable_labels} values "
            "are none); set input.label_map to their grades, such as {good: 1, bad: 0}, cast the "
            "column, or set input.label to '' to go without labels"
        )


def with_pair_keys(table: InputTable) -> DataFrame:
    """Return the rows with `pair_key` (null where `reason` is not), `reason` and `detail`."""
    rows = table.rows.withColumn("reason", _reason())
    fit = F.isnull("reason")
    return rows.select(
        *(quoted(name) for name in rows.columns if name not in (READ_ERROR, DETAIL, "reason")),
        F.when(fit, pair_key(F.col("query"), F.col("doc"))).alias("pair_key"),
        "reason",
        F.when(~fit, F.concat_ws("; ", DETAIL, _sizes())).alias("detail"),
    )


def pair_texts(table: InputTable) -> DataFrame:
    """Return `pair_key`, `query` and `doc` of every row that has texts a worker can read.

    Rows that are rejected for something else are among them. They do no harm where texts are looked
    up by key, as no key is asked for that is only theirs, and to find them out takes as long again
    as everything else here.
    """
    query, doc = F.col("query"), F.col("doc")
    readable = query.isNotNull() & doc.isNotNull() & F.is_valid_utf8(query) & F.is_valid_utf8(doc)
    return table.rows.where(readable).select(pair_key(query, doc).alias("pair_key"), query, doc)


def validate_rows(table: InputTable) -> DataFrame:
    """Return every input row as `ValidatedInput.rows`, each looked at by itself."""
    status = F.when(F.isnotnull("pair_key"), VALID).otherwise(REJECTED)
    rows = with_pair_keys(table).drop("query", "doc").withColumn("status", status)
    return rows.withColumns({name: F.make_valid_utf8(name) for name in ("query_id", "doc_id")})


def count_rows(rows: DataFrame, table: InputTable) -> RowCounts:
    """Count validated rows. Runs the plan."""
    # As many hashes as rows: no value is there twice. Fewer: one is, or, once in many runs, two
    # share a hash. Hashes are counted in a third of the time that keys take.
    fit = F.col("status") == VALID
    ids = F.xxhash64(*map(quoted, table.group), "query_id", "doc_id")
    unreadable = F.startswith("detail", F.lit(f"column {table.label_column}"))
    unreadable = unreadable & (F.col("reason") == "unreadable_number")
    counted = rows.groupBy("status", "reason").agg(
        F.count(F.lit(1)).alias("rows"),
        F.count_distinct(F.when(fit, F.xxhash64("pair_key"))).alias("keys"),
        F.count_distinct(F.when(fit, ids)).alias("ids"),
        F.count_if(F.isnull("retrieval_rank") & F.isnotnull("retrieval_score")).alias("unranked"),
        F.count("label").alias("labels"),
        F.count_if(unreadable).alias("unreadable"),
    )
    found = {(row["status"], row["reason"]): row.asDict() for row in counted.collect()}
    valid = found.get((VALID, None), dict.fromkeys(("rows", "keys", "ids", "unranked"), 0))
    distinct = valid["keys"]
    if distinct < valid["rows"]:
        distinct = rows.where(fit).select("pair_key").distinct().count()
    reasons = {reason: row["rows"] for (_, reason), row in found.items() if reason is not None}
    return RowCounts(
        valid=valid["rows"],
        collapsed=found.get((COLLAPSED, None), {"rows": 0})["rows"],
        rejected=sum(reasons.values()),
        distinct=distinct,  # a collapsed row has the key of the valid one that it equals
        without_rank=valid["unranked"],
        reasons=reasons,
        repeated=valid["ids"] < valid["rows"],
        labels=sum(row["labels"] for row in found.values()),
        unreadable_labels=sum(row["unreadable"] for row in found.values()),
    )


def _reason() -> Column:
    """The first thing wrong with a row, or null. Ids and texts must show something and be UTF-8."""
    # Validity comes before blankness: a regular expression on broken bytes means nothing.
    checks = [(F.col(READ_ERROR).isNotNull(), F.col(READ_ERROR))]
    checks += [(~F.is_valid_utf8(name), F.lit("invalid_utf8")) for name in _TEXTS]
    checks += [(is_blank(F.col(name)), F.lit(f"missing_{name}")) for name in _TEXTS]
    return reduce(
        lambda tail, check: F.when(check[0], check[1]).otherwise(tail),
        reversed(checks),
        F.lit(None).cast("string"),
    )


def _sizes() -> Column:
    """Lengths of the four columns [bytes], never their content."""
    sizes = [
        F.format_string(
            f"{name}: %s", F.coalesce(F.octet_length(name).cast("string"), F.lit("null"))
        )
        for name in _TEXTS
    ]
    return F.concat(F.lit("bytes: "), F.concat_ws(", ", *sizes))
