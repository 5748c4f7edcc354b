"""Which rows can be scored: every row gets a pair key or a reason, and equal rows collapse.

The result holds no texts. It is written once, and counts, ranking and rejects are taken from
what was written, so that they agree whatever the input does meanwhile.
"""

from __future__ import annotations

from functools import reduce
from typing import Final

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.sources import FAULT, quoted
from jobs.tables import PASSED, Pairs
from jobs.texts import is_blank, pair_key

VALID: Final = "valid"
COLLAPSED: Final = "collapsed"
REJECTED: Final = "rejected"

_TEXTS: Final = ("query_id", "query", "doc_id", "doc")


def keyed(pairs: Pairs) -> DataFrame:
    """The rows with `pair_key` (null where `reason` is not), `chars`, `reason` and `detail`."""
    reason = _reason()
    rows = pairs.rows.withColumn("reason", reason)
    fit = F.isnull("reason")
    return rows.select(
        *(quoted(name) for name in rows.columns if name not in (FAULT, "reason")),
        F.when(fit, pair_key(F.col("query"), F.col("doc"))).alias("pair_key"),
        F.when(fit, F.length("query") + F.length("doc")).alias("chars"),
        "reason",
        F.when(~fit, _detail()).alias("detail"),
    )


def checked(pairs: Pairs) -> DataFrame:
    """Every input row without its texts, as `valid`, `collapsed` or `rejected`.

    Rows with the same (query_id, doc_id) and the same texts collapse to the best of them: lowest
    retrieval rank, highest retrieval score, then a hash of the rest, so that the choice does not
    depend on the order of the rows. With differing texts all of them are rejected.

    Columns: query_id, doc_id, pair_key, chars, retrieval_score, retrieval_rank, label, `in.*`,
    status, reason, detail.
    """
    rows = keyed(pairs).drop("query", "doc")
    rest = [quoted(name) for name in rows.columns if name.startswith((PASSED, "label"))]
    twins = Window.partitionBy("query_id", "doc_id", F.isnull("pair_key"))
    best = twins.orderBy(
        F.asc_nulls_last("retrieval_rank"), F.desc_nulls_last("retrieval_score"),
        F.xxhash64(F.to_json(F.struct(*rest)) if rest else F.lit(0)),
    )  # fmt: skip
    fit = F.isnotnull("pair_key")
    rows = rows.withColumns(
        {
            "__conflict": fit & (F.min("pair_key").over(twins) != F.max("pair_key").over(twins)),
            "__twins": F.count(F.lit(1)).over(twins),
            "__place": F.row_number().over(best),
        }
    )
    conflict = F.col("__conflict")
    status = (
        F.when(~fit | conflict, REJECTED).when(F.col("__place") > 1, COLLAPSED).otherwise(VALID)
    )
    return rows.select(
        *(F.make_valid_utf8(name).alias(name) for name in ("query_id", "doc_id")),
        F.when(~conflict, F.col("pair_key")).alias("pair_key"),
        *(quoted(n) for n in rows.columns if n.startswith((PASSED, "retrieval_", "label"))),
        "chars",
        status.alias("status"),
        F.when(conflict, "conflicting_duplicate").otherwise(F.col("reason")).alias("reason"),
        F.when(conflict, F.format_string("%d rows with differing texts", "__twins"))
        .otherwise(F.col("detail"))
        .alias("detail"),
    )


def _reason() -> Column:
    """The first thing wrong with a row, or null. Ids and texts must show something and be UTF-8."""
    checks = [(F.col(FAULT).isNotNull(), F.col(FAULT))]
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
