"""Small files and renames on any file system Spark can reach (local, HDFS, S3A, ...)."""

from __future__ import annotations

import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession


@dataclass(frozen=True)
class Entry:
    """A file or folder: its path, its size [bytes] and when it was last changed [s since 1970]."""

    path: str
    size: int
    modified: float
    is_folder: bool

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


class Files:
    """Hadoop's FileSystem, with the few verbs the job needs.

    Args:
        spark: a classic session; its Hadoop configuration holds the credentials.
    """

    def __init__(self, spark: SparkSession) -> None:
        """Keep the gateway to the JVM."""
        gateway: Any = spark.sparkContext._gateway
        self._gateway = gateway
        self._jvm: Any = gateway.jvm
        self._conf: Any = spark._jsc.hadoopConfiguration()

    def exists(self, path: str) -> bool:
        """Whether there is a file or folder."""
        return bool(self._system(path).exists(self._path(path)))

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder."""
        return self.exists(path) and bool(
            self._system(path).getFileStatus(self._path(path)).isDirectory()
        )

    def children(self, path: str) -> list[str]:
        """Names in a folder, sorted; empty where there is none."""
        if not self.exists(path):
            return []
        statuses = self._system(path).listStatus(self._path(path))
        return sorted(status.getPath().getName() for status in statuses)

    def entries(self, path: str) -> list[Entry]:
        """What is in a folder, sorted by name; empty where there is none."""
        if not self.exists(path):
            return []
        found = [
            Entry(
                str(status.getPath().toString()),
                int(status.getLen()),
                int(status.getModificationTime()) / 1000,
                bool(status.isDirectory()),
            )
            for status in self._system(path).listStatus(self._path(path))
        ]
        return sorted(found, key=lambda entry: entry.path)

    def tree(self, path: str) -> list[Entry]:
        """Everything below a folder."""
        found = []
        for entry in self.entries(path):
            found += [entry, *(self.tree(entry.path) if entry.is_folder else [])]
        return found

    def rename(self, source: str, target: str) -> None:
        """Move a file or folder to a name that is free.

        Raises:
            OSError: if the file system refuses.
        """
        if not self._system(source).rename(self._path(source), self._path(target)):
            raise OSError(f"cannot rename {source} to {target}")

    def delete(self, path: str) -> None:
        """Remove a file or folder with all it holds; nothing happens where there is none."""
        self._system(path).delete(self._path(path), True)

    def make_folder(self, path: str) -> None:
        """Make a folder and those above it.

        Raises:
            OSError: if the file system refuses.
        """
        if not self._system(path).mkdirs(self._path(path)):
            raise OSError(f"cannot make the folder {path}")

    def delete_if_empty(self, path: str) -> None:
        """Remove a folder in which another run has not begun anything meanwhile."""
        with suppress(Py4JJavaError):  # it holds something
            self._system(path).delete(self._path(path), False)

    def create(self, path: str) -> bool:
        """Make an empty file, and say whether it was not there before.

        One of many callers gets True, where the file system creates files atomically (HDFS does;
        Hadoop's view of a local disk does not).
        """
        try:
            return bool(self._system(path).createNewFile(self._path(path)))
        except Py4JJavaError:
            if self.exists(path):
                return False
            raise

    def modified(self, path: str) -> float | None:
        """When a file or folder last changed, by the file system's clock [s]; None without one."""
        try:
            status = self._system(path).getFileStatus(self._path(path))
        except Py4JJavaError as error:
            if error.java_exception.getClass().getName() != "java.io.FileNotFoundException":
                raise
            return None
        return float(status.getModificationTime()) / 1000.0

    def try_write(self, folder: str) -> None:
        """Write a small file into a folder and remove it, with every folder made for it.

        Raises:
            OSError: with what the file system said.
        """
        made = []
        above = folder.rstrip("/")
        try:
            while above and not self.exists(above):
                made.append(above)
                parent = self._path(above).getParent()
                above = str(parent.toString()) if parent is not None else ""
            file = self._path(f"{folder.rstrip('/')}/.tried-{uuid.uuid4().hex}")
            try:
                stream = self._system(folder).create(file, True)
                stream.write(bytearray(b"written to see whether it can be"))
                stream.close()
            finally:
                self._system(folder).delete(file, False)
                for path in made:
                    # Another run may have put something there by now.
                    if not self.children(path):
                        self._system(path).delete(self._path(path), False)
        except Py4JJavaError as error:
            said = error.java_exception
            raise OSError(f"{said.getClass().getSimpleName()}: {said.getMessage()}") from None

    def write_text(self, path: str, text: str) -> None:
        """Write a small UTF-8 file whole: beside its place first, then moved over."""
        beside = f"{path}.{uuid.uuid4().hex}.tmp"
        stream = self._system(path).create(self._path(beside), True)
        stream.write(bytearray(text.encode()))
        stream.close()
        self._replace(beside, path)

    def read_text(self, path: str) -> str:
        """A small UTF-8 file.

        Raises:
            FileNotFoundError: where there is none.
        """
        if not self.exists(path):
            raise FileNotFoundError(path)
        stream = self._system(path).open(self._path(path))
        try:
            # readAllBytes would do, but Hadoop's stream wrapper hides it from reflection.
            return str(self._jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8"))
        finally:
            stream.close()

    def copy_to_local(self, path: str, target: Path) -> None:
        """Copy a file or folder to this machine, replacing what is there."""
        local = self._path(target.absolute().as_uri())
        self.delete(target.absolute().as_uri())
        self._system(path).copyToLocalFile(False, self._path(path), local, True)

    def absolute(self, path: str) -> str:
        """The path with its scheme, as Spark would resolve it."""
        return str(self._system(path).makeQualified(self._path(path)).toString())

    def _replace(self, source: str, target: str) -> None:
        """Rename over a file, in one step where the file system has one."""
        mode: Any = getattr(self._jvm.org.apache.hadoop.fs, "Options$Rename")
        modes = self._gateway.new_array(mode, 1)
        modes[0] = mode.OVERWRITE
        context = self._jvm.org.apache.hadoop.fs.FileContext
        path = self._path(self.absolute(source))
        system = context.getFileContext(path.toUri(), self._conf)
        system.rename(path, self._path(self.absolute(target)), modes)

    def _path(self, path: str) -> Any:
        return self._jvm.org.apache.hadoop.fs.Path(path)

    def _system(self, path: str) -> Any:
        return self._path(path).getFileSystem(self._conf)
