"""The benchmark's own parts: mixes, arithmetic, memory. What it runs is run by a Spark test."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.runtime.errors import RefusedError
from jobs.scoring.models import embedded_model
from tests.benchmark.config import BenchConfig, BenchmarkConfig
from tests.benchmark.engine import prepare
from tests.benchmark.memory import MemoryWatch
from tests.benchmark.mixes import write_pairs
from tests.benchmark.peers import sentence_transformers
from tests.benchmark.rounds import ratio
from tests.benchmark.shapes import SHAPES
from tests.benchmark.task import Task
from tests.benchmark.texts import lengths_of
from udfs.encoding.pairs import PairEncoder
from udfs.spec import ScorerSpec


def config(**bench: object) -> BenchmarkConfig:
    return BenchmarkConfig.model_validate({"bench": bench})


@pytest.mark.parametrize(("mix", "p50", "p95"), [("short", 40, 77), ("web", 100, 210),
                                                 ("long", 430, 900)])  # fmt: skip
def test_a_mix_has_the_lengths_of_its_name(mix: str, p50: int, p95: int) -> None:
    lengths = lengths_of(mix, 20_000, 512)
    assert np.percentile(lengths, 50) == pytest.approx(p50, rel=0.03)
    assert np.percentile(lengths, 95) == pytest.approx(p95, rel=0.03)


def test_a_tenth_of_the_skewed_mix_is_as_long_as_can_be() -> None:
    lengths = lengths_of("skewed", 20_000, 512)
    assert (lengths == 512).mean() == pytest.approx(0.1, abs=0.01)
    assert np.median(lengths) == pytest.approx(42, abs=2)


def test_made_up_texts_have_the_lengths_they_were_made_for(tmp_path: Path) -> None:
    """In tokens of the embedded model, special ones included."""
    path = tmp_path / "web.parquet"
    assert write_pairs(config(pairs=150), "web", path) == 150
    table = pq.read_table(path).to_pydict()
    encoder = PairEncoder(embedded_model(), ScorerSpec(str(embedded_model()), ""))
    found = encoder.encode(table["query"], table["doc"]).lengths
    np.testing.assert_array_equal(found, lengths_of("web", 150, 512))
    assert len(set(table["query"])) == 2  # a hundred candidates share a query


def test_given_pairs_are_read_by_their_names_and_sampled(tmp_path: Path) -> None:
    rows = {"qid": list("abcd"), "q": list("efgh"), "did": list("ijkl"), "d": list("mnop")}
    pq.write_table(pa.table(rows), tmp_path / "in.parquet")
    names = {"query_id": "qid", "query": "q", "doc_id": "did", "doc": "d"}
    source = {"path": str(tmp_path / "in.parquet"), **names}
    given = BenchmarkConfig.model_validate({"input": source, "bench": {"pairs": 3}})
    assert write_pairs(given, "given", tmp_path / "out.parquet") == 3
    found = pq.read_table(tmp_path / "out.parquet").to_pylist()
    whole = [dict(zip(("query_id", "query", "doc_id", "doc"), row, strict=True))
             for row in zip(*rows.values(), strict=True)]  # fmt: skip
    assert all(row in whole for row in found)
    with pytest.raises(RefusedError, match=r"needs input\.path"):
        write_pairs(config(), "given", tmp_path / "out.parquet")
    wrong = BenchmarkConfig.model_validate({"input": {"path": source["path"]}})
    with pytest.raises(RefusedError, match="query_id, query, doc_id, doc"):
        write_pairs(wrong, "given", tmp_path / "out.parquet")


def test_every_shape_that_can_be_asked_for_is_known() -> None:
    kinds = BenchConfig.model_json_schema()["properties"]["shape"]["anyOf"]
    assert set(kinds[0]["enum"]) == set(SHAPES)


def test_the_ratio_is_the_median_of_the_rounds_and_not_of_the_sums() -> None:
    rows = [{"what": "a", "seconds": [1.0, 2.0, 10.0]}, {"what": "b", "seconds": [2.0, 6.0, 11.0]}]
    assert ratio(rows, "a", "b") == 2.0
    assert ratio(rows, "a", "c") is None


@pytest.mark.skipif(not Path("/proc").exists(), reason="memory is read from /proc")
def test_memory_of_children_counts_too() -> None:
    hold = "import time; held = bytearray(200_000_000); print(flush=True); time.sleep(30)"
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    parent = subprocess.Popen([sys.executable, "-c", command], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    try:
        with MemoryWatch(parent.pid) as watch:
            parent.stdout.readline()
            time.sleep(1.2)
        assert watch.peak is not None
        assert 200 < watch.peak < 300
    finally:
        for process in psutil.Process(parent.pid).children():
            process.kill()
        parent.wait()


def test_the_engines_lanes_score_what_the_peer_scores(tiny_bert: Path, tmp_path: Path) -> None:
    """Two lanes share the pairs out; together they have every one, as sentence-transformers."""
    pytest.importorskip("sentence_transformers")
    given = BenchmarkConfig.model_validate(
        {"model": {"max_length": 48}, "batching": {"window": 8}, "bench": {"pairs": 40}}
    )
    write_pairs(given, "short", tmp_path / "short.parquet")
    task = Task(
        "engine", given.model_dump(mode="json"), str(tiny_bert), str(tmp_path / "short.parquet"),
        str(tmp_path), "fp32", 2, time.time(),
    )  # fmt: skip
    expected = sentence_transformers(task)
    found = {}
    for lane in range(2):
        rows, logits, padding = prepare(task, lane)()
        found |= dict(zip(rows, logits, strict=True))
        assert padding < 64 * 3  # three windows of one batch each
    np.testing.assert_allclose([found[row] for row in range(40)], expected.scores, atol=1e-4)
