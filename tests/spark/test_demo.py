"""`make demo`: the embedded sample with the embedded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs.demo import FOLDER
from jobs.demo.__main__ import main
from jobs.runtime.errors import DONE
from tests import build_sample
from tests.sample import EVERY_QUERY
from udfs.checkpoint import inspect_checkpoint


@pytest.mark.slow
def test_the_demo_reranks_the_sample_and_shows_it(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "demo")]) == DONE
    said = capsys.readouterr().out
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert metrics["queries"] == EVERY_QUERY
    assert metrics["delta"]["nDCG@10"] > 0
    start_up = json.loads((tmp_path / "demo" / "run.json").read_text())["start_up"]
    assert set(start_up) == {"session", "model_load"}
    assert all(seconds is not None for seconds in start_up.values())
    for part in ("before (BM25)", "after (cross-encoder)", "nDCG@10", str(tmp_path / "demo")):
        assert part in said


def test_the_embedded_files_are_small_enough_to_travel() -> None:
    total = sum(file.stat().st_size for file in FOLDER.rglob("*") if file.suffix != ".pyc")
    assert total <= 45 * 10**6
    assert inspect_checkpoint(FOLDER / "model").positions == 512
    assert (FOLDER / "model" / "MODEL_CARD.md").is_file()


def test_the_samples_bm25_scores_are_computed_and_not_invented() -> None:
    assert build_sample.main(["--check"]) == 0
