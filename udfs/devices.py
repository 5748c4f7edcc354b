"""Device, number type and threads of this process; torch is imported where it is needed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from udfs.spec import Device

if TYPE_CHECKING:
    import torch

# Instruction sets whose bf16 matrix products beat fp32: Intel's and AMD's names, or Arm's.
_BF16: Final = re.compile(r"^(flags|Features)\b.*\s(avx512_|amx_)?bf16\b", re.MULTILINE)
# Where the drivers of GPUs show up: NVIDIA's, WSL's, AMD's (which torch calls CUDA, too), Jetson's.
_GPU_NODES: Final = tuple(map(Path, ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvhost-ctrl")))


class DeviceError(RuntimeError):
    """The device that was asked for is missing."""


def usable_cores() -> int:
    """Return the number of cores this process may run on. macOS has no affinity to ask for."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else (os.cpu_count() or 1)


@dataclass(frozen=True)
class TaskSlot:
    """What Spark gives a task. Outside Spark, everything the process may use."""

    cpus: int = field(default_factory=usable_cores)  # one thread each
    gpu: str | None = None  # address of its GPU as Spark's discovery script names it


@cache
def gpu_count() -> int:
    """Return the number of GPUs that torch can use; it is imported only where there may be one."""
    if not any(node.exists() for node in _GPU_NODES):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this CPU multiplies bf16 matrices in hardware; False where it is unknown."""
    try:
        return bool(_BF16.search(cpuinfo.read_text(encoding="ascii", errors="replace")))
    except OSError:
        return False


def choose(wanted: Device, slot: TaskSlot) -> torch.device:
    """Return the torch device of a task: the GPU Spark gave it, else the first one, else the CPU.

    Spark does not set CUDA_VISIBLE_DEVICES, so the address has to be passed on. Where a container
    already hides the other GPUs, addresses beyond the visible ones mean the only one left.

    Raises:
        DeviceError: if CUDA was asked for by name and this process has none.
    """
    import torch

    usable = torch.cuda.is_available()
    if wanted == "cpu" or (wanted == "auto" and not usable):
        return torch.device("cpu")
    if not usable:
        raise DeviceError(
            "model.device=cuda, but torch finds no CUDA on this executor; install a CUDA build of "
            "torch and schedule the task on a GPU, or set model.device to auto"
        )
    address = slot.gpu or "0"
    index = int(address) if address.isdigit() else 0
    return torch.device("cuda", index if index < torch.cuda.device_count() else 0)


def prepare_process(slot: TaskSlot) -> None:
    """Fix thread counts before torch and the tokenizer start theirs.

    One worker process per core with one thread each multiplies matrices about 1.4 times as fast
    as one process with as many threads, and Spark starts that many workers anyway.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(slot.cpus))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if slot.cpus > 1 else "false")
    # Read when CUDA is first used: lets batches of different shapes reuse freed memory.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    # Workers never go to the network; the driver has resolved the model already.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(slot.cpus)
