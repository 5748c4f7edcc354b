"""Rows with equal ids: impressions of one pair, equal rows, or rows that contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.input.columns import quoted
from jobs.input.layouts import PASS_THROUGH
from jobs.input.readers import INTERNAL_PREFIX

VALID: Final = "valid"
COLLAPSED: Final = "collapsed"
REJECTED: Final = "rejected"

_CONTENT: Final = f"{INTERNAL_PREFIX}content"
_ROWS: Final = f"{INTERNAL_PREFIX}rows"
_COPY: Final = f"{INTERNAL_PREFIX}copy"
# Whole values: by default microseconds are cut off, and nulls left out.
_JSON: Final = {
    "ignoreNullFields": "false",
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
}


def content_hash(rows: DataFrame) -> Column:
    """Return a SHA-256 of everything that is known of an impression, except ids and texts."""
    known = ("retrieval_score", "retrieval_rank", "label")
    columns = [name for name in rows.columns if name in known or name.startswith(PASS_THROUGH)]
    return F.sha2(F.to_json(F.struct(*map(quoted, sorted(columns))), _JSON), 256)


def resolve_duplicates(rows: DataFrame, group: Sequence[str]) -> DataFrame:
    """Compare valid rows with the same document in the same list, (group, query_id).

    Rows that are equal in every column collapse to one of them. All rows of a document whose texts
    differ are rejected as `conflicting_duplicate`, and those whose labels differ as
    `conflicting_label`; a null label differs from none. Other rows are impressions and stay.

    Args:
        rows: of `jobs.input.validation.ValidatedInput`.
        group: their columns that, with query_id, make a list.
    """
    ids = [*map(quoted, group), F.col("query_id"), F.col("doc_id")]
    same_ids = Window.partitionBy(*ids)
    copies = Window.partitionBy(*ids, "pair_key", _CONTENT).orderBy(_CONTENT)
    valid = rows.where(F.isnotnull("pair_key")).withColumn(_CONTENT, content_hash(rows))
    differ = {name: F.min(name).over(same_ids) != F.max(name).over(same_ids)
              for name in ("pair_key", "label")}  # fmt: skip
    compared = valid.withColumns(
        {
            "reason": F.when(differ["pair_key"], "conflicting_duplicate").when(
                differ["label"], "conflicting_label"
            ),
            _ROWS: F.count(F.lit(1)).over(same_ids),
            _COPY: F.row_number().over(copies),
        }
    )
    conflict = F.isnotnull("reason")
    what = F.when(F.col("reason") == "conflicting_label", "labels").otherwise("texts")
    detail = F.format_string("%d rows with differing %s", _ROWS, what)
    status = F.when(conflict, REJECTED).when(F.col(_COPY) > 1, COLLAPSED).otherwise(VALID)
    resolved = compared.withColumns(
        {
            "status": status,
            "detail": F.when(conflict, detail),
            "pair_key": F.when(~conflict, F.col("pair_key")),
        }
    ).select(*map(quoted, rows.columns))
    return resolved.unionByName(rows.where(F.isnull("pair_key")))
