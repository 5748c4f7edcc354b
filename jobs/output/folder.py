"""The output folder: results are built in a workspace and published when they are whole.

1. Tables and files are written to OUT/_work/RUN_ID.
2. The lock is taken. What a killed run was publishing is completed; workspaces of dead runs go.
3. A note, OUT/_swap.json, says what is to be moved, and which former results have no successor.
4. The record (run.json) and the results without successor are renamed into the workspace.
5. Each other result is: the former one into the workspace, the new one to its place. The record
   comes last, so what is beside a record belongs to it.
6. The note is deleted, the lock released, and the workspace removed.

A run killed before 3 has changed nothing, and a later run removes its workspace. One killed from
then on is completed by the next run, as every step can be repeated. Until then readers find no
run.json; of each table (of each partition, where `output.partition_by` splits it) they find the
former one, the new one, or for the moment between two renames none, and never a part of one.
Partitions that the run has not processed stay as they are, byte for byte.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from py4j.protocol import Py4JError
from pyspark.sql import DataFrame, SparkSession

from jobs.config import OutputConfig
from jobs.output.filesystem import Files, literal, text_folders
from jobs.output.names import LOCK, PARTITIONED, PARTITIONS, RUN, SWAP, TUNING, UNPUBLISHED, WORK

_FORMER: Final = "_former"  # in the workspace: what is being replaced
_NULL: Final = "__HIVE_DEFAULT_PARTITION__"
_STARTED: Final = "started"  # in the workspace: its time is that of the run's start
_STALE: Final = 48 * 3600.0  # s since a run started, longer than any run takes
#: By default microseconds are cut off.
WHOLE_TIMES: Final = {
    "timestampFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSSXXX",
    "timestampNTZFormat": "yyyy-MM-dd'T'HH:mm:ss.SSSSSS",
}
# What is read back has to be what was written: line breaks, blanks and quotes in ids included.
_OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "csv": {
        "header": "true", "multiLine": "true", "escape": '"', "emptyValue": "",
        "ignoreLeadingWhiteSpace": "false", "ignoreTrailingWhiteSpace": "false", **WHOLE_TIMES,
    },
    "json": WHOLE_TIMES,
}  # fmt: skip


def published_record(files: Files, out: str) -> dict[str, Any] | None:
    """Return the record of the results in a folder, None if there is none of this project."""
    for name in (RUN, TUNING):
        with suppress(FileNotFoundError, ValueError):
            record = json.loads(files.read_text(f"{out}/{name}"))
            if isinstance(record, dict) and {"run_id", "kind", "config"} <= record.keys():
                return record
    return None


class OutputFolder:
    """OUT, with a workspace of this run inside it. Use it in a `with`.

    A run that fails leaves all results as they were. Of two runs that publish at once the later
    one wins, with all of its results.
    """

    def __init__(self, spark: SparkSession, config: OutputConfig) -> None:
        """Write nothing yet."""
        self.spark = spark
        self._files = Files(spark)
        self._format = config.format
        self._partition_by = config.partition_by
        self.path = self._files.absolute(str(config.path))  # with its scheme
        #: What was staged so far, read back, by name.
        self.staged: dict[str, DataFrame] = {}
        self.run_id = uuid.uuid4().hex
        self._results = self.path
        self._work = self._workspace(self.run_id)
        self._swapping = False

    def place(self, name: str) -> str:
        """Return where a result is, or will be."""
        return f"{self._results}/{name}"

    def has_results(self) -> bool:
        """Return whether results of an earlier run are published."""
        return published_record(self._files, self.path) is not None

    def __enter__(self) -> OutputFolder:
        """Complete what a killed run was publishing, and make the workspace."""
        if self._files.exists(f"{self.path}/{SWAP}"):
            with self._files.locked(f"{self.path}/{LOCK}"):
                self._swap()
        self.stage_file(_STARTED, "")
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Remove the workspace, unless the next run needs it to complete a swap."""
        try:
            if not self._swapping:
                self._files.delete(self._work)
            self._files.delete_if_empty(f"{self.path}/{WORK}")
        except (Py4JError, OSError):  # there is no JVM any more, or no disk
            if error is not None:
                error.add_note(f"a later run removes {self._work}")

    def stage(self, name: str, table: DataFrame, output_format: str | None = None) -> DataFrame:
        """Write a table into the workspace and read it back, so that it is computed once."""
        path, kind = f"{self._work}/{name}", output_format or self._format
        options = _OPTIONS.get(kind, {})
        by = self._partition_by if name in (*PARTITIONED, PARTITIONS) else []
        columns = {column: f"`{column.replace('`', '``')}`" for column in table.columns}
        if by:
            order = [columns[c] for c in (*by, "query_id", "rank") if c in columns]
            table = table.sortWithinPartitions(*order)
        table.write.format(kind).options(**options).partitionBy(*by).save(path)
        reader = self.spark.read.format(kind).options(**options).schema(table.schema)
        self.staged[name] = reader.load(literal(path)).select(*columns.values())
        return self.staged[name]

    def stage_file(self, name: str, content: str | Mapping[str, Any]) -> None:
        """Write a small text, or a JSON object, into the workspace."""
        self._files.write_text(
            f"{self._work}/{name}", content if isinstance(content, str) else _json(content)
        )

    def publish(self, names: Sequence[str], gone: Iterable[str] = ()) -> None:
        """Move staged results to their places, each replacing the former one.

        `names` are those staged, the record's the last; `gone` those that this run has none of.
        LockedError if another run does not stop publishing.
        """
        with self._files.locked(f"{self.path}/{LOCK}"):
            self._swap()
            self._sweep()
            moves, removed = self._by_partition(names, set(gone))
            note = {"run_id": self.run_id, "names": moves, "gone": sorted(removed)}
            self._swapping = True
            self._files.write_text(f"{self.path}/{SWAP}", _json(note))
            self._swap()
            self._swapping = False

    def keep_unpublished(self, names: Sequence[str]) -> None:
        """Keep staged results beside the published ones, instead of the last that were kept."""
        kept = f"{self.path}/{UNPUBLISHED}"
        with self._files.locked(f"{self.path}/{LOCK}"):
            self._swap()
            self._sweep()
            for name in set(self._files.children(self._work)).difference(names):
                self._files.delete(f"{self._work}/{name}")
            former = self._files.children(kept)
            self._files.rename(self._work, f"{kept}/{self.run_id}")
            for run in former:
                self._files.delete(f"{kept}/{run}")
        self._results = f"{kept}/{self.run_id}"

    def update_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON result again, unless another run has replaced it by its own."""
        with self._files.locked(f"{self.path}/{LOCK}"), suppress(FileNotFoundError):
            if json.loads(self._files.read_text(self.place(name)))["run_id"] == self.run_id:
                self._files.write_text(self.place(name), _json(content))

    def copy_to_local(self, name: str, target: Path) -> None:
        """Copy a result, file or folder, to this machine if it is there."""
        if self._files.exists(self.place(name)):
            self._files.copy_to_local(self.place(name), target)

    def _swap(self) -> None:
        """Do what the note says, or what is left of it. The lock is held.

        Every step can be repeated: what is no longer in the workspace is in its place.
        """
        note_at = f"{self.path}/{SWAP}"
        if not self._files.exists(note_at):
            return
        note = json.loads(self._files.read_text(note_at))
        work, record = self._workspace(note["run_id"]), note["names"][-1]
        if self._files.exists(f"{work}/{record}"):
            for name in (record, *note["gone"]):
                self._set_aside(work, name)
            for name in note["names"]:
                if self._files.exists(f"{work}/{name}"):
                    self._move_in(work, name)
        self._files.delete(note_at)
        if work != self._work:
            self._files.delete(work)

    def _move_in(self, work: str, name: str) -> None:
        self._set_aside(work, name)
        self._files.rename(f"{work}/{name}", f"{self.path}/{name}")

    def _set_aside(self, work: str, name: str) -> None:
        """Rename a former result: deleting it in its place would show readers a part of it."""
        if self._files.exists(f"{self.path}/{name}"):
            self._files.rename(f"{self.path}/{name}", f"{work}/{_FORMER}/{uuid.uuid4().hex}")

    def published(self, name: str, output_format: str | None = None) -> DataFrame | None:
        """Return a published table whose other partitions stay; None where there is none.

        Partition columns are text.
        """
        path = f"{self.path}/{name}"
        if not (self._stays() and self._files.exists(path)):
            return None
        kind = output_format or self._format
        options = _OPTIONS.get(kind, {})
        with text_folders(self.spark):
            return self.spark.read.format(kind).options(**options).load(literal(path))

    def published_partitions(self) -> list[dict[str, str | None]]:
        """Return the values by column of the partitions that may stay, as text."""
        if not self._stays():
            return []
        found = set().union(*(self._partitions(table, self.path) for table in PARTITIONED))
        parts = [
            [part.partition("=") for part in path.split("/")] for path in sorted(found) if path
        ]
        return [
            {unquote(name): None if value == _NULL else unquote(value) for name, _, value in values}
            for values in parts
        ]

    def _stays(self) -> bool:
        """Whether what is published is split like the results of this run."""
        published = published_record(self._files, self.path) or {}
        before = published.get("config", {}).get("output", {}).get("partition_by")
        return bool(self._partition_by) and before == self._partition_by

    def _by_partition(self, names: Sequence[str], gone: set[str]) -> tuple[list[str], set[str]]:
        """Replace only the partitions this run has processed, if the published ones are alike."""
        if not self._stays():
            return list(names), gone
        staged = {table: self._partitions(table) for table in PARTITIONED if table in names}
        processed = set().union(self._partitions(PARTITIONS), *staged.values())
        moves: list[str] = []
        for name in names:
            moves += [f"{name}/{p}" for p in sorted(staged[name])] if name in staged else [name]
        return moves, gone | {f"{t}/{p}" for t, parts in staged.items() for p in processed - parts}

    def _partitions(self, table: str, within: str | None = None) -> set[str]:
        """Return the folders of a staged table's partitions: `date=2026-01-01/lang=en`."""
        found = [""]
        for _ in self._partition_by:
            found = [
                f"{above}/{name}"
                for above in found
                for name in self._files.children(f"{within or self._work}/{table}{above}")
                if "=" in name
            ]
        return {path.lstrip("/") for path in found}

    def _sweep(self) -> None:
        """Remove the workspaces of dead runs. The lock is held and no note is left."""
        started: dict[str, float] = {}
        for folder in self._files.entries(f"{self.path}/{WORK}"):
            # A folder without the file is of a run that is just beginning, or that died there.
            entry = self._files.entry(f"{folder.path}/{_STARTED}") or folder
            started[folder.name] = entry.modified
        now = started.get(self.run_id, 0.0)  # by that file system's clock
        for run, since in started.items():
            if now - since > _STALE:
                self._files.delete(self._workspace(run))

    def _workspace(self, run_id: str) -> str:
        return f"{self.path}/{WORK}/{run_id}"


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
