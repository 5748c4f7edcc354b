"""How much memory this process has held, and what to do when there is none left."""

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
    """The most memory that scoring has taken, up to now.

    Attributes:
        process_mb: held by one process at once, libraries included [MB, 2^20 bytes].
        device_mb: held by tensors on a GPU at once [MB, 2^20 bytes]; None without one.
    """

    process_mb: float = 0.0
    device_mb: float | None = None

    def __or__(self, other: Peak) -> Peak:
        """The larger of both, part by part."""
        devices = [mb for mb in (self.device_mb, other.device_mb) if mb is not None]
        return Peak(max(self.process_mb, other.process_mb), max(devices, default=None))


def peak() -> Peak:
    """What this process has held since it started."""
    return Peak(peak_process_mb(), _peak_device_mb())


def peak_process_mb(status: Path = Path("/proc/self/status")) -> float:
    """Most memory this process has held [MB, 2^20 bytes]."""
    try:
        lines = status.read_text(encoding="ascii").splitlines()
        most = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
        return int(most) / 1024
    except (OSError, StopIteration):
        # Bytes on macOS, kilobytes elsewhere.
        unit = 2**20 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def unless_full(run: Callable[[], _T]) -> _T | None:
    """What `run` returns; None where memory ran out, of a GPU or of the machine.

    A retry is for the caller, after this has returned: inside `except` the traceback still holds
    the tensors that have to be freed first.
    """
    import torch

    try:
        return run()
    except (torch.OutOfMemoryError, MemoryError):
        pass
    except RuntimeError as error:
        # torch has a class of its own for a GPU that is full, and none for a CPU.
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
