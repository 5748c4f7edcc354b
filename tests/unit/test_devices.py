from __future__ import annotations

from pathlib import Path

import pytest

from udfs.devices import (
    DeviceError,
    TaskSlot,
    choose,
    has_bf16,
)


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


def test_a_made_up_gpu_falls_back_to_the_cpu_unless_cuda_was_asked_for() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    slot = TaskSlot(cpus=1, gpu="0")
    assert choose("auto", slot).type == "cpu"
    with pytest.raises(DeviceError, match="torch finds no CUDA"):
        choose("cuda", slot)
