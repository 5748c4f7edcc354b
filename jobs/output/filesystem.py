"""Small files and renames on any file system Spark can reach (local, HDFS, ABFS, ...)."""

import fcntl
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from jobs.runtime.errors import LockedError

_TYPED_FOLDERS: Final = "spark.sql.sources.partitionColumnTypeInference.enabled"
_GLOB: Final = re.compile(r"([\\{}\[\]*?])")
_LOCK_POLL: Final = 0.2  # s
_LOCK_TIMEOUT: Final = 120.0  # s; what is locked takes a few renames


def literal(path: str) -> str:
    """Return a path for Spark's readers, which take `[`, `{`, `*` and `?` as patterns."""
    return _GLOB.sub(r"\\\1", path)


@contextmanager
def text_folders(spark: SparkSession) -> Iterator[None]:
    """Have values of partition folders read as text."""
    typed = str(spark.conf.get(_TYPED_FOLDERS))
    try:
        spark.conf.set(_TYPED_FOLDERS, "false")
        yield
    finally:
        spark.conf.set(_TYPED_FOLDERS, typed)


def local_path(path: str) -> Path | None:
    """Return an absolute path with its scheme as one of this machine, None if it is elsewhere."""
    scheme, _, rest = path.partition(":")
    return Path("/" + rest.lstrip("/")) if scheme == "file" else None


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
    """Hadoop's FileSystem, with the few operations the job needs."""

    def __init__(self, spark: SparkSession) -> None:
        """Take the credentials from the Hadoop configuration of a classic session."""
        gateway: Any = spark.sparkContext._gateway
        self._gateway = gateway
        self._hadoop: Any = gateway.jvm.org.apache.hadoop.fs
        self._conf: Any = spark._jsc.hadoopConfiguration()

    def exists(self, path: str) -> bool:
        """Return whether there is a file or folder."""
        system, at = self._at(path)
        return bool(system.exists(at))

    def entry(self, path: str) -> Entry | None:
        """Return what is known of a file or folder, None if there is none."""
        system, at = self._at(path)
        try:
            return _entry(system.getFileStatus(at))
        except Py4JJavaError as error:
            if error.java_exception.getClass().getName() != "java.io.FileNotFoundException":
                raise
            return None

    def children(self, path: str) -> list[str]:
        """Return the names in a folder, sorted; none where there is no folder."""
        return [entry.name for entry in self.entries(path)]

    def entries(self, path: str) -> list[Entry]:
        """Return what is in a folder, sorted by name; nothing where there is none."""
        system, at = self._at(path)
        found = system.listStatus(at) if system.exists(at) else []
        return sorted(map(_entry, found), key=lambda entry: entry.path)

    def tree(self, path: str) -> list[Entry]:
        """Return everything below a folder."""
        found = []
        for entry in self.entries(path):
            found += [entry, *(self.tree(entry.path) if entry.is_folder else [])]
        return found

    def rename(self, source: str, target: str) -> None:
        """Move a file or folder to a free name, making the folder above; OSError if refused."""
        (system, at), (_, to) = self._at(source), self._at(target)
        system.mkdirs(to.getParent())
        if not system.rename(at, to):
            raise OSError(f"cannot rename {source} to {target}")

    def delete(self, path: str) -> None:
        """Remove a file or folder with all it holds; nothing happens where there is none."""
        system, at = self._at(path)
        system.delete(at, True)

    def delete_if_empty(self, path: str) -> None:
        """Remove a folder unless it holds something."""
        system, at = self._at(path)
        with suppress(Py4JJavaError):
            system.delete(at, False)

    def try_write(self, folder: str) -> None:
        """Write a small file into a folder and remove it, with every folder made for it.

        A refusal of the file system is an OSError with its message.
        """
        made, file = [], f"{folder}/.tried-{uuid.uuid4().hex}"
        try:
            system, above = self._at(folder)
            while above is not None and not system.exists(above):
                made.append(str(above.toString()))
                above = above.getParent()
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
        source, target = (self._hadoop.Path(self.absolute(name)) for name in (beside, path))
        mode: Any = getattr(self._hadoop, "Options$Rename")
        modes = self._gateway.new_array(mode, 1)
        modes[0] = mode.OVERWRITE
        try:
            context = self._hadoop.FileContext.getFileContext(source.toUri(), self._conf)
        except Py4JJavaError:  # a scheme without an AbstractFileSystem, such as dbfs
            system, _ = self._at(path)
            system.delete(target, False)
            if not system.rename(source, target):
                system.delete(source, False)
                if not system.exists(target):  # else another driver was faster, with its content
                    raise OSError(f"cannot rename {source} to {target}") from None
        else:
            context.rename(source, target, modes)

    def read_text(self, path: str) -> str:
        """Return the content of a small UTF-8 file; FileNotFoundError where there is none."""
        system, at = self._at(path)
        if not system.exists(at):
            raise FileNotFoundError(path)
        stream = system.open(at)
        try:
            # readAllBytes would do, but Hadoop's stream wrapper hides it from reflection.
            return str(self._gateway.jvm.org.apache.commons.io.IOUtils.toString(stream, "UTF-8"))
        finally:
            stream.close()

    @contextmanager
    def locked(self, path: str) -> Iterator[None]:
        """Hold a lock file for the body of the `with`, waiting for its present holder.

        On a local file system the kernel holds the lock and drops it when the process ends, however
        it ends; the empty file stays. Elsewhere the lock is that the file exists: one that a killed
        run has left must be deleted by hand, as nobody can tell it from the lock of a slow run.

        Args:
            path: absolute, with its scheme, in a folder that exists.

        Raises:
            LockedError: if another run holds it for longer than publishing can take.
        """
        local, deadline = local_path(path), time.monotonic() + _LOCK_TIMEOUT
        with local.open("a") if local else nullcontext() as file:
            while not (_kernel_lock(file) if file else self._create(path)):
                if time.monotonic() > deadline:
                    raise LockedError(
                        f"another run holds {path} for more than {_LOCK_TIMEOUT:.0f} s, which "
                        "publishing does not take; if no run is under way, delete that file. "
                        "Scores are kept: run the same command again"
                    )
                time.sleep(_LOCK_POLL)
            try:
                yield
            finally:
                if not local:
                    self.delete(path)

    def copy_to_local(self, path: str, target: Path) -> None:
        """Copy a file or folder to this machine, replacing what is there."""
        local = f"file://{target.absolute()}"  # Hadoop does not decode what as_uri() encodes
        self.delete(local)
        system, at = self._at(path)
        system.copyToLocalFile(False, at, self._hadoop.Path(local), True)

    def absolute(self, path: str) -> str:
        """Return the path with its scheme, as Spark would resolve it."""
        system, at = self._at(path)
        return str(system.makeQualified(at).toString())

    def scheme(self, path: str) -> str:
        """Return the scheme of a path; where it has none, that of the default file system."""
        uri, default = self._hadoop.Path(path).toUri(), self._hadoop.FileSystem.getDefaultUri
        return str(uri.getScheme() or default(self._conf).getScheme())

    def matches(self, pattern: str, name: str) -> bool:
        """Return whether a part of a path is one of those that a Hadoop pattern names."""
        return bool(self._hadoop.GlobPattern(pattern).matches(name))

    def _create(self, path: str) -> bool:
        """Make an empty file and return whether it was not there before.

        One of many callers gets True, where the file system creates files atomically (HDFS does;
        Hadoop's view of a local disk does not).
        """
        system, at = self._at(path)
        try:
            return bool(system.createNewFile(at))
        except Py4JJavaError:
            if self.exists(path):
                return False
            raise

    def _write(self, path: str, text: str) -> None:
        system, at = self._at(path)
        stream = system.create(at, True)
        stream.write(bytearray(text.encode()))
        stream.close()

    def _at(self, path: str) -> tuple[Any, Any]:
        """Return the file system of a path, and the path as Hadoop's."""
        at = self._hadoop.Path(path)
        return at.getFileSystem(self._conf), at


def _entry(status: Any) -> Entry:
    size, modified = int(status.getLen()), int(status.getModificationTime()) / 1000
    return Entry(str(status.getPath().toString()), size, modified, bool(status.isDirectory()))


def _kernel_lock(file: IO[str]) -> bool:
    """Lock an open file and return whether nobody else has."""
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
