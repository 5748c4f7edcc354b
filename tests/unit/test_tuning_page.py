"""What tuning writes: the document, the terminal's table, the page and the recommended file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from jobs.config import Config
from jobs.evaluation.report import render_tuning
from jobs.output.record import model_record, public_config
from jobs.runtime.cli import load_config
from jobs.tune.document import closing_summary, make_document, recommended_yaml
from tests.unit.test_tuning import LENGTHS, Machine
from udfs.checkpoint import Checkpoint

MODEL = Checkpoint(Path("/m"), "d" * 64, "BertForSequenceClassification", 512, 11_000_000)


def document(seconds: float = 60.0, fails: tuple[str, ...] = (), **tune: Any) -> dict[str, Any]:
    config = Config.model_validate(
        {"model": {"name": "embedded"}, "output": {"path": "out"}, "tune": tune}
    )
    rows, reference_at, pairs = Machine(fails).sweep(seconds, config.tune)
    record = {
        "started": "2026-03-01T00:00:00", "config": public_config(config), "device": "cpu-bf16",
        "model": {**model_record(config, MODEL), "positions": MODEL.positions}, "task_slots": 2,
        "counts": {"distinct": 10**6, "sampled": 40, "measured_on": len(pairs)}, "queries": 8,
    }  # fmt: skip
    return make_document(record, config, LENGTHS, rows, reference_at)


def test_what_failed_is_in_the_terminal_and_in_the_page() -> None:
    found = document(fails=("bf16",))
    assert "out of memory" in render_tuning(found)
    said = closing_summary(found, {"record": "file:/out/tune.json"})
    assert said.count("out_of_memory") == 9
    assert "recommended: model.precision fp32" in said and "file:/out/tune.json" in said


def test_nothing_acceptable_is_said_and_no_file_recommended() -> None:
    found = document(max_loss=0.0, min_tau=1.0)
    for row in found["rows"]:
        row["recommended"] = False
    found["recommended"] = None
    assert "No setting can be recommended" in render_tuning(found)
    assert "see tune.min_tau and tune.max_loss" in closing_summary(found, {})


def test_the_recommended_file_is_a_configuration(tmp_path: Path) -> None:
    found = document()
    file = tmp_path / "recommended.yaml"
    file.write_text(recommended_yaml(found))
    config = load_config(["--config", str(file)])
    assert config.model.precision == "bf16" and config.model.max_length == 256
    assert yaml.safe_load(file.read_text()) == found["recommended"]
    assert "pairs/s" in file.read_text()


def test_a_document_is_plain_values() -> None:
    found = document()
    assert json.loads(json.dumps(found)) == found
    cuts = found["lengths"]["cuts"]
    assert [cut["max_length"] for cut in cuts] == [64, 128, 160, 256, 512]
    assert cuts[-1]["cost"] == 1.0 and cuts[0]["cost"] < cuts[1]["cost"]
    # 1,000,000 pairs of 112.5 tokens at the recommended setting's speed.
    row = next(row for row in found["rows"] if row["recommended"])
    hours = 1e6 * float(np.mean(LENGTHS.whole)) / row["tokens_per_s"] / 3600
    assert cuts[-1]["slot_hours"] == pytest.approx(hours, rel=1e-3)
