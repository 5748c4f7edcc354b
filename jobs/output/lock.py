"""Let one run at a time publish into a folder."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import IO, Final

from jobs.output.filesystem import Files, local_path
from jobs.runtime.errors import LockedError

_POLL: Final = 0.2  # s
_TIMEOUT: Final = 120.0  # s; what is locked takes a few renames


@contextmanager
def locked(files: Files, path: str) -> Iterator[None]:
    """Hold the lock file `path` for the body of the `with`, waiting for its present holder.

    On a local file system the kernel holds the lock and drops it when the process ends, however it
    ends; the empty file stays. Elsewhere the lock is that the file exists: one that a killed run
    has left must be deleted by hand, as nobody can tell it from the lock of a slow run.

    Args:
        files: the file system.
        path: absolute, with its scheme, in a folder that exists.

    Raises:
        LockedError: if another run holds it for longer than publishing can take.
    """
    local, deadline = local_path(path), time.monotonic() + _TIMEOUT
    with local.open("a") if local else nullcontext() as file:
        while not (_lock(file) if file else files.create(path)):
            if time.monotonic() > deadline:
                raise LockedError(
                    f"another run holds {path} for more than {_TIMEOUT:.0f} s, which publishing "
                    "does not take; if no run is under way, delete that file. Scores are kept: run "
                    "the same command again"
                )
            time.sleep(_POLL)
        try:
            yield
        finally:
            if not local:
                files.delete(path)


def _lock(file: IO[str]) -> bool:
    """Lock a file in the kernel; return whether nobody else has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
