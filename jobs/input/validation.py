"""Which rows can be scored: every row gets a pair key or a reason, and equal rows collapse.

The result holds no texts. It is written once, and counts, ranking and rejects are taken from
what was written, so that they agree whatever the input does meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Final

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.input.layouts import PASS_THROUGH, InputTable
from jobs.input.readers import INTERNAL_PREFIX, READ_ERROR, quoted
from jobs.input.templates import is_blank, pair_key
from jobs.output.folder import OutputFolder

VALID: Final = "valid"
COLLAPSED: Final = "collapsed"
REJECTED: Final = "rejected"

_TEXTS: Final = ("query_id", "query", "doc_id", "doc")
_CONFLICT: Final = f"{INTERNAL_PREFIX}conflict"
_TWINS: Final = f"{INTERNAL_PREFIX}twins"
_PLACE: Final = f"{INTERNAL_PREFIX}place"


@dataclass(frozen=True)
class RowCounts:
    """How many rows there are of each kind.

    Attributes:
        valid: to be ranked.
        collapsed: equal to a valid one.
        rejected: the others.
        distinct: pair keys.
        without_rank: valid rows with a retrieval score and no rank.
        reasons: rejected rows by reason.
        may_have_duplicates: whether two valid rows may have the same (query_id, doc_id).
    """

    valid: int
    collapsed: int
    rejected: int
    distinct: int
    without_rank: int
    reasons: Mapping[str, int]
    may_have_duplicates: bool


@dataclass(frozen=True)
class ValidatedInput:
    """Input rows without their texts, and how many there are of each kind."""

    rows: DataFrame
    tally: RowCounts

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

    Args:
        table: the input.
        out: where the validated rows are staged; None computes them without a write.
    """

    def staged(name: str, rows: DataFrame) -> ValidatedInput:
        rows = out.stage(name, rows, "parquet") if out else rows
        return ValidatedInput(rows, count_rows(rows))

    found = staged("validated", validate_rows(table))
    if found.tally.may_have_duplicates:
        # Comparing rows with equal ids takes a shuffle and a sort.
        found = staged("resolved", resolve_duplicates(found.rows))
    return found


def with_pair_keys(pairs: InputTable) -> DataFrame:
    """The rows with `pair_key` (null where `reason` is not), `reason` and `detail`."""
    reason = _reason()
    rows = pairs.rows.withColumn("reason", reason)
    fit = F.isnull("reason")
    return rows.select(
        *(quoted(name) for name in rows.columns if name not in (READ_ERROR, "reason")),
        F.when(fit, pair_key(F.col("query"), F.col("doc"))).alias("pair_key"),
        "reason",
        F.when(~fit, _detail()).alias("detail"),
    )


def pair_texts(pairs: InputTable) -> DataFrame:
    """`pair_key`, `query` and `doc` of every row that has texts a worker can read.

    Rows that are rejected for something else are among them. They do no harm where texts are looked
    up by key, as no key is asked for that is only theirs, and to find them out takes as long again
    as everything else here.
    """
    query, doc = F.col("query"), F.col("doc")
    readable = query.isNotNull() & doc.isNotNull() & F.is_valid_utf8(query) & F.is_valid_utf8(doc)
    return pairs.rows.where(readable).select(pair_key(query, doc).alias("pair_key"), query, doc)


def validate_rows(pairs: InputTable) -> DataFrame:
    """Every input row without its texts, as `valid` or `rejected`, each by itself.

    No row is compared with another, so that none has to move.

    Columns: query_id, doc_id, pair_key, retrieval_score, retrieval_rank, label, `in.*`,
    reason, detail, status.
    """
    status = F.when(F.isnotnull("pair_key"), VALID).otherwise(REJECTED)
    rows = with_pair_keys(pairs).drop("query", "doc").withColumn("status", status)
    ids = {name: F.make_valid_utf8(name) for name in ("query_id", "doc_id")}
    return rows.withColumns(ids)


