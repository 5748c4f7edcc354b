"""The score store: a grow-only set of scores, keyed by fingerprint and pair.

    STORE/fingerprint=3f.../attempt=9c.../part-00003-....parquet

Any subset of its files is a valid state. Each attempt writes into a folder of its own with
task-level commit, so a job that dies leaves the tasks it finished, whole and readable, and the
next one scores what is not there yet. Two drivers at once do no harm: equal keys carry equal
scores and collapse when read.
"""

from __future__ import annotations

import uuid
from typing import Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import (
    BooleanType,
    FloatType,
    IntegerType,
    StringType,
    StructField,
    StructType,
)

from jobs.files import Files
from udfs.scorer import OK

SCHEMA: Final = StructType(
    [
        StructField("pair_key", StringType()),
        StructField("logit", FloatType()),
        StructField("n_tokens", IntegerType()),
        StructField("n_padded", IntegerType()),
        StructField("truncated", BooleanType()),
        StructField("device_ms", FloatType()),
        StructField("status", StringType()),
    ]
)
# Publishes a task's file when the task ends and not when the job does. Unsafe for a table that
# has to be whole; right for a set that may lack members (SPARK-29037 tells what the default does
# to a driver that dies half-way).
_TASK_COMMIT: Final = {"mapreduce.fileoutputcommitter.algorithm.version": "2"}


def is_new(spark: SparkSession, path: str) -> bool:
    """Whether there are no scores of any fingerprint."""
    return not Files(spark).children(path)


class ScoreStore:
    """Scores of one fingerprint."""

    def __init__(self, spark: SparkSession, path: str, fingerprint: str) -> None:
        """Nothing is read or written yet."""
        self._spark = spark
        self._files = Files(spark)
        self.folder = f"{path}/fingerprint={fingerprint}"

    def read(self) -> DataFrame:
        """One row per pair key, `SCHEMA`; an `ok` score wins over a failed one.

        Of several scores for a key (two drivers at once) the attempt with the smallest name
        wins, so every reader sees the same.
        """
        attempts = self._attempts()
        if not attempts:
            return self._spark.createDataFrame([], SCHEMA)
        rows = self._spark.read.schema(SCHEMA).parquet(*attempts)
        name = F.regexp_extract(F.input_file_name(), r"attempt=(\w+)", 1)
        rows = rows.withColumn("attempt", name)
        values = F.struct(*(F.col(field) for field in SCHEMA.names[1:]))
        order = F.struct(F.col("status") != OK, "attempt")
        best = rows.groupBy("pair_key").agg(F.min_by(values, order).alias("score"))
        return best.select("pair_key", "score.*")

    def is_empty(self) -> bool:
        """Whether nothing was ever finished under this fingerprint."""
        return not self._attempts()

    def held(self) -> DataFrame:
        """Keys that need no scoring: `pair_key`."""
        return self.read().where(F.col("status") == OK).select("pair_key")

    def append(self, scores: DataFrame) -> str:
        """Run the scoring plan and keep every task's result as it ends.

        Returns:
            The attempt's folder.
        """
        attempt = f"{self.folder}/attempt={uuid.uuid4().hex}"
        names = [F.col(field.name).cast(field.dataType) for field in SCHEMA.fields]
        scores.select(*names).write.options(**_TASK_COMMIT).parquet(attempt)
        return attempt

    def _attempts(self) -> list[str]:
        """Folders with at least one finished file."""
        folders = (f"{self.folder}/{name}" for name in self._files.children(self.folder))
        return [
            folder for folder in folders
            if any(name.endswith(".parquet") for name in self._files.children(folder))
        ]  # fmt: skip
