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

import pandas as pd
from pyspark.sql import SparkSession

from jobs.config import Config
from jobs.output.filesystem import Files
from jobs.runtime.command import Command
from jobs.runtime.errors import DONE, GATE_NOT_PASSED, REFUSED, RefusedError
from jobs.runtime.session import open_session
from jobs.store import maintenance
from jobs.store.maintenance import Fingerprint
from jobs.store.scores import READ_ERRORS, quiet

_SECONDS: Final = {"m": 60.0, "h": 3600.0, "d": 86400.0}

Verb = Callable[[SparkSession, Config, list[Fingerprint]], int]


def ls(spark: SparkSession, _: Config, inventory: list[Fingerprint]) -> int:
    """List what a score store holds: pairs, files, size and attempts per fingerprint."""
    pairs = maintenance.count_pairs(spark, inventory)
    rows = []
    for found in inventory:
        about = found.about
        name = str(about.get("model", "unknown")).rstrip("/").rpartition("/")[2]
        rows.append(
            {
                "fingerprint": found.name,
                "model": name + (f"@{about['revision'][:7]}" if about.get("revision") else ""),
                "length": about.get("max_length", "-"),
                "precision": about.get("precision", "-"),
                "pairs": f"{pairs.get(found.name, 0):,}",
                "files": f"{len(found.files):,}",
                "size": _mib(maintenance.size_of(found.files)),
                "attempts": f"{len(found.attempts):,}",
                "last used": time.strftime("%Y-%m-%d %H:%M", time.localtime(found.used)),
            }
        )
    _say(pd.DataFrame(rows).to_string(index=False))
    return DONE


def verify(spark: SparkSession, config: Config, inventory: list[Fingerprint]) -> int:
    """Read every file of a score store and check that scores are scores, and agree."""
    wrong = 0
    for found in inventory:
        with quiet(spark):
            summary, problems = maintenance.verify(spark, found, tolerance=config.store.tolerance)
        _say(f"{found.name}  {summary}")
        for problem in problems:
            _say(f"  - {problem}")
        wrong += len(problems)
    _say(f"{wrong} problems" if wrong else "all is well")
    return GATE_NOT_PASSED if wrong else DONE


def compact(spark: SparkSession, config: Config, inventory: list[Fingerprint]) -> int:
    """Merge a score store's small files; every score stays readable all the while."""
    for found in inventory:
        age = time.time() - found.used
        if age < _seconds(config.store.settled):  # its run may still write or read
            done = (
                f"used {age / 60:.0f} minutes ago, left alone; when no run is under way, "
                "--store.settled 0m takes it, too"
            )
        elif config.dry_run:
            small = maintenance.small_files(found)
            done = f"would merge {sum(map(len, small.values())):,} files"
        else:
            done = maintenance.merge(spark, found)
        _say(f"{found.name}  {done}")
    return DONE


def gc(spark: SparkSession, config: Config, inventory: list[Fingerprint]) -> int:
    """Drop fingerprints of a score store that are out of use, and what dead runs left."""
    freed = 0
    older_than, settled = _seconds(config.store.older_than), _seconds(config.store.settled)
    waste = maintenance.find_waste(inventory, older_than=older_than, settled=settled)
    for path, reason, size in waste:
        if not config.dry_run:
            Files(spark).delete(path)
        freed += size
        _say(f"{'would drop' if config.dry_run else 'dropped'} {path}: {reason}")
    _say(f"{_mib(freed)} {'would be ' if config.dry_run else ''}freed")
    return DONE


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
    inventory = maintenance.take_inventory(files, path)
    if not inventory:
        raise RefusedError(
            f"store.path={path} holds no fingerprint=...; name the folder above them, such as "
            "OUT/scores"
        )
    try:
        return verb(spark, config, inventory)
    except READ_ERRORS as error:
        raise RefusedError(
            f"store.path={path} cannot be read ({type(error).__name__}); nothing was deleted; "
            "python -m jobs.store verify names the files"
        ) from None


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _seconds(age: str) -> float:
    """`30d`, `6h` or `5m` as seconds."""
    return int(age[:-1]) * _SECONDS[age[-1]]


if __name__ == "__main__":
    sys.exit(main())
