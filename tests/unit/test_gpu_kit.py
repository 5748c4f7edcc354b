"""The kit for GPU machines runs on a CPU, with what such machines have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.benchmark.gpu_profile import KINDS
from tests.benchmark.gpu_report import flop_of
from tests.conftest import ROOT

# What a machine with torch and transformers need not have.
ABSENT = (
    "jobs", "pyspark", "pydantic", "pydantic_settings", "pandas", "pyarrow", "mlflow",
    "ir_measures", "psutil",
)  # fmt: skip


def run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the kit; it and the processes that it starts cannot import what is absent."""
    block = f"import sys; sys.modules.update(dict.fromkeys({ABSENT!r}, None))\n"
    (tmp_path / "sitecustomize.py").write_text(block, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "tests.benchmark.gpu", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_kit_measures_without_spark_and_jobs(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    ended = run(
        tmp_path, "--device=cpu", "--pairs=24", "--window=8", "--mixes=40", "--rounds=1",
        "--ways=engine,engine_padded,engine_2", "--sweep=512", f"--json={out}",
        f"--markdown={tmp_path}/gpu.md",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [row["what"] for row in found["rows"]] == [
        "engine", "engine_padded", "engine_2"
    ]  # fmt: skip
    for row in found["rows"]:
        assert "error" not in row
        assert row["pairs_per_s"] * 40 == pytest.approx(row["tokens_per_s"], rel=0.02)
        assert row["share_of_peak"] > 0
        assert row["spread"] > 0.01
        assert row["max_abs_difference"] < 1e-3 * row["spread"]
    assert found["matrix_peak"]["fp32"] > 0
    assert [row["max_tokens"] for row in found["sweep"]] == [512]
    assert set(found["profile"]["shares"]) == set(KINDS)
    assert found["profile"]["top"]
    table = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert table.strip() == ended.stdout.strip()
    assert "| 40 | engine_2 | fp32 |" in table


def test_work_is_counted_from_the_models_shape(tmp_path: Path) -> None:
    """By hand: two layers, width 2, inner 3, pairs of 1 and 2 tokens."""
    shape = {"hidden_size": 2, "intermediate_size": 3, "num_hidden_layers": 2}
    (tmp_path / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    products = 2 * (4 * 2 * 2 + 2 * 2 * 3) * 3
    attention = 4 * 2 * (1 + 4)
    assert flop_of(tmp_path, np.array([1, 2])) == 2 * (products + attention)
