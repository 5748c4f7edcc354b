"""Limits of this process: memory, recovery where none is left, and the time of a batch."""

import faulthandler
import os
import re
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

from udfs.devices import ask_driver

# How torch says that there is no memory, where it has no exception of its own for it: on CPUs, in
# cuBLAS, for pinned memory of the host, and for kernels that are loaded on first use.
_NO_MEMORY: Final = (
    "DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA error: out of memory", "CUDA driver error: out of memory",
    "CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate",  # on a GPU that is full
)  # fmt: skip
_T = TypeVar("_T")


@dataclass(frozen=True)
class Peak:
    """The most that a scoring process has needed so far; 1 MB is 2^20 bytes."""

    process_mb: float = 0.0  # memory of one process, libraries included
    device_mb: float | None = None  # memory of this process on a GPU; None without one
    load_seconds: float = 0.0  # time to load the model
    rescored: float = 0.0  # share of its pairs scored again, as their logit was no number


def peak() -> Peak:
    """Return the memory that this process has held since it started."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return Peak(peak_process_mb())
    devices = range(torch.cuda.device_count())
    reserved = max(map(torch.cuda.max_memory_reserved, devices)) / 2**20
    return Peak(peak_process_mb(), reserved + _context_mb())


@cache
def _context_mb() -> float:
    """Memory of CUDA itself in this process [MB]; 0 where nvidia-smi cannot see the process."""
    import torch

    used = ask_driver("--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
    own = re.search(rf"^{os.getpid()}, (\d+)$", used, re.MULTILINE)
    return max(float(own[1]) - torch.cuda.memory_reserved() / 2**20, 0.0) if own else 0.0


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
        if not any(words in str(error) for words in _NO_MEMORY):
            raise
    free_unused()
    return None


def free_unused() -> None:
    """Give memory of a GPU back that this process has released, for others to use."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


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
