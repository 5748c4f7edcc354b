"""Look after a score store.

    python -m jobs.store ls      --store.path STORE
    python -m jobs.store verify  --store.path STORE
    python -m jobs.store compact --store.path STORE [--store.settled 6h] [--dry-run]
    python -m jobs.store gc      --store.path STORE [--older-than 30d] [--dry-run]

On a cluster: spark-submit --py-files dist/spark-rerank-0.1.0.zip jobs/store/__main__.py ls ...
"""

import json
import math
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import pandas as pd
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs.config import Config
from jobs.output.filesystem import Files, literal
from jobs.runtime.command import Command
from jobs.runtime.errors import DONE, GATE_NOT_PASSED, REFUSED, BookkeepingError, RefusedError
from jobs.runtime.session import open_session
from jobs.store import scores
from udfs.scorers.base import OK

_SECONDS: Final = {"m": 60.0, "h": 3600.0, "d": 86400.0}
_TARGET: Final = 128 * 2**20  # bytes of a file that is neither small nor hard to split

Verb = Callable[[SparkSession, Config, pd.DataFrame], int]


def take_inventory(files: Files, store: str, only: str = "") -> pd.DataFrame:
    """Return everything in a store, or of one fingerprint; no score is read.

    Columns: fingerprint; folder: name of the attempt, or of what else is below the fingerprint;
    path; size [bytes]; modified [s since 1970]; is_part: a file of scores that a task published.
    """
    rows = [
        (above.name.removeprefix(scores.FINGERPRINT), entry.path.removeprefix(f"{above.path}/"),
         entry.path, entry.size, entry.modified)
        for above in files.entries(store)
        if above.is_folder and above.name.startswith(f"{scores.FINGERPRINT}{only}")
        for entry in (above, *files.tree(above.path))
    ]  # fmt: skip
    found = pd.DataFrame(rows, columns=["fingerprint", "folder", "path", "size", "modified"])
    is_part = found["folder"].str.fullmatch(rf"{scores.ATTEMPT}[^/]+/[^/.][^/]*\.parquet")
    return found.assign(is_part=is_part, folder=found["folder"].str.replace("/.*", "", regex=True))


def ls(spark: SparkSession, config: Config, inventory: pd.DataFrame) -> int:
    """List what a score store holds: pairs, files, size and attempts per fingerprint."""
    pairs: dict[str, int] = {}
    rows = []
    if paths := inventory[inventory["is_part"]]["path"].to_list():
        held = scores.read_files(spark, paths, ignoreCorruptFiles="true")
        fingerprint = F.regexp_extract(F.input_file_name(), rf"{scores.FINGERPRINT}(\w+)", 1)
        pairs = dict(held.groupBy(fingerprint).agg(F.count_distinct("pair_key")).collect())
    for name, found in inventory.groupby("fingerprint"):
        about: dict[str, Any] = {}
        with suppress(FileNotFoundError, ValueError):
            place = f"{config.store.path}/{scores.FINGERPRINT}{name}/{scores.ABOUT}"
            about |= json.loads(Files(spark).read_text(place))
        model = str(about.get("model", "unknown")).rstrip("/").rpartition("/")[2]
        parts = found[found["is_part"]]
        attempts = {name for name in found["folder"] if name.startswith(scores.ATTEMPT)}
        used = time.localtime(found["modified"].max())
        rows.append(
            {
                "fingerprint": name,
                "model": model + (f"@{about['revision'][:7]}" if about.get("revision") else ""),
                "length": about.get("max_length", "-"),
                "precision": about.get("precision", "-"),
                "pairs": f"{pairs.get(str(name), 0):,}",
                "files": f"{len(parts):,}",
                "size": _mib(parts["size"].sum()),
                "attempts": f"{len(attempts):,}",
                "last used": time.strftime("%Y-%m-%d %H:%M", used),
            }
        )
    _say(pd.DataFrame(rows).to_string(index=False))
    return DONE


