"""One run at a time in a folder's critical moment."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from jobs.output.filesystem import Files
from jobs.runtime.errors import LockedError

_LOCAL: Final = "file:"
_PAUSE: Final = 0.2  # s
_PATIENCE: Final = 120.0  # s; what is locked takes a few renames


@contextmanager
def locked(files: Files, path: str) -> Iterator[None]:
    """Hold the lock file `path` for the body of the `with`; wait for whoever holds it.

    On a file system of this machine the kernel keeps the lock and drops it when its holder dies,
    however it dies; the empty file stays. Elsewhere the lock is that the file exists, and one that
    a killed run has left has to be deleted by hand: nobody else can tell it from a slow run's.

    Args:
        files: the file system.
        path: absolute, with its scheme, in a folder that exists.

    Raises:
        LockedError: if another run holds it for longer than its work can take.
    """
    hold = _kernel_lock if path.startswith(_LOCAL) else _lock_by_name
    deadline = time.monotonic() + _PATIENCE
    with hold(files, path, deadline):
        yield


@contextmanager
def _kernel_lock(_: Files, path: str, deadline: float) -> Iterator[None]:
    with Path(path.removeprefix("file://").removeprefix(_LOCAL)).open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _wait(path, deadline)
        yield


@contextmanager
def _lock_by_name(files: Files, path: str, deadline: float) -> Iterator[None]:
    while not files.create(path):
        _wait(path, deadline)
    try:
        yield
    finally:
        files.delete(path)


def _wait(path: str, deadline: float) -> None:
    if time.monotonic() > deadline:
        raise LockedError(
            f"another run holds {path} for more than {_PATIENCE:.0f} s, which moving results into "
            "place does not take; if none is under way, delete that file. Scores are kept: start "
            "the same command again"
        )
    time.sleep(_PAUSE)
