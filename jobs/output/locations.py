"""Where results may go: apart from what is read, apart from each other, and writable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from py4j.protocol import Py4JError
from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession

from jobs.output.filesystem import Files
from jobs.runtime.errors import RefusedError

# Children of OUT that a run replaces or removes, with all they hold.
_REPLACED: Final = (
    "ranked", "rejects", "per_query", "metrics.json", "report.html", "run.json",
    "_work", "_swap.json", ".lock",
)  # fmt: skip


def refuse_overlap(
    spark: SparkSession, sources: Iterable[str | None], targets: Mapping[str, str | None]
) -> None:
    """Keep results out of the input: a later run would read them, or replace the input by them.

    Args:
        spark: the session.
        sources: what is read [paths, URIs or globs]; None is left out.
        targets: where results go, by configuration key; None is left out.

    Raises:
        RefusedError: for each source and target of which one lies in the other.
    """
    files = Files(spark)
    given = {key: path for key, path in targets.items() if path}
    findings = [
        f"{key}={target} and the input {source} lie in one another; choose another"
        for source in filter(None, sources)
        for key, target in given.items()
        if _meet(_parts(files, source), _parts(files, target))
    ]
    if findings:
        raise RefusedError(findings)


def refuse_store_in_results(spark: SparkSession, out: str, store: str | None) -> None:
    """Keep the score store where no run deletes it: beside OUT, or under a name of its own in OUT.

    Raises:
        RefusedError: if it is OUT, holds OUT, or lies in a folder of OUT that runs replace.
    """
    if not store:
        return
    files = Files(spark)
    above, below = _parts(files, out), _parts(files, store)
    if not _meet(above, below):
        return
    inside = below[len(above) :]
    if not inside or inside[0] in _REPLACED:
        raise RefusedError(
            f"store.path={store} would mix with the results in output.path={out}; choose a folder "
            "beside it, or a new name in it"
        )


def refuse_unwritable(spark: SparkSession, targets: Mapping[str, str | None]) -> None:
    """Try each target by writing a small file and removing it, with the folders made for it.

    Raises:
        RefusedError: with what the file system said.
    """
    files = Files(spark)
    findings = []
    for key, target in targets.items():
        if target:
            try:
                files.try_write(target)
            except OSError as error:
                findings.append(f"{key}={target} cannot be written ({error}); check the path")
    if findings:
        raise RefusedError(findings)


def table_folders(spark: SparkSession, table: str | None) -> list[str]:
    """Folders of a catalog table's files; none where it has no files, or is not there."""
    if not table:
        return []
    try:
        found = spark.table(table).inputFiles()
    except AnalysisException:
        return []
    return sorted({file.rpartition("/")[0] for file in found})


def _parts(files: Files, path: str) -> list[str]:
    """Scheme and names from the root down; links of the local file system are followed."""
    try:
        whole = files.absolute(path)
    except Py4JError:  # no such file system: whoever reads or writes there says so
        return [path]
    if whole.startswith("file:"):
        whole = "file:" + str(Path(whole.removeprefix("file:")).resolve())
    return [part for part in whole.split("/") if part]


def _meet(one: list[str], other: list[str]) -> bool:
    """Whether one path is the other, or above it. Names may be patterns."""
    return all(
        a == b or fnmatchcase(b, a) or fnmatchcase(a, b) or "{" in a + b
        for a, b in zip(one, other, strict=False)
    )
