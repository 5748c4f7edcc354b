"""Read ranked tables: those of `jobs.rerank`, or anybody's with the same columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.fuse.fusion import FUSED
from jobs.input.columns import as_kind, id_text, quoted
from jobs.input.readers import READ_ERROR, read_source
from jobs.output.filesystem import Files
from jobs.output.folder import published_record
from jobs.output.names import RANKED
from jobs.runtime.errors import RefusedError
from jobs.runtime.redaction import masked

# Beside query_id and doc_id; all but the score may be missing.
_COLUMNS: Final = {
    "score": "float", "retrieval_score": "double", "retrieval_rank": "int", "n_tokens": "int",
    "truncated": "boolean",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Candidates under a name.

    Attributes:
        candidates: query_id and doc_id (string), score (float, what ranks), retrieval_score,
            retrieval_rank, n_tokens, truncated (null where unknown), label if there is one,
            `group`, slices.
        group: columns that make a list together with query_id.
        record: `run.json` of the run that scored them, None if unknown.
        texts: query_id, doc_id, query, doc; None if no example is to be shown.
    """

    name: str
    candidates: DataFrame
    group: tuple[str, ...] = ()
    record: Mapping[str, Any] | None = None
    texts: DataFrame | None = None

    @property
    def own(self) -> bool:
        """Whether a run of this project made it: a pair may then come twice, as impressions."""
        return self.record is not None


def named(paths: Sequence[str]) -> dict[str, str]:
    """`NAME=PATH` or `PATH` -> path by name; a path alone is named by its last folders.

    Raises:
        RefusedError: if two tables have one name.
    """
    found: dict[str, str] = {}
    for given in paths:
        name, sign, path = given.partition("=")
        if not sign or "/" in name:
            # Not a name, but a folder such as day=1.
            parts = [part for part in masked(given).split("/") if part not in ("", "ranked")]
            name, path = parts[-1] if parts else given, given
        if name in found:
            raise RefusedError(
                f"ranked.path: two tables are named {name}; write NAME=PATH to tell them apart"
            )
        found[name] = path
    return found


def read_ranked(
    spark: SparkSession, name: str, path: str, slices: Sequence[str] = (), group: Sequence[str] = ()
) -> Table:
    """Read the columns of a ranked table that an evaluation needs, and the record beside it.

    `slices` are columns to split the result by, `group` those that make a list; empty: those of the
    run that wrote the table.

    Raises:
        RefusedError: naming missing and present columns.
    """
    above, parts = _partitions(path.rstrip("/"))
    beside = published_record(Files(spark), above or ".")
    record = beside if beside and beside["kind"] in ("rerank", "fuse") else None
    group = tuple(group or setting_of(record, "input", "group") or ())
    expected = ("query_id", "doc_id", "score")
    table = read_source(spark, path=path, otherwise="parquet", expected=expected)
    for column, value in parts.items():
        if column not in table.columns:
            table = table.withColumn(column, F.lit(value))
    present = [column for column in table.columns if column != READ_ERROR]
    needed = (*expected, *group, *slices)
    fused = FUSED in present and (record is None or is_fused(record))
    if missing := [column for column in needed if column not in present]:
        raise RefusedError(
            f"ranked table {path} lacks {', '.join(missing)}; the columns present are "
            f"{', '.join(present)}"
        )
    columns = {column: id_text(table, column) for column in ("query_id", "doc_id")}
    for column, kind in _COLUMNS.items():
        source = FUSED if fused and column == "score" else column
        columns[column] = as_kind(quoted(source) if source in present else F.lit(None), kind)
    # Grades made of the scores judge nothing.
    made = setting_of(record, "label", "thresholds") and setting_of(record, "label", "column")
    for column in (*(["label"] if made != "label" else []), *group, *slices):
        if column in present:
            columns.setdefault(column, quoted(column))
    rows = table.select(*(value.alias(column) for column, value in columns.items()))
    return Table(name, rows, group, record)


def _partitions(path: str) -> tuple[str, dict[str, str]]:
    """Return the folder above a ranked table, and the values that lead to a partition of it."""
    at, parts = path, list[str]()
    while "=" in at.rpartition("/")[2]:
        at, _, part = at.rpartition("/")
        parts.insert(0, part)
    if at.rpartition("/")[2] != RANKED:  # not one of this project
        at, parts = path, []
    values = dict(part.split("=", 1) for part in parts)
    return at.rpartition("/")[0], {unquote(name): unquote(text) for name, text in values.items()}


def refuse_other_lists(table: Table, other: Table) -> None:
    """Refuse a table whose lists are made by other columns than another one's."""
    if table.group != other.group:
        lists = [f"({', '.join((*each.group, 'query_id'))})" for each in (table, other)]
        raise RefusedError(
            f"a list of {table.name} is {lists[0]}, of {other.name} {lists[1]}; set input.group"
        )


def is_fused(record: Mapping[str, Any] | None) -> bool:
    """Return whether what a run ranked by are fused scores, and not logits."""
    return setting_of(record, "ranking", "fusion") not in (None, "none")


def setting_of(record: Mapping[str, Any] | None, section: str, key: str) -> Any:
    """Return a setting of the run that wrote a record, None if unknown."""
    return (((record or {}).get("config") or {}).get(section) or {}).get(key)
