"""Small files and renames on any file system Spark can reach (local, HDFS, S3A, ...)."""

from __future__ import annotations

import re
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

_GLOB: Final = re.compile(r"([\\{}\[\]*?])")


def literal(path: str) -> str:
    """Return a path for Spark's readers, which take `[`, `{`, `*` and `?` as patterns."""
    return _GLOB.sub(r"\\\1", path)


def local_path(path: str) -> Path | None:
    """Return an absolute path with its scheme as one of this machine, None if it is elsewhere."""
    scheme = "file:"
    return Path("/" + path.removeprefix(scheme).lstrip("/")) if path.startswith(scheme) else None


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
    """Hadoop's FileSystem, with the few operations the job needs.

    Args:
        spark: a classic session; its Hadoop configuration holds the credentials.
    """

    def __init__(self, spark: SparkSession) -> None:
        """Keep the gateway to the JVM."""
        gateway: Any = spark.sparkContext._gateway
        self._gateway = gateway
        self._hadoop: Any = gateway.jvm.org.apache.hadoop.fs
        self._to_string: Any = gateway.jvm.org.apache.commons.io.IOUtils.toString
        self._conf: Any = spark._jsc.hadoopConfiguration()

    def exists(self, path: str) -> bool:
        """Return whether there is a file or folder."""
        return bool(self._system(path).exists(self._path(path)))

    def is_folder(self, path: str) -> bool:
        """Return whether there is a folder."""
        return self.exists(path) and bool(
            self._system(path).getFileStatus(self._path(path)).isDirectory()
        )

    def children(self, path: str) -> list[str]:
        """Return the names in a folder, sorted; none where there is no folder."""
        return [entry.name for entry in self.entries(path)]

    def entries(self, path: str) -> list[Entry]:
        """Return what is in a folder, sorted by name; nothing where there is none."""
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
        """Return everything below a folder."""
        found = []
        for entry in self.entries(path):
            found += [entry, *(self.tree(entry.path) if entry.is_folder else [])]
        return found

    def rename(self, source: str, target: str) -> None:
        """Move a file or folder to a free name, making the folder above it.

        Raises:
            OSError: if the file system refuses.
        """
        system = self._system(source)
        system.mkdirs(self._path(target).getParent())
        if not system.rename(self._path(source), self._path(target)):
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
        """Remove a folder unless it holds something."""
        with suppress(Py4JJavaError):
            self._system(path).delete(self._path(path), False)

    def create(self, path: str) -> bool:
        """Make an empty file and return whether it was not there before.

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
        """Return when a file or folder last changed [s], by the file system's clock."""
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
            OSError: with the message of the file system.
        """
        made = []
        above = folder.rstrip("/")
        file = f"{above}/.tried-{uuid.uuid4().hex}"
        try:
            while above and not self.exists(above):
                made.append(above)
                parent = self._path(above).getParent()
                above = str(parent.toString()) if parent is not None else ""
            try:
                self._write(file, "written to see whether it can be")
            finally:
                self.delete(file)
                for path in made:
                    self.delete_if_empty(path)
        except Py4JJavaError as error:
            cause = error.java_exception
            raise OSError(f"{cause.getClass().getSimpleName()}: {cause.getMessage()}") from None

    def write_text(self, path: str, text: str) -> None:
        """Write a small UTF-8 file whole: beside its place first, then moved over."""
        beside = f"{path}.{uuid.uuid4().hex}.tmp"
        self._write(beside, text)
        self._replace(self._path(self.absolute(beside)), self._path(self.absolute(path)))

    def read_text(self, path: str) -> str:
        """Return the content of a small UTF-8 file.

        Raises:
            FileNotFoundError: where there is none.
        """
        if not self.exists(path):
            raise FileNotFoundError(path)
        stream = self._system(path).open(self._path(path))
        try:
            # readAllBytes would do, but Hadoop's stream wrapper hides it from reflection.
            return str(self._to_string(stream, "UTF-8"))
        finally:
            stream.close()

    def copy_to_local(self, path: str, target: Path) -> None:
        """Copy a file or folder to this machine, replacing what is there."""
        local = target.absolute().as_uri()
        self.delete(local)
        self._system(path).copyToLocalFile(False, self._path(path), self._path(local), True)

    def absolute(self, path: str) -> str:
        """Return the path with its scheme, as Spark would resolve it."""
        return str(self._system(path).makeQualified(self._path(path)).toString())

    def matches(self, pattern: str, name: str) -> bool:
        """Return whether a part of a path is one of those that a Hadoop pattern names."""
        return bool(self._hadoop.GlobPattern(pattern).matches(name))

    def _write(self, path: str, text: str) -> None:
        stream = self._system(path).create(self._path(path), True)
        stream.write(bytearray(text.encode()))
        stream.close()

    def _replace(self, source: Any, target: Any) -> None:
        """Rename over a file, in one step where the file system has one."""
        mode: Any = getattr(self._hadoop, "Options$Rename")
        modes = self._gateway.new_array(mode, 1)
        modes[0] = mode.OVERWRITE
        try:
            context = self._hadoop.FileContext.getFileContext(source.toUri(), self._conf)
        except Py4JJavaError:  # a scheme without an AbstractFileSystem, such as s3, dbfs or oss
            system = source.getFileSystem(self._conf)
            system.delete(target, False)
            system.rename(source, target)
        else:
            context.rename(source, target, modes)

    def _path(self, path: str) -> Any:
        return self._hadoop.Path(path)

    def _system(self, path: str) -> Any:
        return self._path(path).getFileSystem(self._conf)
