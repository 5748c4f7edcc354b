from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT
from udfs import devices
from udfs.devices import DeviceError, TaskSlot, choose, find_gpu, gpus, has_bf16, prepare_process

A, B = "GPU-aaaaaaaa-1", "GPU-bbbbbbbb-2"
SMI = f"""#!/bin/sh
echo "GPU 0: NVIDIA H100 (UUID: {A})"
echo "GPU 1: NVIDIA H100 (UUID: {B})"
"""
MIG = """#!/bin/sh
echo "GPU 0: NVIDIA A100 (UUID: GPU-aaaaaaaa-1)"
echo "  MIG 3g.20gb     Device  0: (UUID: MIG-1)"
echo "  MIG 3g.20gb     Device  1: (UUID: MIG-2)"
echo "GPU 1: NVIDIA A100 (UUID: GPU-bbbbbbbb-2)"
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in front of PATH, where a test may put a `nvidia-smi` of its own."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.setenv(name, "")  # noted, so that it is put back
        monkeypatch.delenv(name)
    gpus.cache_clear()
    yield tmp_path
    gpus.cache_clear()


def install(machine: Path, script: str) -> None:
    (machine / "nvidia-smi").write_text(script)
    (machine / "nvidia-smi").chmod(0o755)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx512f avx512_bf16 amx_tile", True),
        ("flags\t\t: fpu avx512f amx_bf16", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx2 avx512f", False),
        ("model name\t: bf16 in name only", False),
    ],
)
def test_bf16_is_read_from_the_cpus_flags(tmp_path: Path, line: str, expected: bool) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{line}\n")
    assert has_bf16(file) is expected


def test_where_it_cannot_be_told_there_is_no_bf16(tmp_path: Path) -> None:
    assert has_bf16(tmp_path / "none") is False


@pytest.mark.parametrize(
    ("script", "preset", "expected"),
    [
        (SMI, None, (A, B)),
        (MIG, None, ("MIG-1", "MIG-2", B)),
        (SMI, "2,3", ("2", "3")),
        (SMI, "", ()),
        (SMI, "-1", ()),
        ("#!/bin/sh\nexit 9\n", None, ()),
        (None, None, ()),
    ],
)
def test_gpus_are_listed_without_torch(
    machine: Path, monkeypatch: pytest.MonkeyPatch, script: str | None,
    preset: str | None, expected: tuple[str, ...],
) -> None:  # fmt: skip
    if script:
        install(machine, script)
    elif Path("/usr/bin/nvidia-smi").exists():
        pytest.skip("this machine has a driver")
    if preset is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", preset)
    assert gpus() == expected


@pytest.mark.parametrize(
    ("script", "preset", "address", "expected"),
    [
        (SMI, None, "1", B),  # Spark's own discovery script gives numbers
        (SMI, None, B, B),  # gpus.sh gives UUIDs
        (MIG, None, "MIG-2", "MIG-2"),
        (SMI, "2,3", "3", "3"),  # counted over all GPUs
        (SMI, "2,3", "0", "2"),  # counted over the visible ones
        (SMI, B, "5", B),  # a container shows one of several
        ("#!/bin/sh\nexit 9\n", None, "0", "0"),
    ],
)
def test_an_address_of_spark_is_one_gpu(
    machine: Path, monkeypatch: pytest.MonkeyPatch, script: str, preset: str | None,
    address: str, expected: str,
) -> None:  # fmt: skip
    """With CUDA_VISIBLE_DEVICES=2,3 both addresses, and every UUID, once meant the first GPU."""
    install(machine, script)
    if preset is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", preset)
    assert find_gpu(address) == expected


def test_the_discovery_script_prints_what_the_worker_understands(machine: Path) -> None:
    for script, expected in ((SMI, [A, B]), (MIG, ["MIG-1", "MIG-2", B])):
        install(machine, script)
        printed = subprocess.run(
            ["sh", str(ROOT / "conf/cluster/gpus.sh")], capture_output=True, text=True, check=True
        ).stdout
        assert printed == f'{{"name": "gpu", "addresses": {expected}}}\n'.replace("'", '"')
        gpus.cache_clear()
        assert list(gpus()) == expected


def test_a_workers_gpu_is_the_first_visible_one(machine: Path) -> None:
    install(machine, SMI)
    prepare_process(TaskSlot(1, B))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == f"{B},{A}"
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_cuda_is_not_started_before_the_gpu_is_chosen(machine: Path) -> None:
    """In a process of its own: what is visible is fixed for good when CUDA starts."""
    install(machine, SMI)
    program = """
import sys, os
import jobs.rerank, udfs.udf
from jobs.config.scoring import ModelConfig
from jobs.scoring.stage import resolve_precision
from udfs.devices import TaskSlot, find_gpu, has_gpu, prepare_process
slot = TaskSlot(1, find_gpu("1"))
assert "torch" not in sys.modules
resolve_precision(ModelConfig(name="m"), gpu=has_gpu())
import torch.cuda
assert not torch.cuda.is_initialized()
torch.cuda._lazy_init = torch.cuda.is_available = torch.cuda.device_count = None
prepare_process(slot)
print(os.environ["CUDA_VISIBLE_DEVICES"])
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert ended.stdout == f"{B},{A}\n"


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A torch that sees two GPUs; the devices that were made current."""
    current: list[int] = []
    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: bool(current),
        "device_count": lambda: 2,
        "get_arch_list": lambda: ["sm_75", "sm_80", "sm_90", "sm_100"],
        "get_device_capability": lambda _index: (8, 9),
        "get_device_name": lambda _index: "NVIDIA L4",
        "set_device": current.append,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return current


def test_a_worker_that_gets_another_gpu_uses_it(machine: Path, cuda: list[int]) -> None:
    install(machine, SMI)
    for gpu in (B, A, B):
        slot = TaskSlot(1, gpu)
        prepare_process(slot)
        choose("auto", slot)
    assert cuda == [0, 1, 0]
    with pytest.raises(DeviceError, match=r"without the GPU GPU-c .* one GPU"):
        choose("auto", TaskSlot(1, "GPU-c"))


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((8, 9), True), ((9, 0), True), ((10, 0), True), ((7, 0), False), ((12, 0), False)],
)
def test_a_gpu_that_torch_is_not_built_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, cuda: list[int], capability: tuple[int, int], runs: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _index: capability)
    if runs:
        assert choose("cuda", TaskSlot(1)).type == "cuda"
        return
    with pytest.raises(DeviceError, match=r"is sm_\d+, and torch .* is built for sm_75, sm_80"):
        choose("cuda", TaskSlot(1))


def test_without_cuda_auto_is_the_cpu_and_cuda_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    slot = TaskSlot(1, "0")
    assert choose("auto", slot).type == "cpu"
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(DeviceError, match="a build without CUDA; install"):
        choose("cuda", slot)


def test_a_driver_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old\n(found version 12020).")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", too_old)
    with pytest.raises(DeviceError, match=r"too old \(found version 12020\).*13\.0 .*580"):
        devices.choose("cuda", TaskSlot(1))
