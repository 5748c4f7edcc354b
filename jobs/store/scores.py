"""Read and append the scores of one fingerprint."""

import json
import re
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from jobs.output.filesystem import Files, literal
from jobs.runtime.redaction import masked
from udfs.scorers.base import OK

# In a merged file: the attempt that a score came from, so that merging changes no reader's choice.
ORIGIN: Final = "origin"
ABOUT: Final = "_about.json"
ATTEMPT: Final = "attempt="
CORRUPT: Final = "_corrupt"
FINGERPRINT: Final = "fingerprint="
SCHEMA: Final = (
    StructType().add("pair_key", "string").add("logit", "float").add("n_tokens", "integer")
    .add("n_padded", "integer").add("truncated", "boolean").add("device_ms", "float")
    .add("status", "string")
)  # fmt: skip
#: With passages also these; null where there are none.
PASSAGES: Final = (
    StructType().add("n_passages", "integer").add("passage_start", "integer")
    .add("passage_end", "integer").add("first_logit", "float")
)  # fmt: skip
_FILES: Final = StructType([*SCHEMA.fields, *PASSAGES.fields]).add(ORIGIN, "string")
_CANCELLED: Final = re.compile(r"SPARK_JOB_CANCELLED|Job \d+ (was )?cancelled")
READ_ERRORS: Final = (PySparkException, Py4JJavaError)
# Parquet keeps a checksum of each page, which readers ignore unless told otherwise.
_READ: Final = {"parquet.page.verify-checksum.enabled": "true", "pathGlobFilter": "*.parquet"}
_WRITE: Final = {
    "parquet.page.write-checksum.enabled": "true",
    # Publishes a task's file when the task ends and not when the job does. Unsafe for a table that
    # has to be whole; right for a set that may lack members (SPARK-29037 tells what the default
    # does to a driver that dies half-way).
    "mapreduce.fileoutputcommitter.algorithm.version": "2",
}
# Databricks has a protocol of its own, which publishes nothing before the job ends.
_PROTOCOL: Final = "spark.sql.sources.commitProtocolClass"
_HADOOPS: Final = "org.apache.spark.sql.execution.datasources.SQLHadoopMapReduceCommitProtocol"


def read_files(spark: SparkSession, paths: Sequence[str], **options: str) -> DataFrame:
    """Return all rows of files: `SCHEMA`, `PASSAGES` and `ORIGIN`, the attempt of each row."""
    rows = spark.read.options(**_READ, **options).schema(_FILES).parquet(*map(literal, paths))
    attempt = F.regexp_extract(F.input_file_name(), rf"{ATTEMPT}(\w+)", 1)
    return rows.withColumn(ORIGIN, F.coalesce(ORIGIN, attempt))


def verified(rows: DataFrame) -> DataFrame:
    """Return the same rows, reading every column, and fail where a row is not a score."""
    columns = [name for name in rows.columns if name != ORIGIN]
    every_column = F.xxhash64(*columns) != F.lit(0)  # true, in all but one of 2^64 cases
    fail = F.raise_error(F.lit("a row of the score store is not a score")).cast("boolean")
    return rows.where(F.when(_is_score(), every_column).otherwise(fail))


def _is_score() -> Column:
    """Whether a row is a score; the columns are null where another table's file is read."""
    finite = F.abs("logit") < F.lit(float("inf"))  # NaN is above all numbers
    fit = (F.length("pair_key") == 64) & F.when(F.col("status") == OK, finite).otherwise(
        F.isnotnull("status")
    )
    return F.coalesce(fit, F.lit(False))


def deduplicated(rows: DataFrame) -> DataFrame:
    """Return one row per pair key: an `ok` score before a failed one, then the first origin.

    Of several scores for a key (two drivers at once) every reader takes the same one.
    """
    values = F.struct(*(name for name in rows.columns if name != "pair_key"))
    order = F.struct(F.col("status") != OK, ORIGIN)
    best = rows.groupBy("pair_key").agg(F.min_by(values, order).alias("score"))
    return best.select("pair_key", "score.*")


def damaged(spark: SparkSession, files: Mapping[str, int]) -> list[str]:
    """Return the paths of files that are not scores, found by halving. `files`: sizes by path."""
    empty = [path for path, size in files.items() if not size]  # Spark skips them
    return empty + _unreadable(spark, [path for path, size in files.items() if size])


def _unreadable(spark: SparkSession, paths: list[str]) -> list[str]:
    try:
        if paths:
            verified(read_files(spark, paths)).agg(F.count(F.lit(1))).collect()
    except READ_ERRORS as error:
        _refuse_cancelled(error)
        if len(paths) == 1:
            return paths if _is_at_fault(spark, paths[0]) else []
        half = len(paths) // 2
        return _unreadable(spark, paths[:half]) + _unreadable(spark, paths[half:])
    return []


def _refuse_cancelled(error: Exception) -> None:
    """Raise the error of a job that was cancelled (by a signal): it tells nothing of files."""
    if _CANCELLED.search(str(error)):
        raise error


