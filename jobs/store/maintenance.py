"""Verify, merge and prune the scores of a store, for `python -m jobs.store`."""

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

from jobs.output.filesystem import Entry, Files, literal
from jobs.runtime.errors import BookkeepingError
from jobs.store import scores
from jobs.store.scores import deduplicated, read_files
from udfs.scorers.base import OK

_TARGET: Final = 128 * 2**20  # bytes of a file that is neither small nor hard to split
Folder = tuple[Entry, ...]  # a folder, and everything below it


@dataclass(frozen=True)
class Fingerprint:
    """All scores of one fingerprint.

    Attributes:
        name: the fingerprint.
        about: what the scores are of; empty if the folder does not say.
        whole: its folder.
        attempts: a folder for each run or merge that wrote scores.
        corrupt: damaged files; empty if there are none.
        used: when anything in the folder last changed, opening it included [s since 1970].
    """

    name: str
    about: dict[str, Any]
    whole: Folder
    attempts: tuple[Folder, ...]
    corrupt: Folder
    used: float

    @property
    def files(self) -> tuple[Entry, ...]:
        """Finished files of all attempts."""
        return tuple(file for attempt in self.attempts for file in finished(attempt))


def finished(attempt: Folder) -> tuple[Entry, ...]:
    """Return the files that tasks of an attempt have published."""
    path = attempt[0].path
    return tuple(e for e in attempt if e.path == f"{path}/{e.name}" and _is_part(e))


def size_of(entries: Sequence[Entry]) -> int:
    """Return the bytes of files."""
    return sum(entry.size for entry in entries)


def take_inventory(files: Files, store: str) -> list[Fingerprint]:
    """Return every fingerprint of a store, ordered by name; no score is read."""
    found = []
    for folder in files.entries(store):
        if not folder.is_folder or not folder.name.startswith(scores.FINGERPRINT):
            continue
        inside = {
            entry.name: (entry, *files.tree(entry.path)) for entry in files.entries(folder.path)
        }
        about = {}
        with suppress(FileNotFoundError, ValueError):
            about = json.loads(files.read_text(f"{folder.path}/{scores.ABOUT}"))
        whole = (folder, *(entry for entries in inside.values() for entry in entries))
        found.append(
            Fingerprint(
                folder.name.removeprefix(scores.FINGERPRINT),
                about if isinstance(about, dict) else {},
                whole,
                tuple(each for name, each in inside.items() if name.startswith(scores.ATTEMPT)),
                inside.get(scores.CORRUPT, ()),
                _newest(whole),
            )
        )
    return found


def count_pairs(spark: SparkSession, inventory: Sequence[Fingerprint]) -> dict[str, int]:
    """Return the number of distinct pairs by fingerprint; damaged files are skipped."""
    paths = [file.path for fingerprint in inventory for file in fingerprint.files]
    if not paths:
        return {}
    name = F.regexp_extract(F.input_file_name(), rf"{scores.FINGERPRINT}(\w+)", 1)
    rows = read_files(spark, paths, ignoreCorruptFiles="true")
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
    paths = [file.path for file in fingerprint.files]
    broken = scores.damaged(spark, fingerprint.files)
    problems = [f"{path} is damaged; the next run sets it aside, and its pairs are scored again"
                for path in broken]  # fmt: skip
    whole = [path for path in paths if path not in broken]
    if not whole:
        return f"0 pairs in {len(paths):,} files", problems
    logit = F.col("logit").cast("double")
    spread = read_files(spark, whole).where(F.col("status") == OK).groupBy("pair_key").agg(
        F.count(F.lit(1)).alias("times"), (F.max(logit) - F.min(logit)).alias("difference")
    )  # fmt: skip
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


def small_files(fingerprint: Fingerprint) -> dict[str, tuple[Entry, ...]]:
    """Return the files of attempts worth merging: of small files, if that leaves fewer files."""
    parts = {attempt[0].path: finished(attempt) for attempt in fingerprint.attempts}
    small = {path: of for path, of in parts.items() if size_of(of) < len(of) * _TARGET // 2}
    return small if _count(small) < sum(map(len, small.values())) else {}


def merge(spark: SparkSession, fingerprint: Fingerprint) -> str:
    """Merge small files, and return what was done.

    The merged attempt is written whole before any old one is deleted, so whenever the process is
    killed, every score is in some file. A merged score keeps the name of the attempt it came from,
    so readers choose between differing scores as they did before.

    Raises:
        BookkeepingError: if the merged files do not hold every pair; nothing was deleted then.
    """
    old = small_files(fingerprint)
    if not old:
        return "nothing to merge"
    files, count = Files(spark), _count(old)
    merged = [file.path for parts in old.values() for file in parts]
    before = read_files(spark, merged)
    target = f"{fingerprint.whole[0].path}/{scores.ATTEMPT}{uuid.uuid4().hex}"
    # The ordinary commit: this attempt is there as a whole or not at all.
    deduplicated(before).repartition(count, "pair_key").write.parquet(target)
    pairs = before.select("pair_key").distinct().count()
    held = spark.read.parquet(literal(target)).select("pair_key").distinct().count()
    if held != pairs:
        files.delete(target)
        raise BookkeepingError(
            f"{pairs} pairs were to be merged, {held} arrived; nothing was deleted. "
            "Run jobs.store verify"
        )
    for attempt in old:
        # A task that has ended since, against all expectation, keeps its attempt alive.
        if {e.path for e in files.entries(attempt) if _is_part(e)} <= set(merged):
            files.delete(attempt)
    return f"{len(merged):,} files of {len(old):,} attempts are now {count:,}, with {pairs:,} pairs"


def find_waste(
    inventory: Sequence[Fingerprint], *, older_than: float, settled: float
) -> Iterator[tuple[str, str, int]]:
    """Find what a store need not keep: path, reason and bytes.

    Args:
        inventory: all fingerprints of a store.
        older_than: a fingerprint not used for so long goes as a whole [s].
        settled: of the others, unfinished and damaged files go if nothing was written beside them
            for so long: the run that wrote them has ended [s].
    """
    now = time.time()
    for found in inventory:
        if (age := now - found.used) > older_than:
            yield found.whole[0].path, f"not used for {age / 86400:.0f} days", size_of(found.whole)
            continue
        parts = [(found.corrupt, "damaged files, set aside")]
        for attempt in found.attempts:
            unfinished = tuple(e for e in attempt if f"{attempt[0].path}/_temporary" in e.path)
            alive = bool(finished(attempt))
            parts.append((unfinished, "tasks that never ended") if alive
                         else (attempt, "no finished task"))  # fmt: skip
        for entries, reason in parts:
            if entries and now - _newest(entries) > settled:
                yield entries[0].path, reason, size_of(entries)


def _is_part(entry: Entry) -> bool:
    return entry.name.endswith(".parquet") and not entry.name.startswith(".")


def _count(old: dict[str, tuple[Entry, ...]]) -> int:
    """Files that hold the scores of these."""
    return max(1, math.ceil(sum(map(size_of, old.values())) / _TARGET))


def _newest(entries: Sequence[Entry]) -> float:
    """When the latest of them changed [s since 1970]."""
    return max((entry.modified for entry in entries), default=0.0)
