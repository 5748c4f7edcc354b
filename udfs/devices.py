"""Which device, number type and how many threads this process scores with.

Standard library at import; torch is imported inside the functions that need it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from udfs.spec import Device, Precision, ScorerSpec

if TYPE_CHECKING:
    import torch

# Instruction sets whose bf16 matrix products beat fp32: Intel's and AMD's names, then Arm's.
_BF16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_CPUINFO: Final = Path("/proc/cpuinfo")

# Where the drivers of GPUs show up: NVIDIA's, WSL's, AMD's (which torch calls CUDA, too), Jetson's.
_GPU_NODES: Final = tuple(map(Path, ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd", "/dev/nvhost-ctrl")))


class DeviceError(RuntimeError):
    """The device that was asked for is not there."""


@dataclass(frozen=True)
class TaskSlot:
    """What Spark gave this task. Outside Spark, everything the process may use.

    Attributes:
        cpus: cores for this task [cores]; one thread each.
        gpu: address of the task's GPU as Spark's discovery script named it, or None.
    """

    cpus: int
    gpu: str | None = None


def process_slot() -> TaskSlot:
    """The slot of a process that is no Spark task: every core it may run on."""
    return TaskSlot(cpus=usable_cores())


def spread(number: int) -> str | None:
    """Address of a GPU for the task of this number, where Spark has given it none.

    Tasks are spread over all GPUs that this process sees; None where there is none.
    """
    if not may_have_gpu():
        return None
    import torch

    gpus = torch.cuda.device_count()
    return str(number % gpus) if gpus else None


def usable_cores() -> int:
    """Cores this process may run on. macOS has no affinity to ask for."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else (os.cpu_count() or 1)


def may_have_gpu() -> bool:
    """Whether this machine may have a GPU, found out without touching one."""
    return any(node.exists() for node in _GPU_NODES)


def has_bf16(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware. False where it cannot be told."""
    return bool(_BF16_FLAGS & _flags(cpuinfo))


def describe(draft: ScorerSpec, slot: TaskSlot) -> str:
    """What this process would score on with this model: `cuda`, `cpu-bf16` or `cpu`.

    Args:
        draft: the scorer, but for its precision.
        slot: cores and GPU of the calling task.
    """
    if choose(draft.device, slot).type == "cuda":
        return "cuda"
    return "cpu-bf16" if has_bf16() else "cpu"


def common_precision(devices: Iterable[str]) -> Precision:
    """The precision that `auto` means for all these devices (values of `describe`) together.

    fp16 on CUDA; bf16 on CPUs that have the instructions; else fp32. fp16 on a CPU is several times
    slower than fp32.
    Mixed clusters get fp32, as a score must not depend on the executor.
    """
    kinds = set(devices)
    by_kind: Mapping[str, Precision] = {"cuda": "fp16", "cpu-bf16": "bf16"}
    return by_kind.get(kinds.pop(), "fp32") if len(kinds) == 1 else "fp32"


def _flags(cpuinfo: Path) -> set[str]:
    """Names of the instruction sets that this machine's CPUs have."""
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()
    flags = (line.split(":", 1)[1] for line in lines if line.startswith(("flags", "Features")))
    return {flag for line in flags for flag in line.split()}


def choose(wanted: Device, slot: TaskSlot) -> torch.device:
    """The torch device for a task: the GPU Spark gave it, else the first one, else the CPU.

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