def _is_at_fault(spark: SparkSession, path: str) -> bool:
    """Whether an unreadable file itself is wrong, and not the way to it.

    Its bytes arrive, or a checksum of the file system says that they are wrong. Otherwise the
    storage or the cluster fails, and the file may be whole.
    """
    try:
        content = spark.read.format("binaryFile").load(literal(path)).select(F.length("content"))
        return bool(content.collect())
    except READ_ERRORS as error:
        return "ChecksumException" in str(error)


@contextmanager
def quiet(spark: SparkSession) -> Iterator[None]:
    """Keep Spark's Java stacks of failed tasks off the terminal: the caller reports failures."""
    jvm: Any = spark._jvm
    level = jvm.org.apache.logging.log4j.LogManager.getRootLogger().getLevel().name()
    spark.sparkContext.setLogLevel("OFF")
    try:
        yield
    finally:
        spark.sparkContext.setLogLevel(level)


class ScoreStore:
    """Scores of one fingerprint."""

    def __init__(
        self, spark: SparkSession, path: str, fingerprint: str, *, passages: bool = False
    ) -> None:
        """Read and write nothing yet. `passages`: whether scores have the columns `PASSAGES`."""
        self._spark = spark
        self._files = Files(spark)
        self._passages = PASSAGES.fields if passages else []
        self.folder = f"{path}/{FINGERPRINT}{fingerprint}"

    def open(self, about: Mapping[str, Any]) -> None:
        """Write down what these scores are of (no secret), and that they are in use now.

        Each run writes the same text again, whole: two at once do no harm, and the time of the
        file is when the fingerprint was last used.
        """
        text = json.dumps(about, indent=2, ensure_ascii=False, sort_keys=True)
        self._files.write_text(f"{self.folder}/{ABOUT}", text + "\n")

    def read(self) -> DataFrame:
        """Return one row per pair key, `SCHEMA`, with passages also `PASSAGES`."""
        return deduplicated(self._rows()).drop(ORIGIN)

    def missing(
        self, keys: DataFrame, count: int, *, dry_run: bool = False
    ) -> tuple[DataFrame, int]:
        """Return the keys that have no score yet, and how many they are.

        This is the first read of a run: it reads every column and verifies the checksum of every
        page. If it fails, damaged files are set aside (in a dry run skipped) and it is done again;
        their pairs are then among the missing. `keys`: `count` distinct ones, `pair_key`.
        """
        if not self._parts():
            return keys, count
        if dry_run:
            return _without_score(keys, self._rows(ignoreCorruptFiles="true").where(_is_score()))
        with quiet(self._spark):
            try:
                self._set_aside([path for path, size in self._parts().items() if not size])
                return _without_score(keys, verified(self._rows()))
            except READ_ERRORS as error:
                _refuse_cancelled(error)
                self._set_aside(damaged(self._spark, self._parts()))
            # Where nothing was damaged, another driver may have set the file aside.
            return _without_score(keys, verified(self._rows()))

    def append(self, scores: DataFrame) -> str:
        """Run the scoring plan, keep every task's result as it ends, and return the folder."""
        attempt = f"{self.folder}/{ATTEMPT}{uuid.uuid4().hex}"
        fields = [*SCHEMA.fields, *self._passages]
        names = [F.col(field.name).cast(field.dataType) for field in fields]
        conf = self._spark.conf
        former = conf.get(_PROTOCOL, None)
        conf.set(_PROTOCOL, _HADOOPS)
        try:
            scores.select(*names).write.options(**_WRITE).parquet(attempt)
        finally:
            conf.unset(_PROTOCOL)
            if former:
                conf.set(_PROTOCOL, former)
        return attempt

    def _set_aside(self, paths: Sequence[str]) -> None:
        """Move damaged files to `_corrupt`, which no reader looks into, and name them."""
        aside = f"{self.folder}/{CORRUPT}"
        for path in paths:
            try:
                self._files.rename(path, f"{aside}/{'-'.join(path.split('/')[-2:])}")
            except (OSError, Py4JJavaError):
                if self._files.exists(path):  # not moved by another driver either
                    raise
            sys.stderr.write(
                f"{masked(path)} is damaged; it is set aside in {CORRUPT}, and its pairs are "
                "scored again\n"
            )

    def _rows(self, **options: str) -> DataFrame:
        attempts = sorted({path.rpartition("/")[0] for path in self._parts()})
        if not attempts:
            return self._spark.createDataFrame([], _FILES)
        rows = read_files(self._spark, attempts, **options)
        return rows if self._passages else rows.drop(*PASSAGES.names)

    def _parts(self) -> dict[str, int]:
        """Return the finished files of all attempts: sizes [bytes] by path."""
        return {
            file.path: file.size
            for attempt in self._files.entries(self.folder)
            if attempt.name.startswith(ATTEMPT)
            for file in self._files.entries(attempt.path)
            if file.name.endswith(".parquet")
        }


def _without_score(keys: DataFrame, rows: DataFrame) -> tuple[DataFrame, int]:
    held = deduplicated(rows).where(F.col("status") == OK).select("pair_key")
    missing = keys.join(held, on="pair_key", how="left_anti")
    return missing, missing.count()
