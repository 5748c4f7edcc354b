"""Memory that this process has held, and recovery where none is left."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

_NO_MEMORY: Final = "DefaultCPUAllocator: can't allocate memory"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Peak:
    """The most that a scoring process has needed so far.

    Attributes:
        process_mb: memory of one process, libraries included [MB, 2^20 bytes].
        device_mb: memory of tensors on a GPU [MB, 2^20 bytes]; None without one.
        load_seconds: time to load the model [s].
    """

    process_mb: float = 0.0
    device_mb: float | None = None
    load_seconds: float = 0.0

    def __or__(self, other: Peak) -> Peak:
        """Return the larger of both, part by part."""
        devices = [mb for mb in (self.device_mb, other.device_mb) if mb is not None]
        return Peak(
            max(self.process_mb, other.process_mb),
            max(devices, default=None),
            max(self.load_seconds, other.load_seconds),
        )


def peak() -> Peak:
    """Return the memory that this process has held since it started."""
    return Peak(peak_process_mb(), _peak_device_mb())


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


def _peak_device_mb() -> float | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    devices = range(torch.cuda.device_count())
    return float(max(map(torch.cuda.max_memory_allocated, devices))) / 2**20
