"""Reading and appending scores of one fingerprint."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

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

from jobs.output.filesystem import Files
from udfs.scores import OK

# Of a merged file: the attempt a score came from, so that merging changes no reader's choice.
ORIGIN: Final = "origin"
ABOUT: Final = "_about.json"
ATTEMPT: Final = "attempt="
FINGERPRINT: Final = "fingerprint="
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
_FILES: Final = StructType([*SCHEMA.fields, StructField(ORIGIN, StringType())])
# Publishes a task's file when the task ends and not when the job does. Unsafe for a table that
# has to be whole; right for a set that may lack members (SPARK-29037 tells what the default does
# to a driver that dies half-way).
_TASK_COMMIT: Final = {"mapreduce.fileoutputcommitter.algorithm.version": "2"}


def is_new(spark: SparkSession, path: str) -> bool:
    """Whether there are no scores of any fingerprint."""
    return not Files(spark).children(path)


def read_files(spark: SparkSession, paths: Sequence[str]) -> DataFrame:
    """All rows of files or attempts, `SCHEMA` and `ORIGIN`: the attempt each row came from."""
    attempt = F.regexp_extract(F.input_file_name(), rf"{ATTEMPT}(\w+)", 1)
    rows = spark.read.schema(_FILES).parquet(*paths)
    return rows.withColumn(ORIGIN, F.coalesce(ORIGIN, attempt))


def collapsed(rows: DataFrame) -> DataFrame:
    """One row per pair key; an `ok` score wins over a failed one, then the first origin wins.

    Of several scores for a key (two drivers at once) every reader takes the same one.
    """
    values = F.struct(*(F.col(field) for field in (*SCHEMA.names[1:], ORIGIN)))
    order = F.struct(F.col("status") != OK, ORIGIN)
    best = rows.groupBy("pair_key").agg(F.min_by(values, order).alias("score"))
    return best.select("pair_key", "score.*")


def count_pairs(spark: SparkSession, paths: Sequence[str]) -> dict[str, int]:
    """Distinct pairs by fingerprint; files that cannot be read are passed over."""
    if not paths:
        return {}
    fingerprint = F.regexp_extract(F.input_file_name(), rf"{FINGERPRINT}(\w+)", 1)
    rows = spark.read.option("ignoreCorruptFiles", "true").schema(SCHEMA).parquet(*paths)
    counted = rows.groupBy(fingerprint).agg(F.count_distinct("pair_key")).collect()
    return {str(row[0]): int(row[1]) for row in counted}


class ScoreStore:
    """Scores of one fingerprint."""

    def __init__(self, spark: SparkSession, path: str, fingerprint: str) -> None:
        """Nothing is read or written yet."""
        self._spark = spark
        self._files = Files(spark)
        self.folder = f"{path}/{FINGERPRINT}{fingerprint}"

    def open(self, about: Mapping[str, Any]) -> None:
        """Say what these scores are of, and that they are in use now.

        Each run writes the same text again, whole: two at once do no harm, and the time of the
        file is when the fingerprint was last used.

        Args:
            about: what decides a score, with the model's name; no secret.
        """
        text = json.dumps(about, indent=2, ensure_ascii=False, sort_keys=True)
        self._files.make_folder(self.folder)
        self._files.write_text(f"{self.folder}/{ABOUT}", text + "\n")

    def read(self) -> DataFrame:
        """One row per pair key, `SCHEMA`."""
        attempts = self._attempts()
        if not attempts:
            return self._spark.createDataFrame([], SCHEMA)
        return collapsed(read_files(self._spark, attempts)).drop(ORIGIN)

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
        attempt = f"{self.folder}/{ATTEMPT}{uuid.uuid4().hex}"
        names = [F.col(field.name).cast(field.dataType) for field in SCHEMA.fields]
        scores.select(*names).write.options(**_TASK_COMMIT).parquet(attempt)
        return attempt

    def _attempts(self) -> list[str]:
        """Folders with at least one finished file."""
        names = self._files.children(self.folder)
        folders = (f"{self.folder}/{name}" for name in names if name.startswith(ATTEMPT))
        return [
            folder for folder in folders
            if any(name.endswith(".parquet") for name in self._files.children(folder))
        ]  # fmt: skip
