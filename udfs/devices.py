"""Device, number type and threads of this process; torch is imported where it is needed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from udfs.spec import Device

if TYPE_CHECKING:
    import torch

# Instruction sets whose bf16 matrix products beat fp32: Intel's and AMD's names, or Arm's.
_BF16: Final = re.compile(r"^(flags|Features)\b.*\s(avx512_|amx_)?bf16\b", re.MULTILINE)
# `nvidia-smi -L`: a line for each GPU, unless it is cut into MIG slices, and for each slice.
_LISTED: Final = re.compile(r"UUID: (MIG-[^)]+|GPU-[^)]+(?=\)(?!\n\s*MIG)))")
_VISIBLE: Final = "CUDA_VISIBLE_DEVICES"


class DeviceError(RuntimeError):
    """The device that was asked for is missing."""


def usable_cores() -> int:
    """Return the number of cores this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    return len(affinity(0)) if affinity else (os.cpu_count() or 1)


@dataclass(frozen=True)
class TaskSlot:
    """What Spark gives a task. Outside Spark, everything the process may use."""

    cpus: int = field(default_factory=usable_cores)  # one thread each
    gpu: str | None = None  # of `gpus`, see `find_gpu`


@cache
def gpus() -> tuple[str, ...]:
    """Return the GPUs that this process may use, in PCI order: UUIDs, or what its environment says.

    torch is not asked: it would start CUDA, after which no GPU can be chosen.
    """
    if (preset := os.environ.get(_VISIBLE)) is not None:
        names = [name.strip() for name in preset.split(",")]
        return tuple(name for name in names if name not in ("", "-1"))  # these hide all
    return tuple(_LISTED.findall(ask_driver("-L")))


def ask_driver(*arguments: str) -> str:
    """Return what nvidia-smi prints; nothing where there is none, or it fails."""
    try:
        return subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def has_gpu() -> bool:
    """Return whether this machine has a GPU and a torch with CUDA, without starting CUDA."""
    if not gpus():
        return False
    import torch

    return bool(torch.backends.cuda.is_built())  # type: ignore[no-untyped-call]


def find_gpu(address: str) -> str:
    """Return the GPU that an address of Spark means: a name of `gpus`, or a place in it from 0.

    Where a container shows one GPU of several, a number may lie beyond those seen.
    """
    known = gpus()
    if len(known) == 1 and address.isdigit():
        return known[0]
    named = address in known or not address.isdigit() or int(address) >= len(known)
    return address if named else known[int(address)]


def has_bf16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether this CPU multiplies bf16 matrices in hardware; False where it is unknown."""
    try:
        return bool(_BF16.search(cpuinfo.read_text(encoding="ascii", errors="replace")))
    except OSError:
        return False


def choose(wanted: Device, slot: TaskSlot) -> torch.device:
    """Return the torch device of a task: the GPU Spark gave it, else the first one, else the CPU.

    Raises:
        DeviceError: if CUDA was asked for by name and cannot be used, or if the GPU is none that
            this process, or this build of torch, can use.
    """
    import torch

    if wanted == "cpu" or not torch.cuda.is_available():
        if wanted == "cuda":
            raise DeviceError(f"model.device=cuda, but {_why_no_cuda()}; or set it to auto")
        return torch.device("cpu")
    visible = os.environ.get(_VISIBLE, "").split(",")
    index = 0 if slot.gpu is None else [*visible, slot.gpu].index(slot.gpu)
    if index >= torch.cuda.device_count():
        raise DeviceError(
            f"this worker has CUDA started without the GPU {slot.gpu} of its task; give every "
            "executor one GPU, or one MIG slice (spark.executor.resource.gpu.amount=1)"
        )
    built = [int(name) for name in re.findall(r"sm_(\d+)", " ".join(torch.cuda.get_arch_list()))]
    major, minor = torch.cuda.get_device_capability(index)
    if built and not any(chip // 10 == major and chip % 10 <= minor for chip in built):
        raise DeviceError(
            f"{torch.cuda.get_device_name(index)} is sm_{major}{minor}, and torch "
            f"{torch.__version__} is built for sm_{', sm_'.join(map(str, built))}; install another"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _why_no_cuda() -> str:
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA; install one with it"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        reason = "torch finds no GPU"
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
    return (
        f"torch {torch.__version__} cannot use a GPU on this executor ({reason}); give its tasks a "
        f"GPU and a driver for CUDA {torch.version.cuda} (13: driver 580 or newer)"
    )


def prepare_process(slot: TaskSlot) -> None:
    """Fix thread counts and GPUs before torch and the tokenizer start.

    One worker process per core with one thread each multiplies matrices about 1.4 times as fast
    as one process with as many threads, and Spark starts that many workers anyway.

    The task's GPU comes first among the visible ones, so that whatever uses a first device uses
    this one; the others follow, as Spark may give this process a task on another GPU later.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(slot.cpus))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if slot.cpus > 1 else "false")
    started = "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized()
    if slot.gpu and not started:
        others = [name for name in gpus() if name != slot.gpu]
        os.environ[_VISIBLE] = ",".join([slot.gpu, *others])
        os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    # Workers never go to the network; the driver has resolved the model already.
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(slot.cpus)