def verify(spark: SparkSession, config: Config, inventory: pd.DataFrame) -> int:
    """Read every file of a score store and check that scores are scores, and agree."""
    wrong = 0
    for name, found in inventory.groupby("fingerprint"):
        with scores.quiet(spark):
            summary, problems = _problems(spark, found, config.store.tolerance)
        _say(f"{name}  {summary}", *(f"  - {problem}" for problem in problems))
        wrong += len(problems)
    _say(f"{wrong} problems" if wrong else "all is well")
    return GATE_NOT_PASSED if wrong else DONE


def _problems(spark: SparkSession, found: pd.DataFrame, tolerance: float) -> tuple[str, list[str]]:
    """Return a summary of a fingerprint's scores, and what is wrong, a sentence each."""
    parts = found[found["is_part"]]
    broken = scores.damaged(spark, dict(zip(parts["path"], parts["size"], strict=True)))
    problems = [f"{path} is damaged; the next run sets it aside, and its pairs are scored again"
                for path in broken]  # fmt: skip
    whole = [path for path in parts["path"] if path not in broken]
    if not whole:
        return f"0 pairs in {len(parts):,} files", problems
    logit = F.col("logit").cast("double")
    spread = scores.read_files(spark, whole).where(F.col("status") == OK).groupBy("pair_key").agg(
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
    return f"{pairs:,} pairs in {len(parts):,} files{twice if repeated else ''}", problems


def compact(spark: SparkSession, config: Config, inventory: pd.DataFrame) -> int:
    """Merge a score store's small files; every score stays readable all the while."""
    for name, found in inventory.groupby("fingerprint"):
        age = time.time() - found["modified"].max()
        if age < _seconds(config.store.settled):  # its run may still write or read
            done = (
                f"used {age / 60:.0f} minutes ago, left alone; when no run is under way, "
                "--store.settled 0m takes it, too"
            )
        elif config.dry_run:
            done = f"would merge {len(_small_files(found)[0]):,} files"
        else:
            # What was merged before took time: a run may have begun.
            found = take_inventory(Files(spark), str(config.store.path), str(name))
            if found.empty:
                continue
            if time.time() - found["modified"].max() < _seconds(config.store.settled):
                done = "used since the command began, left alone"
            else:
                done = merge(spark, found)
        _say(f"{name}  {done}")
    return DONE


def _small_files(found: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Return the files of attempts with small files, and how many files their scores would fill.

    There are none where merging would not leave fewer files.
    """
    parts = found[found["is_part"]]
    means = parts.groupby("folder")["size"].transform("mean")
    small = parts[means < _TARGET / 2]
    count = max(1, math.ceil(small["size"].sum() / _TARGET))
    return small if count < len(small) else small.head(0), count


def merge(spark: SparkSession, found: pd.DataFrame) -> str:
    """Merge the small files of a fingerprint, and return what was done.

    The merged attempt is written whole before any old one is deleted, so whenever the process is
    killed, every score is in some file. A merged score keeps the name of the attempt it came from,
    so readers choose between differing scores as they did before.

    Raises:
        BookkeepingError: if the merged files do not hold every pair; nothing was deleted then.
    """
    files, (old, count) = Files(spark), _small_files(found)
    if old.empty:
        return "nothing to merge"
    attempts = sorted({path.rpartition("/")[0] for path in old["path"]})
    before = scores.read_files(spark, old["path"].to_list())
    target = f"{attempts[0].rpartition('/')[0]}/{scores.ATTEMPT}{uuid.uuid4().hex}"
    # The ordinary commit: this attempt is there as a whole or not at all.
    scores.deduplicated(before).repartition(count, "pair_key").write.parquet(target)
    pairs, held = (
        rows.select("pair_key").distinct().count()
        for rows in (before, spark.read.parquet(literal(target)))
    )
    if held != pairs:
        files.delete(target)
        raise BookkeepingError(
            f"{pairs} pairs were to be merged, {held} arrived; nothing was deleted. "
            "Run jobs.store verify"
        )
    for attempt in attempts:
        # A task that has ended since, against all expectation, keeps its attempt alive.
        there = {e.path for e in files.entries(attempt) if e.name.endswith(".parquet")}
        if there <= set(old["path"]):
            files.delete(attempt)
    return (
        f"{len(old):,} files of {len(attempts):,} attempts are now {count:,}, with {pairs:,} pairs"
    )


def gc(spark: SparkSession, config: Config, inventory: pd.DataFrame) -> int:
    """Drop fingerprints of a score store that are out of use, and what dead runs left."""
    freed = 0
    for reason, waste in _waste(inventory, config):
        path = waste["path"].iloc[0]
        if not config.dry_run:
            Files(spark).delete(path)
        freed += waste["size"].sum()
        _say(f"{'would drop' if config.dry_run else 'dropped'} {path}: {reason}")
    _say(f"{_mib(freed)} {'would be ' if config.dry_run else ''}freed")
    return DONE


def _waste(inventory: pd.DataFrame, config: Config) -> Iterator[tuple[str, pd.DataFrame]]:
    """Find what a store need not keep: why, and the folder with all it holds."""
    now = time.time()
    for _, found in inventory.groupby("fingerprint"):
        age = now - found["modified"].max()
        if age > max(_seconds(config.store.older_than), _seconds(config.store.settled)):
            yield f"not used for {age / 86400:.0f} days", found
            continue
        for name, inside in found.groupby("folder"):
            reason, left = "", inside
            if name == scores.CORRUPT:
                reason = "damaged files, set aside"
            elif str(name).startswith(scores.ATTEMPT):
                reason = "no finished task"
                if inside["is_part"].any():
                    reason = "tasks that never ended"
                    left = inside[inside["path"].str.contains("/_temporary", regex=False)]
            # Where something was written a short time ago, the run may still be at work.
            if reason and now - left["modified"].max() > _seconds(config.store.settled):
                yield reason, left


VERBS: Final[dict[str, Verb]] = {"ls": ls, "verify": verify, "compact": compact, "gc": gc}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; exit code as in `jobs.runtime.errors`, 4 if `verify` found a problem."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] not in VERBS:
        asked = bool(words) and words[0] in ("-h", "--help")
        lines = [f"  {name:<8} {verb.__doc__}\n" for name, verb in VERBS.items()]
        usage = "usage: python -m jobs.store VERB --store.path STORE (VERB --help lists the keys)\n"
        (sys.stdout if asked else sys.stderr).writelines([usage, *lines])
        return DONE if asked else REFUSED
    name, *rest = words
    rest = [word.replace("--older-than", "--store.older_than", 1) for word in rest]
    about = str(VERBS[name].__doc__)
    command = Command(f"python -m jobs.store {name}", about, ("store.path",), "store spark dry_run")
    return command.run(rest, partial(_run, VERBS[name]))


def _run(verb: Verb, config: Config) -> int:
    spark, path = open_session(config.spark), str(config.store.path)
    files = Files(spark)
    if not files.exists(path):
        raise RefusedError(f"store.path={path} does not exist; check the path")
    inventory = take_inventory(files, path)
    if inventory.empty:
        raise RefusedError(
            f"store.path={path} holds no fingerprint=...; name the folder above them, such as "
            "OUT/scores"
        )
    try:
        return verb(spark, config, inventory)
    except scores.READ_ERRORS as error:
        raise RefusedError(
            f"store.path={path} cannot be read ({type(error).__name__}); nothing more was "
            "deleted; python -m jobs.store verify names the files"
        ) from None


def _say(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _seconds(age: str) -> float:
    """`30d`, `6h` or `5m` as seconds."""
    return int(age[:-1]) * _SECONDS[age[-1]]


if __name__ == "__main__":
    sys.exit(main())
