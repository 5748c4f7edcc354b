"""The output folder: results are built beside their places and moved there when they are whole.

OUT/_work/RUN_ID/    what a run is building
OUT/_swap.json       the run that is moving its results to their places, and their names
OUT/.lock            held by that run
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import ArrayType, BinaryType, MapType, StructType

from jobs.output.filesystem import Files
from jobs.output.heartbeat import Pulse
from jobs.output.lock import locked
from jobs.runtime.errors import RefusedError

# Names with an underscore or a dot are invisible to readers of the folder above them.
_WORK: Final = "_work"
_SWAP: Final = "_swap.json"
_LOCK: Final = ".lock"
# What is read back has to be what was written: line breaks, blanks and quotes in ids included.
_CSV: Final = {
    "header": "true", "multiLine": "true", "escape": '"', "emptyValue": "",
    "ignoreLeadingWhiteSpace": "false", "ignoreTrailingWhiteSpace": "false",
}  # fmt: skip


def refuse_columns(schema: StructType, output_format: str) -> None:
    """Find out before anything is scored that a column passed through cannot be written.

    Raises:
        RefusedError: naming the columns.
    """
    nested = (ArrayType, MapType, StructType, BinaryType)
    names = [field.name for field in schema.fields if isinstance(field.dataType, nested)]
    if output_format == "csv" and names:
        raise RefusedError(
            f"output.format=csv cannot hold the columns {', '.join(names)}; choose parquet, or "
            "leave them out of the input"
        )


class OutputFolder:
    """OUT, with a workspace of this run inside it.

    A run that fails leaves all results as they were. A run that is whole moves all of its results
    into place, under a lock: of two runs the last one wins, with everything. The result named last
    is taken away first and comes back last, so that where it is, everything beside it is of the
    same run. A run killed in the middle leaves a note of what it was about, and the next run that
    publishes carries it out first.
    """

    def __init__(self, spark: SparkSession, path: str, output_format: str) -> None:
        """Nothing is written or mended yet; use it in a `with`."""
        self._spark = spark
        self._files = Files(spark)
        self._format = output_format
        self.path = self._files.absolute(path)
        self.run_id = uuid.uuid4().hex
        self._work = self._workspace(self.run_id)
        self._pulse = Pulse(self._files, self._work)
        self._open = False
        self._moving = False

    def place(self, name: str) -> str:
        """Where a result will be."""
        return f"{self.path}/{name}"

    def __enter__(self) -> OutputFolder:
        """Write nothing yet: the workspace begins with what is staged, so a refusal leaves none."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove this run's workspace, unless results in it are still to be moved by the next."""
        if self._open:
            self._pulse.stop()
            if not self._moving:
                self._files.delete(self._work)
            self._files.delete_if_empty(f"{self.path}/{_WORK}")

    def stage(self, name: str, table: DataFrame, output_format: str | None = None) -> DataFrame:
        """Write a table into the workspace and read it back, so that it is computed once."""
        self._make_workspace()
        path, kind = f"{self._work}/{name}", output_format or self._format
        options = _CSV if kind == "csv" else {}
        table.write.format(kind).options(**options).save(path)
        return self._spark.read.format(kind).options(**options).schema(table.schema).load(path)

    def stage_text(self, name: str, text: str) -> None:
        """Write a small text into the workspace."""
        self._make_workspace()
        self._files.write_text(f"{self._work}/{name}", text)

    def stage_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a small JSON file into the workspace."""
        self.stage_text(name, _json(content))

    def publish(self, names: Sequence[str], gone: Iterable[str] = ()) -> None:
        """Move staged results to their places, each replacing the former one.

        Args:
            names: what was staged. The last one is the sign that the others are in place.
            gone: results of an earlier run that this run has none of.

        Raises:
            LockedError: if another run does not come to an end with the same.
        """
        note = {"run_id": self.run_id, "names": list(names), "gone": sorted(gone)}
        with locked(self._files, self.place(_LOCK)):
            if self._files.exists(self.place(_SWAP)):
                self._carry_out()
            self._sweep()
            self._moving = True
            self._files.write_text(self.place(_SWAP), _json(note))
            self._carry_out()
            self._moving = False

    def update_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a published JSON file again, unless another run has replaced it by its own."""
        with locked(self._files, self.place(_LOCK)), suppress(FileNotFoundError):
            if json.loads(self._files.read_text(self.place(name)))["run_id"] == self.run_id:
                self._files.write_text(self.place(name), _json(content))

    def has(self, name: str) -> bool:
        """Whether a result is in its place."""
        return self._files.exists(self.place(name))

    def copy_to_local(self, name: str, target: Path) -> None:
        """A result, file or folder, as a copy on this machine."""
        self._files.copy_to_local(self.place(name), target)

    def _carry_out(self) -> None:
        """Do what the note says, or what is left of it. The lock is held.

        Every step can be done again: what is no longer in the workspace is in its place.
        """
        note = json.loads(self._files.read_text(self.place(_SWAP)))
        work = self._workspace(note["run_id"])
        *_, sign = note["names"]
        if self._files.exists(f"{work}/{sign}"):
            for name in (sign, *note["gone"]):
                self._files.delete(self.place(name))
            for name in note["names"]:
                if self._files.exists(f"{work}/{name}"):
                    self._files.delete(self.place(name))
                    self._files.rename(f"{work}/{name}", self.place(name))
        self._files.delete(self.place(_SWAP))
        if work != self._work:
            self._files.delete(work)

    def _make_workspace(self) -> None:
        if not self._open:
            self._open = True
            self._pulse.start()

    def _sweep(self) -> None:
        """Remove the workspaces of dead runs. The lock is held and no note is left."""
        for run in self._files.children(f"{self.path}/{_WORK}"):
            if self._pulse.outlived(self._workspace(run)):
                self._files.delete(self._workspace(run))

    def _workspace(self, run_id: str) -> str:
        return f"{self.path}/{_WORK}/{run_id}"


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
