"""Look after a score store.

    python -m jobs.store ls      --store.path STORE
    python -m jobs.store verify  --store.path STORE
    python -m jobs.store compact --store.path STORE [--store.settled 6h] [--dry-run]
    python -m jobs.store gc      --store.path STORE [--older-than 30d] [--dry-run]

On a cluster: spark-submit --py-files dist/spark-rerank-0.1.0.zip jobs/store/__main__.py ls ...
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from jobs.config import Config
from jobs.output.filesystem import Files
from jobs.runtime.command import Command
from jobs.runtime.errors import DONE, GATE_NOT_PASSED, REFUSED, RefusedError
from jobs.runtime.session import open_session
from jobs.store.checking import examine
from jobs.store.inventory import Fingerprint, seconds, take_inventory
from jobs.store.merging import merge, small_attempts
from jobs.store.pruning import drop, find_waste
from jobs.store.scores import count_pairs

_LINE: Final = "{:<34}{:<28}{:>6}  {:<9}{:>13}{:>7}{:>11}{:>10}  {}"
_HEADER: Final = (
    "fingerprint", "model", "length", "precision", "pairs", "files", "size", "attempts", "last used"
)  # fmt: skip

Verb = Callable[[SparkSession, Config, list[Fingerprint]], int]


def ls(spark: SparkSession, _: Config, inventory: list[Fingerprint]) -> int:
    """List what a score store holds: pairs, files, size and attempts per fingerprint."""
    pairs = count_pairs(spark, [entry.path for found in inventory for entry in found.files])
    _say(_LINE.format(*_HEADER))
    for found in inventory:
        about = found.about
        model, revision = str(about.get("model", "unknown")), about.get("revision")
        name = f"{model.rstrip('/').rpartition('/')[2]}{f'@{revision[:7]}' if revision else ''}"
        _say(
            _LINE.format(
                found.name,
                name[-27:],
                str(about.get("max_length", "-")),
                str(about.get("precision", "-")),
                f"{pairs.get(found.name, 0):,}",
                f"{len(found.files):,}",
                _size(found.size),
                f"{len(found.attempts):,}",
                time.strftime("%Y-%m-%d %H:%M", time.localtime(found.used)),
            )
        )
    return DONE


def verify(spark: SparkSession, config: Config, inventory: list[Fingerprint]) -> int:
    """Read every file of a score store and check that scores are scores, and agree."""
    wrong = 0
    spark.sparkContext.setLogLevel("OFF")  # a file that cannot be read is reported here
    for found in inventory:
        health = examine(spark, found, tolerance=config.store.tolerance)
        twice = ""
        if health.repeated:
            twice = (
                f", {health.repeated:,} scored more than once (they differ by up to "
                f"{health.largest_difference:.2g})"
            )
        _say(f"{found.name}  {health.pairs:,} pairs in {len(found.files):,} files{twice}")
        for finding in health.findings:
            _say(f"  - {finding}")
        wrong += len(health.findings)
    _say(
        "all is well" if not wrong else f"{wrong} findings; a pair without a score is scored again"
    )
    return GATE_NOT_PASSED if wrong else DONE


def compact(spark: SparkSession, config: Config, inventory: list[Fingerprint]) -> int:
    """Merge a score store's small files; every score stays readable all the while."""
    for found in inventory:
        age = time.time() - found.used
        if age < seconds(config.store.settled):
            _say(
                f"{found.name}  used {age / 60:.0f} minutes ago, left alone; when no run is under "
                "way, --store.settled 0m takes it, too"
            )
        elif config.dry_run:
            old = small_attempts(found)
            _say(f"{found.name}  would merge {sum(len(a.files) for a in old):,} files")
        elif (done := merge(spark, found)) is None:
            _say(f"{found.name}  nothing to merge")
        else:
            _say(
                f"{found.name}  {done.files:,} files of {done.attempts:,} attempts are now "
                f"{done.written:,}, with {done.pairs:,} pairs"
            )
    return DONE


def gc(spark: SparkSession, config: Config, inventory: list[Fingerprint]) -> int:
    """Drop fingerprints of a score store that are out of use, and what dead runs left."""
    files, freed = Files(spark), 0
    older_than, settled = seconds(config.store.older_than), seconds(config.store.settled)
    for waste in find_waste(inventory, time.time(), older_than=older_than, settled=settled):
        if not config.dry_run:
            drop(files, waste)
        freed += waste.size
        _say(f"{'would drop' if config.dry_run else 'dropped'} {waste.path}: {waste.reason}")
    _say(f"{_size(freed)} {'would be ' if config.dry_run else ''}freed")
    return DONE


VERBS: Final[dict[str, Verb]] = {"ls": ls, "verify": verify, "compact": compact, "gc": gc}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; exit code as in `jobs.runtime.errors`, 4 if `verify` found something."""
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
    spark = open_session(config)
    path = str(config.store.path)
    files = Files(spark)
    if not files.exists(path):
        raise RefusedError(f"store.path={path} does not exist; check the path")
    inventory = take_inventory(files, path)
    if not inventory:
        raise RefusedError(
            f"store.path={path} holds no fingerprint=...; name the folder above them, such as "
            "OUT/scores"
        )
    try:
        return verb(spark, config, inventory)
    except (PySparkException, Py4JJavaError) as error:
        raise RefusedError(
            f"store.path={path} cannot be read ({type(error).__name__}); nothing was deleted; "
            "python -m jobs.store verify names the files"
        ) from None


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


if __name__ == "__main__":
    sys.exit(main())
