"""Limits of this process: memory, recovery where none is left, and the time of a batch."""

from __future__ import annotations

import faulthandler
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

_NO_MEMORY: Final = "DefaultCPUAllocator: can't allocate memory"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Peak:
    """The most that a scoring process has needed so far; 1 MB is 2^20 bytes."""

    process_mb: float = 0.0  # memory of one process, libraries included
    device_mb: float | None = None  # memory of tensors on a GPU; None without one
    load_seconds: float = 0.0  # time to load the model


def peak() -> Peak:
    """Return the memory that this process has held since it started."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return Peak(peak_process_mb())
    devices = range(torch.cuda.device_count())
    return Peak(peak_process_mb(), max(map(torch.cuda.max_memory_allocated, devices)) / 2**20)


def peak_process_mb(status: Path = Path("/proc/self/status")) -> float:
    """Return the most memory this process has held [MB, 2^20 bytes]."""
    try:
        lines = status.read_text(encoding="ascii").splitlines()
        most = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
        return int(most) / 1024
    except (OSError, StopIteration):
        # Bytes on macOS, kilobytes elsewhere.
        unit = 2**20 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def catch_oom(run: Callable[[], _T]) -> _T | None:
    """Return the result of `run`; None where a GPU or the machine is out of memory.

    The caller retries after this has returned: inside `except` the traceback still holds the
    tensors that have to be freed first.
    """
    import torch

    try:
        return run()
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        # torch has an exception class for a full GPU, and none for a CPU.
        if _NO_MEMORY not in str(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """End this process if the body of the `with` takes longer than this [s]; 0: no limit.

    For Python workers, whose task Spark starts again in another process. The timer is a thread of
    C code, so it also ends a body that never gives the interpreter back (a driver call, a
    deadlocked lock). A stack of each thread, without any value, goes to stderr.
    """
    if seconds:
        faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        if seconds:
            faulthandler.cancel_dump_traceback_later()
