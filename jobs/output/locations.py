"""Check where results go: apart from what is read, into a folder of ours, and writable."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from py4j.protocol import Py4JError
from pyspark.errors import AnalysisException
from pyspark.sql import SparkSession

from jobs.config import OutputConfig
from jobs.config.section import refuse_object_store
from jobs.output.filesystem import Files, local_path
from jobs.output.folder import published_record
from jobs.output.names import REPLACED, SCORES, SWAP, UNPUBLISHED, WORK
from jobs.runtime.errors import RefusedError


def refuse_locations(
    spark: SparkSession,
    config: OutputConfig,
    sources: Iterable[str | None] = (),
    store: str | None = None,
    source: str | None = None,
) -> None:
    """Keep results out of the input, and refuse to replace what is not ours.

    Args:
        spark: the session.
        config: `overwrite` allows to replace anything.
        sources: what is read [paths, URIs or patterns]; None is left out.
        store: the score store, None if it is OUT/scores.
        source: the input of jobs.rerank, as run.json names it; empty: of another command, which
            publishes results; None: of one that replaces none.
    """
    files, out = Files(spark), str(config.path)
    targets = {"output.path": out, **({"store.path": store} if store else {})}
    errors = [
        f"{key}={target} and the input {path} lie in one another; choose another"
        for path in filter(None, sources)
        for key, target in targets.items()
        if _overlap(files, path, target)
    ]
    # No run may delete the store: it is beside OUT, or under a name of its own in OUT.
    inside = _below(files, out, store) if store else None
    if store and (_below(files, store, out) is not None or (inside and inside[0] in REPLACED)):
        errors.append(
            f"store.path={store} would mix with the results in output.path={out}; choose a folder "
            "beside it, or a new name in it"
        )
    for key, target in targets.items():
        try:
            refuse_object_store(key, f"{files.scheme(target)}:")  # also by default, fs.defaultFS
            files.try_write(target)
        except ValueError as error:
            errors.append(str(error))
        except OSError as error:
            errors.append(f"{key}={target} cannot be written ({error}); check the path")
    if not config.overwrite:
        with suppress(Py4JError):  # no such file system
            errors += _not_ours(files, config, store, source)
    if errors:
        raise RefusedError(errors)


def named_source(given: Mapping[str, Any]) -> str:
    """Return how messages name an input (section `input`), with the days that are taken of it."""
    path = given.get("path") or given.get("run") or given.get("table") or ""
    days = [str(given.get(key) or "") for key in ("since", "until")]
    return f"{path} ({' to '.join(days)})" if any(days) else str(path)


def table_folders(spark: SparkSession, table: str | None) -> list[str]:
    """Return the folders of a catalog table's files; none where it has none, or is not there."""
    if not table:
        return []
    try:
        found = spark.table(table).inputFiles()
    except AnalysisException:
        return []
    return sorted({file.rpartition("/")[0] for file in found})


def _not_ours(
    files: Files, config: OutputConfig, store: str | None, source: str | None
) -> Iterator[str]:
    """Keep what somebody else put into OUT, and the results of another date."""
    out = files.absolute(str(config.path))
    names = [name for name in files.children(out) if not name.startswith(".")]
    record = published_record(files, out)
    if record is None:
        if SWAP not in names and not _only_ours(files, out, store, names):
            yield (
                f"output.path={config.path} is not empty and not ours: it holds "
                f"{', '.join(names[:3])}{', ...' if names[3:] else ''} and no run.json of this "
                "project; choose another folder, or set output.overwrite"
            )
        return
    if source is None or record["kind"] not in ("rerank", "fuse"):
        return
    remedy = "set output.partition_by, another output.path or output.overwrite"
    given, was = record["config"].get("input", {}), record["config"].get("output", {})
    before, as_before = named_source(given), was.get("format", config.format)
    by, wanted = was.get("partition_by", []), config.partition_by
    if record["kind"] != ("rerank" if source else "fuse"):
        if by:
            yield (
                f"output.path={config.path} holds partitions of jobs.{record['kind']}, which would "
                "be replaced as a whole; choose another, or set output.overwrite"
            )
    elif by != wanted:
        yield (
            f"output.path={config.path} holds results partitioned by {', '.join(by) or 'nothing'}, "
            f"not by {', '.join(wanted) or 'nothing'}; {remedy}"
        )
    elif by and as_before != config.format:
        yield (
            f"output.path={config.path} holds partitions as {as_before}, and output.format is "
            f"{config.format}; set it to {as_before}, another output.path or output.overwrite"
        )
    elif not by and source and before != source and _undated(before) == _undated(source):
        yield f"output.path={config.path} holds results of {before}; {remedy}"


def _only_ours(files: Files, out: str, store: str | None, names: Sequence[str]) -> bool:
    """Return whether a folder holds no more than a first run that was killed, or not published."""
    own = {WORK, UNPUBLISHED, *(_below(files, out, store or f"{out}/{SCORES}") or [])[:1]}
    scores = files.children(f"{out}/{SCORES}") if SCORES in names and not store else []
    return own >= set(names) and all(name.startswith(("fingerprint=", ".", "_")) for name in scores)


def _undated(path: str) -> str:
    """Return a path without the values in `key=value`, without digits and days."""
    path = re.sub(r" \([^()]*\)$", "", path)
    return re.sub(r"\d+", "0", re.sub(r"=[^/]*", "=", path))


def _parts(files: Files, path: str) -> list[str]:
    """Return scheme and names from the root down; links of the local file system are followed."""
    try:
        whole = files.absolute(path)
    except Py4JError:  # no such file system: whoever reads or writes there says so
        return [path]
    local = local_path(whole)
    return [part for part in (f"file:{local.resolve()}" if local else whole).split("/") if part]


def _below(files: Files, above: str, path: str) -> list[str] | None:
    """Return the names that lead down from one folder to another, None if none do."""
    start, whole = _parts(files, above), _parts(files, path)
    return whole[len(start) :] if whole[: len(start)] == start else None


def _overlap(files: Files, source: str, target: str) -> bool:
    """Return whether one path is the other, or above it. A source that exists is no pattern."""
    is_pattern = False
    with suppress(Py4JError):
        is_pattern = not files.exists(source)

    def meet(part: str, name: str) -> bool:
        with suppress(Py4JError):  # no pattern either
            return part == name or (is_pattern and files.matches(part, name))
        return False

    pairs = zip(_parts(files, source), _parts(files, target), strict=False)
    return all(meet(part, name) for part, name in pairs)
