"""The output folder: results are built beside their places and moved there when they are whole."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import ArrayType, BinaryType, MapType, StructType

from jobs.errors import RefusedError
from jobs.files import Files

# Names with an underscore are invisible to readers of the folder above them.
_WORK: Final = "_work"
_FORMER: Final = "_former"
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

    A run that fails leaves `ranked/` and `rejects/` as they were. Swapping takes two renames; a
    run killed between them is mended by the next one.
    """

    def __init__(self, spark: SparkSession, path: str, output_format: str) -> None:
        """Nothing is written or mended yet; use it in a `with`."""
        self._spark = spark
        self._files = Files(spark)
        self._format = output_format
        self.path = self._files.absolute(path)
        self.run_id = uuid.uuid4().hex
        self._work = f"{self.path}/{_WORK}/{self.run_id}"

    def place(self, name: str) -> str:
        """Where a result will be."""
        return f"{self.path}/{name}"

    def __enter__(self) -> OutputFolder:
        """Bring back a table that a killed run had moved aside and not yet replaced."""
        former = f"{self.path}/{_FORMER}"
        for name in self._files.children(former):
            if not self._files.exists(self.place(name)):
                self._files.rename(f"{former}/{name}", self.place(name))
        return self

    def __exit__(self, *_: object) -> None:
        """Remove this run's workspace, and the folder of workspaces if it was the last."""
        self._files.delete(self._work)
        if not self._files.children(f"{self.path}/{_WORK}"):
            self._files.delete(f"{self.path}/{_WORK}")

    def stage(self, name: str, table: DataFrame, output_format: str | None = None) -> DataFrame:
        """Write a table into the workspace and read it back, so that it is computed once."""
        path, kind = f"{self._work}/{name}", output_format or self._format
        options = _CSV if kind == "csv" else {}
        table.write.format(kind).options(**options).save(path)
        return self._spark.read.format(kind).options(**options).schema(table.schema).load(path)

    def publish(self, names: list[str]) -> None:
        """Move staged tables to their places, each replacing the former one."""
        former = f"{self.path}/{_FORMER}"
        self._files.make_folder(former)
        for name in names:
            self._files.delete(f"{former}/{name}")
            if self._files.exists(self.place(name)):
                self._files.rename(self.place(name), f"{former}/{name}")
            self._files.rename(f"{self._work}/{name}", self.place(name))
        self._files.delete(former)

    def write_json(self, name: str, content: Mapping[str, Any]) -> str:
        """Write a small JSON file whole, and return its path."""
        text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=False)
        return self.write_text(name, text + "\n")

    def write_text(self, name: str, text: str) -> str:
        """Write a small text whole, and return its path."""
        self._files.write_text(self.place(name), text)
        return self.place(name)

    def remove(self, name: str) -> None:
        """Take away a result of an earlier run that this run has none of."""
        self._files.delete(self.place(name))

    def has(self, name: str) -> bool:
        """Whether a result is in its place."""
        return self._files.exists(self.place(name))

    def copy_to_local(self, name: str, target: Path) -> None:
        """A result, file or folder, as a copy on this machine."""
        self._files.copy_to_local(self.place(name), target)
