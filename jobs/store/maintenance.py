"""Inventory, verification, merging and pruning of a store, for `python -m jobs.store`."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs.output.filesystem import Entry, Files
from jobs.runtime.errors import BookkeepingError
from jobs.store.scores import (
    ABOUT,
    ATTEMPT,
    CORRUPT,
    FINGERPRINT,
    SCHEMA,
    damaged,
    deduplicated,
    read_files,
)
from udfs.scores import OK

_TEMPORARY: Final = "_temporary"  # where Spark's tasks write until they end
_TARGET: Final = 128 * 2**20  # bytes of a file that is neither small nor hard to split


@dataclass(frozen=True)
class Attempt:
    """What one run, or one merge, wrote: finished files, those of unfinished tasks, everything."""

    path: str
    files: tuple[Entry, ...]
    unfinished: tuple[Entry, ...]
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Fingerprint:
    """All scores of one fingerprint.

    Attributes:
        name: the fingerprint.
        path: its folder.
        about: what the scores are of; empty if the folder does not say.
        attempts: the runs and merges that wrote them.
        corrupt: the folder of damaged files, and the files.
        used: when anything in the folder last changed, opening it included [s since 1970].
    """

    name: str
    path: str
    about: dict[str, Any]
    attempts: tuple[Attempt, ...]
    corrupt: tuple[Entry, ...]
    used: float

    @property
    def files(self) -> tuple[Entry, ...]:
        """Finished files of all attempts."""
        return tuple(entry for attempt in self.attempts for entry in attempt.files)


@dataclass(frozen=True)
class Waste:
    """A folder that can be dropped, the reason, and its bytes."""

    path: str
    reason: str
    size: int


def take_inventory(files: Files, store: str) -> list[Fingerprint]:
    """Return every fingerprint of a store, ordered by name; no score is read."""
    return [
        _fingerprint(files, entry)
        for entry in files.entries(store)
        if entry.is_folder and entry.name.startswith(FINGERPRINT)
    ]


def size_of(entries: Sequence[Entry]) -> int:
    """Return the bytes of files."""
    return sum(entry.size for entry in entries)


def count_pairs(spark: SparkSession, inventory: Sequence[Fingerprint]) -> dict[str, int]:
    """Return the number of distinct pairs by fingerprint; damaged files are skipped."""
    paths = [entry.path for fingerprint in inventory for entry in fingerprint.files]
    if not paths:
        return {}
    name = F.regexp_extract(F.input_file_name(), rf"{FINGERPRINT}(\w+)", 1)
    rows = spark.read.option("ignoreCorruptFiles", "true").schema(SCHEMA).parquet(*paths)
    return dict(rows.groupBy(name).agg(F.count_distinct("pair_key")).collect())


def verify(
    spark: SparkSession, fingerprint: Fingerprint, *, tolerance: float
) -> tuple[str, list[str]]:
    """Read every column of every file, and compare the scores of pairs that have several.

    Args:
        spark: the session.
        fingerprint: what to read.
        tolerance: how far two scores of one pair may differ [logit].

    Returns:
        A summary, and what is wrong, a sentence each.
    """
    paths = [entry.path for entry in fingerprint.files]
    broken = damaged(spark, fingerprint.files)
    problems = [f"{path} is damaged; the next run sets it aside, and its pairs are scored again"
                for path in broken]  # fmt: skip
    whole = [path for path in paths if path not in broken]
    if not whole:
        return f"0 pairs in {len(paths):,} files", problems
    scores = read_files(spark, whole).where(F.col("status") == OK).groupBy("pair_key")
    logit = F.col("logit").cast("double")
    spread = scores.agg(
        F.count(F.lit(1)).alias("times"), (F.max(logit) - F.min(logit)).alias("difference")
    )
    conflict = F.col("difference") > tolerance
    pairs, repeated, largest, conflicts, key = spread.agg(
        F.count(F.lit(1)),
        F.count_if(F.col("times") > 1),
        F.max("difference"),
        F.count_if(conflict),
        F.min(F.when(conflict, F.col("pair_key"))),
    ).collect()[0]
    if conflicts:
        problems.append(
            f"{conflicts} pairs have scores that differ by more than store.tolerance="
            f"{tolerance:g}, the most by {largest:.4g}, for example pair_key {key[:12]}; "
            "delete one of their attempts"
        )
    twice = f", {repeated:,} scored more than once (they differ by up to {largest or 0.0:.2g})"
    return f"{pairs:,} pairs in {len(paths):,} files{twice if repeated else ''}", problems


def small_attempts(fingerprint: Fingerprint) -> list[Attempt]:
    """Return attempts worth merging: those of small files, if that leaves fewer files."""
    small = [a for a in fingerprint.attempts if size_of(a.files) < len(a.files) * _TARGET // 2]
    return small if _files_for(small) < sum(len(attempt.files) for attempt in small) else []


def merge(spark: SparkSession, fingerprint: Fingerprint) -> str:
    """Merge small files, and return what was done.

    The merged attempt is written whole before any old one is deleted, so whenever the process is
    killed, every score is in some file. A merged score keeps the name of the attempt it came from,
    so readers choose between differing scores as they did before.

    Raises:
        BookkeepingError: if the merged files do not hold every pair; nothing was deleted then.
    """
    old = small_attempts(fingerprint)
    if not old:
        return "nothing to merge"
    files, count = Files(spark), _files_for(old)
    merged = [entry.path for attempt in old for entry in attempt.files]
    before = read_files(spark, merged)
    target = f"{fingerprint.path}/{ATTEMPT}{uuid.uuid4().hex}"
    # The ordinary commit: this attempt is there as a whole or not at all.
    deduplicated(before).repartition(count, "pair_key").write.parquet(target)
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
        now = {e.path for e in files.entries(attempt.path) if e.name.endswith(".parquet")}
        if now <= {entry.path for entry in attempt.files}:
            files.delete(attempt.path)
    return f"{len(merged):,} files of {len(old):,} attempts are now {count:,}, with {pairs:,} pairs"


def find_waste(
    inventory: Sequence[Fingerprint], *, older_than: float, settled: float
) -> Iterator[Waste]:
    """Find what a store need not keep.

    Args:
        inventory: all fingerprints of a store.
        older_than: a fingerprint not used for so long goes as a whole [s].
        settled: of the others, unfinished and damaged files go if nothing was written beside them
            for so long: the run that wrote them has ended [s].
    """
    now = time.time()
    for found in inventory:
        if now - found.used > older_than:
            days = (now - found.used) / 86400
            yield Waste(found.path, f"not used for {days:.0f} days", size_of(found.files))
            continue
        parts = [(found.corrupt, "damaged files, set aside")]
        for attempt in found.attempts:
            unfinished = (attempt.unfinished, "tasks that never ended")
            parts.append(unfinished if attempt.files else (attempt.entries, "no finished task"))
        for entries, reason in parts:
            if entries and now - _newest(entries) > settled:
                yield Waste(entries[0].path, reason, size_of(entries))


def _fingerprint(files: Files, folder: Entry) -> Fingerprint:
    inside = files.entries(folder.path)
    trees = {entry.name: (entry, *files.tree(entry.path)) for entry in inside if entry.is_folder}
    about: dict[str, Any] = {}
    with suppress(FileNotFoundError, ValueError):
        about = json.loads(files.read_text(f"{folder.path}/{ABOUT}"))
    attempts = [_attempt(tree) for name, tree in trees.items() if name.startswith(ATTEMPT)]
    return Fingerprint(
        name=folder.name.removeprefix(FINGERPRINT),
        path=folder.path,
        about=about if isinstance(about, dict) else {},
        attempts=tuple(attempts),
        corrupt=trees.get(CORRUPT, ()),
        used=_newest([folder, *inside, *(e for attempt in attempts for e in attempt.entries)]),
    )


def _attempt(entries: tuple[Entry, ...]) -> Attempt:
    path = entries[0].path
    unfinished = tuple(e for e in entries if e.path.startswith(f"{path}/{_TEMPORARY}"))
    finished = tuple(
        e for e in entries
        if e.name.endswith(".parquet") and not e.name.startswith(".") and e not in unfinished
    )  # fmt: skip
    return Attempt(path, finished, unfinished, entries)


def _files_for(attempts: Sequence[Attempt]) -> int:
    return max(1, math.ceil(sum(size_of(attempt.files) for attempt in attempts) / _TARGET))


def _newest(entries: Sequence[Entry]) -> float:
    """When the latest of them changed [s since 1970]."""
    return max((entry.modified for entry in entries), default=0.0)
