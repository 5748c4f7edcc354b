"""Read ranked tables: those of `jobs.rerank`, or anybody's with the same columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.input.columns import quoted
from jobs.input.readers import READ_ERROR, read_source
from jobs.output.filesystem import Files
from jobs.runtime.errors import RefusedError
from jobs.runtime.redaction import masked

_NEEDED: Final = ("query_id", "doc_id", "score")
# Columns that may be missing, and what they are then.
_OPTIONAL: Final = {
    "retrieval_score": "double",
    "retrieval_rank": "int",
    "n_tokens": "int",
    "truncated": "boolean",
}


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
            name, path = _short(given), given
        if name in found:
            raise RefusedError(
                f"ranked.path: two tables are named {name}; write NAME=PATH to tell them apart"
            )
        found[name] = path
    return found


def read_ranked(
    spark: SparkSession, path: str, slices: Sequence[str], *, output_format: str = "auto"
) -> DataFrame:
    """The columns of a ranked table that an evaluation needs.

    Returns:
        query_id and doc_id (string), score (float), retrieval_score, retrieval_rank, n_tokens,
        truncated (null where the table lacks them), label if there is one, and the slices.

    Raises:
        RefusedError: naming missing and present columns.
    """
    table = read_source(spark, path=path, source_format=output_format, otherwise="parquet")
    present = [name for name in table.columns if name != READ_ERROR]
    missing = [name for name in (*_NEEDED, *slices) if name not in present]
    if missing:
        raise RefusedError(
            f"ranked table {path} lacks {', '.join(missing)}; the columns present are "
            f"{', '.join(present)}"
        )
    optional = [
        quoted(name).cast(kind).alias(name)
        if name in present
        else F.lit(None).cast(kind).alias(name)
        for name, kind in _OPTIONAL.items()
    ]
    taken = {*_NEEDED, *_OPTIONAL, "label"}
    return table.select(
        F.col("query_id").cast("string").alias("query_id"),
        F.col("doc_id").cast("string").alias("doc_id"),
        F.col("score").cast("float").alias("score"),
        *optional,
        *(["label"] if "label" in present else []),
        *(quoted(name) for name in slices if name not in taken),
    )


def record_beside(spark: SparkSession, path: str) -> dict[str, Any] | None:
    """The `run.json` of the run that wrote a ranked table, None where there is none."""
    files = Files(spark)
    try:
        found = json.loads(
            files.read_text(f"{path.rstrip('/').rpartition('/')[0] or '.'}/run.json")
        )
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _short(path: str) -> str:
    parts = [part for part in masked(path).rstrip("/").split("/") if part and part != "ranked"]
    return parts[-1] if parts else path
