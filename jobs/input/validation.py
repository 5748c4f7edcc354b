"""Which rows are ranked, which are rejected, and how many there are.

The result holds no texts. It is written, again where ids repeat, and counts, ranking and rejects
are taken from what was written, so that they agree whatever the input does meanwhile.
"""

from dataclasses import dataclass
from typing import Final

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from jobs.input.columns import quoted
from jobs.input.layouts import PASS_THROUGH, InputTable
from jobs.input.readers import INTERNAL_PREFIX
from jobs.output.folder import WHOLE_TIMES, OutputFolder
from jobs.runtime.compat import make_valid_utf8
from jobs.runtime.errors import RefusedError

VALID: Final = "valid"
COLLAPSED: Final = "collapsed"
REJECTED: Final = "rejected"

_CONTENT: Final = f"{INTERNAL_PREFIX}content"
_ROWS: Final = f"{INTERNAL_PREFIX}rows"
_COPY: Final = f"{INTERNAL_PREFIX}copy"
_JSON: Final = {"ignoreNullFields": "false", **WHOLE_TIMES}


@dataclass(frozen=True)
class ValidatedInput:
    """Input rows without their texts, and how many there are of each kind.

    Attributes:
        rows: query_id, doc_id, pair_key, retrieval_score, retrieval_rank, label, `in.*`, reason,
            detail, status.
        table: the input.
        counts: rows that are `valid` (to be ranked), `collapsed` (equal to a valid one in every
            column), `rejected`, and all of them (`input`); `distinct` pair keys of valid rows.
        derive_ranks: whether a valid row has a retrieval score and no rank.
        repeated: whether a document may be more than once in a list of candidates.
    """

    rows: DataFrame
    table: InputTable
    counts: dict[str, int]
    derive_ranks: bool
    repeated: bool

    @property
    def valid(self) -> DataFrame:
        """Rows to be ranked."""
        return self.rows.where(F.col("status") == VALID).drop("status", "reason", "detail")


def validate(table: InputTable, out: OutputFolder | None = None) -> ValidatedInput:
    """Validate every row and count them; None as `out` computes them without a write.

    Rows are compared with each other, which takes a shuffle and a sort, only if ids repeat.

    Raises:
        RefusedError: an input without rows, or a column of labels without a number.
    """

    def counted(name: str, rows: DataFrame) -> ValidatedInput:
        return count_rows(out.stage(name, rows, "parquet") if out else rows, table)

    found = counted("validated", validate_rows(table))
    if not found.repeated:
        return found
    return counted("resolved", resolve_duplicates(found.rows, table))


def validate_rows(table: InputTable) -> DataFrame:
    """Return every input row as `ValidatedInput.rows`, each looked at by itself."""
    status = F.when(F.isnotnull("pair_key"), VALID).otherwise(REJECTED)
    readable = {name: make_valid_utf8(name) for name in ("query_id", "doc_id")}
    return table.rows.drop("query", "doc").withColumns({**readable, "status": status})


def count_rows(rows: DataFrame, table: InputTable) -> ValidatedInput:
    """Count validated rows. Runs the plan.

    Raises:
        RefusedError: an input without rows, or a column of labels without a number.
    """
    # As many hashes as rows: no value is there twice. Fewer: one is, or, once in many runs, two
    # share a hash. Hashes are counted in a third of the time that keys take.
    fit, label = F.col("status") == VALID, table.config.label
    ids = F.xxhash64(*table.list_columns, "doc_id")
    no_number = (F.col("reason") == "unreadable_number") & F.startswith(
        "detail", F.lit(f"column {label}")
    )
    found = rows.groupBy("status").agg(
        F.count(F.lit(1)).alias("rows"),
        F.count_distinct(F.when(fit, F.xxhash64("pair_key"))).alias("keys"),
        F.count_distinct(F.when(fit, ids)).alias("ids"),
        F.count_if(F.isnull("retrieval_rank") & F.isnotnull("retrieval_score")).alias("unranked"),
        F.count("label").alias("labels"),
        F.count_if(no_number).alias("no_numbers"),
    ).toPandas().set_index("status")  # fmt: skip
    found = found.reindex([VALID, COLLAPSED, REJECTED], fill_value=0)
    counts = {str(status): int(number) for status, number in found["rows"].items()}
    valid, all_rows = found.loc[VALID], found.sum()
    if not all_rows["rows"] and not table.config.allow_empty:
        raise RefusedError(
            "the input has no rows; check its path, or set input.allow_empty=true to accept that"
        )
    if all_rows["no_numbers"] and not all_rows["labels"]:
        raise RefusedError(
            f"column {label} has no numbers ({all_rows['no_numbers']} values are none); set "
            "input.label_map to their grades, such as {good: 1, bad: 0}, cast the column, or set "
            "input.label to '' to go without labels"
        )
    distinct = int(valid["keys"])
    if distinct < counts[VALID]:  # a collapsed row has the key of the valid one that it equals
        distinct = rows.where(fit).select("pair_key").distinct().count()
    return ValidatedInput(
        rows,
        table,
        {"input": int(all_rows["rows"]), **counts, "distinct": distinct},
        derive_ranks=bool(valid["unranked"] > 0),
        repeated=bool(valid["ids"] < valid["rows"]),
    )


def content_hash(rows: DataFrame) -> Column:
    """Return a SHA-256 of everything that is known of an impression, except ids and texts."""
    known = ("retrieval_score", "retrieval_rank", "label")
    columns = [name for name in rows.columns if name in known or name.startswith(PASS_THROUGH)]
    return F.sha2(F.to_json(F.struct(*map(quoted, sorted(columns))), _JSON), 256)


def resolve_duplicates(rows: DataFrame, table: InputTable) -> DataFrame:
    """Compare valid rows with the same document in the same list.

    Rows that are equal in every column collapse to one of them. All rows of a document whose texts
    differ are rejected as `conflicting_duplicate`, and those whose labels differ as
    `conflicting_label`; a null label differs from none. Other rows are impressions and stay.
    """
    ids = [*table.list_columns, F.col("doc_id")]
    same_ids = Window.partitionBy(*ids)
    copies = Window.partitionBy(*ids, "pair_key", _CONTENT).orderBy(_CONTENT)
    differ = {name: F.min(name).over(same_ids) != F.max(name).over(same_ids)
              for name in ("pair_key", "label")}  # fmt: skip
    conflict = F.isnotnull("reason")
    what = F.when(F.col("reason") == "conflicting_label", "labels").otherwise("texts")
    resolved = (
        rows.where(F.isnotnull("pair_key"))
        .withColumn(_CONTENT, content_hash(rows))
        .withColumns(
            {
                "reason": F.when(differ["pair_key"], "conflicting_duplicate").when(
                    differ["label"], "conflicting_label"
                ),
                _ROWS: F.count(F.lit(1)).over(same_ids),
                _COPY: F.row_number().over(copies),
            }
        )
        .withColumns(
            {
                "status": F.when(conflict, REJECTED)
                .when(F.col(_COPY) > 1, COLLAPSED)
                .otherwise(VALID),
                "detail": F.when(
                    conflict, F.format_string("%d rows with differing %s", _ROWS, what)
                ),
                "pair_key": F.when(~conflict, F.col("pair_key")),
            }
        )
        .select(*map(quoted, rows.columns))
    )
    return resolved.unionByName(rows.where(F.isnull("pair_key")))
