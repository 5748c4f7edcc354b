"""The watcher of tests/faults can fail: what it must see is put before it here."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.faults.oracle import Watcher


def publish(out: Path, run: str, rows: int, *, counted: int | None = None) -> None:
    (out / "run.json").unlink(missing_ok=True)
    for name in ("ranked", "rejects"):
        (out / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"rank": range(rows)}), out / name / "part-0.parquet")
    counts = {"ranked": counted or rows, "rejected": rows}
    (out / "new.json").write_text(json.dumps({"run_id": run, "counts": counts}))
    (out / "new.json").replace(out / "run.json")  # as a run does, whole
    time.sleep(0.1)


def test_whole_results_in_their_turn_are_well(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path / "out")
    publish(tmp_path / "out", "a", 3)
    publish(tmp_path / "out", "b", 5)
    watcher.stop()


def test_a_table_that_is_not_what_the_record_counts_is_seen(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path)
    publish(tmp_path, "a", 3, counted=4)
    publish(tmp_path, "b", 4)
    with pytest.raises(AssertionError, match="run a"):
        watcher.stop()


def test_a_result_that_is_emptier_for_a_moment_is_seen(tmp_path: Path) -> None:
    publish(tmp_path, "a", 5)
    watcher = Watcher(tmp_path)
    publish(tmp_path, "b", 0)
    publish(tmp_path, "c", 6)
    with pytest.raises(AssertionError, match="'b': 0"):
        watcher.stop()
