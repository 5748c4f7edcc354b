from __future__ import annotations

import json
from pathlib import Path

import pytest

from udfs import devices, int16
from udfs.devices import (
    DeviceError,
    TaskSlot,
    choose,
    common_precision,
    describe,
    gains_by_int16,
    has_bf16,
)
from udfs.spec import ScorerSpec


@pytest.mark.parametrize(
    ("devices", "precision"),
    [
        (["cuda", "cuda"], "fp16"),
        (["cpu-bf16"], "bf16"),
        (["cpu-int16", "cpu-int16"], "int16"),
        (["cpu"], "fp32"),
        (["cpu-int16", "cpu"], "fp32"),
        (["cpu-bf16", "cpu"], "fp32"),
        (["cuda", "cpu-bf16"], "fp32"),
    ],
)
def test_auto_is_what_all_executors_do_well(devices: list[str], precision: str) -> None:
    assert common_precision(devices) == precision


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


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("avx2 fma", True), ("avx2 fma avx512f", False), ("avx2 fma avx512f avx512_bf16", False)],
)
def test_int16_pays_where_there_is_nothing_wider_than_avx2(
    flags: str, expected: bool, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int16, "lacking", lambda: None)
    file, model = tmp_path / "cpuinfo", tmp_path / "config.json"
    file.write_text(f"flags\t: fpu {flags}\n")
    config = json.loads((tiny_bert / "config.json").read_text())
    config |= {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128}
    model.write_text(json.dumps(config))
    assert gains_by_int16(tmp_path, cpuinfo=file) is expected
    assert not gains_by_int16(tmp_path, "eager", file)
    # Another activation than the kernels have, and no model at all.
    model.write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert not gains_by_int16(tmp_path, cpuinfo=file)
    model.unlink()
    assert not gains_by_int16(tmp_path, cpuinfo=file)


def test_a_model_that_int16_cannot_compute_makes_the_cpu_an_ordinary_one(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_bf16", lambda *_: False)
    monkeypatch.setattr(devices, "gains_by_int16", lambda model, *_: model == tiny_bert)
    slot = TaskSlot(cpus=1)
    draft = ScorerSpec("/m", "", device="cpu")
    assert describe(draft, slot, tiny_bert) == "cpu-int16"
    assert describe(draft, slot, tmp_path) == "cpu"


def test_where_it_cannot_be_told_there_is_no_bf16(tmp_path: Path) -> None:
    assert has_bf16(tmp_path / "none") is False


@pytest.mark.parametrize(("gpus", "found"), [(0, [None] * 3), (1, ["0"] * 3), (2, ["0", "1", "0"])])
def test_tasks_without_a_gpu_of_their_own_are_spread_over_all_there_are(
    gpus: int, found: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(devices, "may_have_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert [devices.spread(number) for number in range(3)] == found


def test_a_made_up_gpu_falls_back_to_the_cpu_unless_cuda_was_asked_for() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    slot = TaskSlot(cpus=1, gpu="0")
    assert choose("auto", slot).type == "cpu"
    with pytest.raises(DeviceError, match="torch finds no CUDA"):
        choose("cuda", slot)
