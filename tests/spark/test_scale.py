"""Millions of pairs: the whole job with a checksum in place of the model, and an evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# SCALE_PAIRS=10000000 asks for ten million, which take a quarter of an hour.
PAIRS = int(os.environ.get("SCALE_PAIRS", "1000000"))


def write_pairs(path: Path, pairs: int) -> None:
    """Distinct pairs of a hundred candidates a query, as long as web passages (about 56 words)."""
    generator = np.random.default_rng(5)
    words = np.array([f"w{i:03d}{'x' * (i % 7)}" for i in range(500)])
    schema = pa.schema(
        [(name, pa.string()) for name in ("query_id", "query", "doc_id", "doc")]
        + [("retrieval_score", pa.float64())]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, pairs, 20_000):
            rows = range(start, min(start + 20_000, pairs))
            counts = generator.integers(20, 92, len(rows))
            picks = generator.integers(0, len(words), (len(rows), 92))
            columns = [
                [f"q{i // 100}" for i in rows],
                [f"how do w{i // 100} and w{i // 1000} work" for i in rows],
                [f"d{i}" for i in rows],
                [
                    f"{i} " + " ".join(words[pick[:count]])
                    for i, pick, count in zip(rows, picks, counts, strict=True)
                ],
                [float(100 - i % 100) for i in rows],
            ]  # fmt: skip
            writer.write_table(pa.table(columns, schema=schema))


def run(source: Path, out: Path, model: Path) -> tuple[int, float]:
    """Run the job; return the Python driver's peak resident memory [kB] and the seconds taken."""
    options = {
        "input.path": source, "output.path": out, "model.name": model, "model.max_length": 64,
        "model.backend": "stub", "model.precision": "fp32", "mlflow.enabled": "false",
        "spark.master": "local[2]", "spark.settings": "spark.driver.memory=2g",
    }  # fmt: skip
    return watched("jobs.rerank", options)


