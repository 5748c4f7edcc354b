"""Whether every score can be read, is a score, and agrees with the others of its pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from jobs.store.inventory import Fingerprint
from jobs.store.scores import SCHEMA, read_files
from udfs.scores import OK

_SHOWN: Final = 5  # keys named in a finding
# Parquet keeps a checksum of each page, which readers ignore unless told otherwise.
_STRICT: Final = {"parquet.page.verify-checksum.enabled": "true"}


@dataclass(frozen=True)
class Health:
    """What was found out about a fingerprint.

    Attributes:
        pairs: distinct pairs with a score.
        repeated: pairs with more than one score; no harm where they agree.
        largest_difference: between two scores of one pair [logit].
        findings: what is wrong, a sentence each.
    """

    pairs: int
    repeated: int
    largest_difference: float
    findings: tuple[str, ...]


def examine(spark: SparkSession, fingerprint: Fingerprint, *, tolerance: float) -> Health:
    """Read every column of every file.

    Args:
        spark: the session.
        fingerprint: what to read.
        tolerance: how far two scores of one pair may differ [logit].
    """
    paths = [entry.path for entry in fingerprint.files]
    broken = unreadable(spark, paths)
    findings = [f"{path} cannot be read; delete it, and its pairs are scored again"
                for path in broken]  # fmt: skip
    whole = [path for path in paths if path not in set(broken)]
    if not whole:
        return Health(0, 0, 0.0, tuple(findings))
    rows = read_files(spark, whole)
    findings += _no_scores(rows)
    scores = rows.where(F.col("status") == OK).groupBy("pair_key")
    spread = scores.agg(
        F.count(F.lit(1)).alias("times"),
        (F.max("logit").cast("double") - F.min("logit").cast("double")).alias("difference"),
    )
    conflict = F.col("difference") > tolerance
    found = spread.agg(
        F.count(F.lit(1)).alias("pairs"),
        F.count_if(F.col("times") > 1).alias("repeated"),
        F.max("difference").alias("largest"),
        F.count_if(conflict).alias("conflicts"),
    ).collect()[0]
    if found["conflicts"]:
        keys = spread.where(conflict).orderBy("pair_key").limit(_SHOWN).collect()
        findings.append(
            f"{found['conflicts']} pairs have scores that differ by more than store.tolerance="
            f"{tolerance:g}, the most by {found['largest']:.4g}, for example pair_key "
            f"{', '.join(row['pair_key'][:12] for row in keys)}; delete one of their attempts"
        )
    return Health(found["pairs"], found["repeated"], found["largest"] or 0.0, tuple(findings))


def unreadable(spark: SparkSession, paths: list[str]) -> list[str]:
    """Files that Spark cannot read to the end with the store's schema, found by halving."""
    if not paths or _reads(spark, paths):
        return []
    if len(paths) == 1:
        return paths
    half = len(paths) // 2
    return unreadable(spark, paths[:half]) + unreadable(spark, paths[half:])


def _reads(spark: SparkSession, paths: list[str]) -> bool:
    try:
        rows = spark.read.options(**_STRICT).schema(SCHEMA).parquet(*paths)
        # A hash of all columns, so that all of them are read.
        rows.agg(F.sum(F.xxhash64(*SCHEMA.names).bitwiseAND(F.lit(1)))).collect()
    except (PySparkException, Py4JJavaError):
        return False
    return True


def _no_scores(rows: DataFrame) -> list[str]:
    """Files with rows that are no scores: columns of another table, or a bug."""
    key = F.coalesce(F.col("pair_key").rlike("^[0-9a-f]{64}$"), F.lit(False))
    finite = F.coalesce(~F.isnan("logit") & (F.abs("logit") < F.lit(float("inf"))), F.lit(False))
    right = key & F.isnotnull("status") & ((F.col("status") != OK) | finite)
    counted = rows.groupBy(F.input_file_name().alias("file")).agg(
        F.count(F.lit(1)).alias("rows"), F.count_if(~right).alias("wrong")
    )
    return [
        f"{row['file']}: {row['wrong']} of {row['rows']} rows are no scores; delete the file"
        for row in counted.where(F.col("wrong") > 0).orderBy("file").collect()
    ]
