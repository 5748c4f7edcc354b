"""The benchmark as a user calls it: every way on a handful of pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.runtime.errors import DONE
from tests.benchmark.__main__ import main

# Every way starts processes of its own; tests/unit/test_benchmark.py has the quick parts.
pytestmark = pytest.mark.slow

KEYS = {
    "what", "mix", "shape", "precision", "pairs_per_s", "tokens_per_s", "padding",
    "peak_memory_mb", "max_abs_difference",
}  # fmt: skip


def bench(out: Path, *words: str) -> dict[str, Any]:
    common = ["--model.name", "embedded", "--bench.rounds", "1", "--bench.pairs", "40"]
    code = main([*common, "--spark.master", "local[2]", "--output.path", str(out), *words])
    assert code == DONE
    content: dict[str, Any] = json.loads(out.read_text())
    assert all(set(row) >= KEYS for row in content["rows"])
    return content


def test_all_ways_agree_on_the_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bench(tmp_path / "bench.json", "--bench.mixes", "web", "--model.precision", "fp32")
    rows = {row["what"]: row for row in content["rows"]}
    assert set(rows) == {
        "engine", "job", "sentence_transformers", "sentence_transformers_bf16", "flagembedding",
        "predict_batch_udf",
    }  # fmt: skip
    for name, row in rows.items():
        assert row["max_abs_difference"] < (0.3 if name.endswith("bf16") else 1e-4), name
        assert row["seconds_with_start_up"][0] > row["seconds"][0]
    assert content["lanes"] == 2
    engine = rows["engine"]
    assert engine["pairs_per_s"] == pytest.approx(40 / engine["seconds"][0], rel=0.01)
    assert rows["job"]["padding"] <= 64 * 4 / 4_000
    assert content["ratio"] == pytest.approx(
        rows["predict_batch_udf"]["seconds_with_start_up"][0]
        / rows["job"]["seconds_with_start_up"][0],
        abs=0.001,
    )
    assert f"median ratio {content['ratio']:.2f}" in capsys.readouterr().out
