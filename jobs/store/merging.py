"""Small files of a fingerprint -> few large ones, while every score stays readable.

The merged attempt is written whole before any old one is deleted, so whatever moment the process
is killed at, every score is in some file. In between a score is in two; such scores are equal, and
readers take one (`collapsed`). A merged score keeps the name of the attempt it came from, so
readers choose between differing scores as they did before.

A fingerprint that was opened or written to a short while ago (`store.settled`) is left alone: its
run may still write, or may have planned to read files that would be deleted.
"""

from __future__ import annotations

import math
import uuid
from dataclasses import dataclass
from typing import Final

from pyspark.sql import SparkSession

from jobs.output.filesystem import Files
from jobs.runtime.errors import BookkeepingError
from jobs.store.inventory import Attempt, Fingerprint
from jobs.store.scores import ATTEMPT, collapsed, read_files

_TARGET: Final = 128 * 2**20  # bytes of a file that is neither small nor hard to split
_SMALL: Final = _TARGET // 2


@dataclass(frozen=True)
class Merged:
    """What a merge did: attempts and files that are gone, files and pairs written."""

    attempts: int
    files: int
    written: int
    pairs: int


def small_attempts(fingerprint: Fingerprint) -> list[Attempt]:
    """Attempts that are worth merging: those of small files, if that leaves fewer files."""
    small = [a for a in fingerprint.attempts if a.files and a.size / len(a.files) < _SMALL]
    fewer = _files_for(small) < sum(len(attempt.files) for attempt in small)
    return small if fewer else []


def merge(spark: SparkSession, fingerprint: Fingerprint) -> Merged | None:
    """Merge small files.

    Returns:
        None if there was nothing to merge.

    Raises:
        BookkeepingError: if the merged files do not hold every pair; nothing was deleted then.
    """
    old = small_attempts(fingerprint)
    if not old:
        return None
    files = Files(spark)
    before = read_files(spark, [entry.path for attempt in old for entry in attempt.files])
    target = f"{fingerprint.path}/{ATTEMPT}{uuid.uuid4().hex}"
    count = _files_for(old)
    # The ordinary commit: this attempt is there as a whole or not at all.
    collapsed(before).repartition(count, "pair_key").write.parquet(target)
    pairs = before.select("pair_key").distinct().count()
    held = spark.read.parquet(target).select("pair_key").distinct().count()
    if held != pairs:
        files.delete(target)
        raise BookkeepingError(
            f"{pairs} pairs were to be merged, {held} arrived; nothing was deleted. "
            "Run jobs.store verify"
        )
    for attempt in old:
        # A task that has ended since, against all expectation, keeps its attempt alive.
        if {entry.path for entry in attempt.files} >= _finished(files, attempt.path):
            files.delete(attempt.path)
    return Merged(len(old), sum(len(attempt.files) for attempt in old), count, pairs)


def _files_for(attempts: list[Attempt]) -> int:
    return max(1, math.ceil(sum(attempt.size for attempt in attempts) / _TARGET))


def _finished(files: Files, attempt: str) -> set[str]:
    return {entry.path for entry in files.entries(attempt) if entry.name.endswith(".parquet")}