def watched(
    module: str, options: Mapping[str, object], *, with_children: bool = False
) -> tuple[int, float]:
    """Run a command of its own; return its peak resident memory [kB] and the seconds taken.

    With its children, JVM and workers, what they share counts once for each.
    """
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    start = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", module, *words], cwd=ROOT, stdout=subprocess.DEVNULL
    ) as driver:
        peak = 0
        while driver.poll() is None:
            status = Path(f"/proc/{driver.pid}/status")
            if status.exists():
                lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
                peak = max(peak, int(lines.get("VmHWM", "0 kB").split()[0]))
            if with_children:
                peak = max(peak, _resident(driver.pid) // 1024)
            time.sleep(0.5)
    assert driver.returncode == 0
    return peak, time.monotonic() - start


def _resident(pid: int) -> int:
    """Return the memory of a process and all below it [bytes]."""
    total = 0
    with suppress(psutil.Error):
        whole = psutil.Process(pid)
        for process in [whole, *whole.children(recursive=True)]:
            with suppress(psutil.Error):
                total += process.memory_info().rss
    return total


def test_a_million_pairs_with_exact_counts_and_flat_driver_memory(
    tiny_bert: Path, tmp_path: Path
) -> None:
    peaks = {}
    for pairs in (PAIRS // 10, PAIRS):
        source, out = tmp_path / f"{pairs}.parquet", tmp_path / f"out-{pairs}"
        write_pairs(source, pairs)
        peaks[pairs], seconds = run(source, out, tiny_bert)
        counts = json.loads((out / "run.json").read_text())["counts"]
        assert counts == {
            "input": pairs, "collapsed": 0, "distinct": pairs, "from_store": 0, "scored": pairs,
            "ranked": pairs, "cut": 0, "rejected": 0, "truncated": 0, "queries": pairs // 100,
        }  # fmt: skip
        assert pq.read_table(out / "ranked", columns=["rank"]).num_rows == pairs
        sys.stdout.write(
            f"{pairs} pairs: {seconds:.1f} s, driver peak {peaks[pairs] // 1024} MiB\n"
        )
    # Ten times the pairs, the same driver: nothing of the data is collected.
    assert peaks[PAIRS] < peaks[PAIRS // 10] + 50 * 1024


def test_two_thousand_texts_of_five_megabytes_in_two_gigabytes(
    tiny_bert: Path, tmp_path: Path
) -> None:
    """A batch of them would not fit, on no release of Spark: on older ones rows are limited."""
    paragraph = " ".join(f"w{i:03d}" for i in range(200))
    texts = int(os.environ.get("SCALE_TEXTS", "2000"))
    source, out = tmp_path / "long.parquet", tmp_path / "out"
    schema = pa.schema([(name, pa.string()) for name in ("query_id", "query", "doc_id", "doc")])
    with pq.ParquetWriter(source, schema) as writer:
        for start in range(0, texts, 10):
            rows = range(start, start + 10)
            body = f"{paragraph} " * (5 * 2**20 // (len(paragraph) + 1))
            columns = [
                [f"q{i // 100}" for i in rows], ["which words"] * 10, [f"d{i}" for i in rows],
                [f"{i} {body}" for i in rows],
            ]  # fmt: skip
            writer.write_table(pa.table(columns, schema=schema))
    peak, seconds = run(source, out, tiny_bert)
    counts = json.loads((out / "run.json").read_text())["counts"]
    assert counts["scored"] == counts["ranked"] == texts
    assert counts["rejected"] == 0
    sys.stdout.write(f"{texts} texts: {seconds:.1f} s, driver peak {peak // 1024} MiB\n")


def write_ranked(folder: Path, pairs: int, *, with_rank: bool = False) -> None:
    """A ranked table of a hundred candidates a query, with labels of 0 to 2."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(6)
    for start in range(0, pairs, 500_000):
        at = np.arange(start, min(start + 500_000, pairs))
        label = generator.choice(3, len(at), p=[0.9, 0.07, 0.03])
        table = {
            "query_id": pa.array([f"q{i}" for i in at // 100]),
            "doc_id": pa.array([f"d{i}" for i in at]),
            "score": generator.normal(label, 2.0).astype(np.float32),
            "retrieval_score": generator.normal(label * 0.5, 1.0),
            "retrieval_rank": pa.nulls(len(at), pa.int32()),
            "n_tokens": generator.integers(20, 513, len(at)).astype(np.int32),
            "truncated": generator.random(len(at)) < 0.05,
            "label": label.astype(np.int32),
            **({"rank": (at % 100 + 1).astype(np.int32)} if with_rank else {}),
        }
        pq.write_table(pa.table(table), folder / f"part-{start}.parquet")


def test_ten_million_candidates_are_evaluated_in_linear_time(tmp_path: Path) -> None:
    """Within 4 GB for the JVM, in two tasks; the Python driver holds values per query only."""
    seconds = {}
    for pairs in (1_000_000, 10_000_000):
        ranked, out = tmp_path / f"{pairs}" / "ranked", tmp_path / f"out-{pairs}"
        write_ranked(ranked, pairs)
        options = {
            "ranked.path": ranked, "output.path": out, "mlflow.enabled": "false",
            "spark.master": "local[2]", "spark.settings": "spark.driver.memory=4g",
        }  # fmt: skip
        peak, seconds[pairs] = watched("jobs.evaluate", options)
        found = json.loads((out / "metrics.json").read_text())
        assert found["queries"] == pairs // 100
        histogram = found["moved"]["rank_change"]["histogram"]
        assert sum(count for _, count in histogram) == pairs
        sys.stdout.write(
            f"{pairs} candidates: {seconds[pairs]:.1f} s, driver peak {peak // 1024} MiB\n"
        )
    assert seconds[10_000_000] <= 11 * seconds[1_000_000]


def test_a_million_pairs_are_exported_within_four_gigabytes(tmp_path: Path) -> None:
    """For the driver, its JVM and all workers together."""
    source, ranked, out = tmp_path / "pairs.parquet", tmp_path / "ranked", tmp_path / "out"
    write_pairs(source, PAIRS)
    write_ranked(ranked, PAIRS, with_rank=True)
    options = {
        "ranked.path": ranked, "input.path": source, "output.path": out, "mlflow.enabled": "false",
        "spark.master": "local[2]", "spark.settings": "spark.driver.memory=2g",
    }  # fmt: skip
    peak, seconds = watched("jobs.export", options, with_children=True)
    counts = json.loads((out / "run.json").read_text())["counts"]
    assert 0.9 * PAIRS / 100 < counts["train"] + counts["dev"] <= PAIRS / 100
    lists = pq.read_table(out / "training", columns=["docs"]).num_rows
    assert lists == counts["train"] + counts["dev"]
    sys.stdout.write(f"{PAIRS} pairs exported: {seconds:.1f} s, peak {peak // 1024} MiB in all\n")
    assert peak < 4 * 2**20