def count_rows(rows: DataFrame) -> RowCounts:
    """Count rows of `validate_rows` or `compared`. Runs the plan."""
    # As many hashes as rows: no value is there twice. Fewer: one is, or, once in many runs, two
    # share a hash. Hashes are counted in a third of the time that keys take.
    fit = F.col("status") == VALID
    counted = rows.groupBy("status", "reason").agg(
        F.count(F.lit(1)).alias("rows"),
        F.count_distinct(F.when(fit, F.xxhash64("pair_key"))).alias("keys"),
        F.count_distinct(F.when(fit, F.xxhash64("query_id", "doc_id"))).alias("ids"),
        F.count_if(F.isnull("retrieval_rank") & F.isnotnull("retrieval_score")).alias(
            "without_rank"
        ),
    )
    found = {(row["status"], row["reason"]): row.asDict() for row in counted.collect()}
    nothing = dict.fromkeys(("rows", "keys", "ids", "without_rank"), 0)
    valid = found.get((VALID, None), nothing)
    distinct = valid["keys"]
    if distinct < valid["rows"]:
        distinct = rows.where(fit).select("pair_key").distinct().count()
    reasons = {reason: row["rows"] for (_, reason), row in found.items() if reason is not None}
    return RowCounts(
        valid=valid["rows"],
        collapsed=found.get((COLLAPSED, None), nothing)["rows"],
        rejected=sum(reasons.values()),
        distinct=distinct,  # a collapsed row has the key of the valid one that it equals
        without_rank=valid["without_rank"],
        reasons=reasons,
        may_have_duplicates=valid["ids"] < valid["rows"],
    )


def resolve_duplicates(rows: DataFrame) -> DataFrame:
    """Rows of `validate_rows`, those with the same (query_id, doc_id) compared.

    With the same texts they collapse to the best of them: lowest retrieval rank, highest retrieval
    score, then a hash of the rest, so that the choice does not depend on the order of the rows.
    With differing texts all of them are rejected.
    """
    rest = [quoted(name) for name in rows.columns if name.startswith((PASS_THROUGH, "label"))]
    twins = Window.partitionBy("query_id", "doc_id", F.isnull("pair_key"))
    best = twins.orderBy(
        F.asc_nulls_last("retrieval_rank"), F.desc_nulls_last("retrieval_score"),
        F.xxhash64(F.to_json(F.struct(*rest)) if rest else F.lit(0)),
    )  # fmt: skip
    fit = F.isnotnull("pair_key")
    beside = rows.withColumns(
        {
            _CONFLICT: fit & (F.min("pair_key").over(twins) != F.max("pair_key").over(twins)),
            _TWINS: F.count(F.lit(1)).over(twins),
            _PLACE: F.row_number().over(best),
        }
    )
    conflict = F.col(_CONFLICT)
    status = F.when(conflict, REJECTED).when(fit & (F.col(_PLACE) > 1), COLLAPSED)
    detail = F.format_string("%d rows with differing texts", _TWINS)
    return beside.withColumns(
        {
            "pair_key": F.when(~conflict, F.col("pair_key")),
            "status": F.coalesce(status, "status"),
            "reason": F.when(conflict, "conflicting_duplicate").otherwise(F.col("reason")),
            "detail": F.when(conflict, detail).otherwise(F.col("detail")),
        }
    ).select(*map(quoted, rows.columns))


def _reason() -> Column:
    """The first thing wrong with a row, or null. Ids and texts must show something and be UTF-8."""
    checks = [(F.col(READ_ERROR).isNotNull(), F.col(READ_ERROR))]
    checks += [(is_blank(F.col(name)), F.lit(f"missing_{name}")) for name in _TEXTS]
    checks += [(~F.is_valid_utf8(name), F.lit("invalid_utf8")) for name in _TEXTS]
    # Validity comes before blankness: a regular expression on broken bytes means nothing.
    checks = [checks[0], *checks[5:], *checks[1:5]]
    return reduce(
        lambda tail, check: F.when(check[0], check[1]).otherwise(tail),
        reversed(checks),
        F.lit(None).cast("string"),
    )


def _detail() -> Column:
    """Lengths of the four columns [bytes], never their content."""
    sizes = [
        F.format_string(
            f"{name}: %s", F.coalesce(F.octet_length(name).cast("string"), F.lit("null"))
        )
        for name in _TEXTS
    ]
    return F.concat(F.lit("bytes: "), F.concat_ws(", ", *sizes))
