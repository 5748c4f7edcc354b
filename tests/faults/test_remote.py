"""A remote model: what a kill costs, what a run leaves behind, and many pairs."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.runtime.errors import DONE, UNEXPECTED
from tests.conftest import Database
from tests.faults import oracle
from tests.faults.conftest import KILLED, Job
from tests.faults.launch import Driver
from tests.faults.test_quiet import TEXT, hits, write_pairs
from tests.remote_server import KEY, Server, logit_of, serving
from tests.spark.test_scale import watched
from tests.spark.test_scale import write_pairs as write_many

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

SLOTS, COMMIT = 2, 20
# Nothing is to go wrong in the workers themselves.
WORKERS = {"spark.python.daemon.module": "pyspark.daemon"}
ENVIRONMENT = {"RERANKER": KEY}  # no name that sounds like a secret


def asking(server: Server, **more: object) -> dict[str, object]:
    return {
        "model.backend": "remote", "remote.dialect": server.dialect, "remote.url": server.url,
        "remote.model": "m", "remote.key_env": "RERANKER", "spark.settings": WORKERS, **more,
    }  # fmt: skip


@pytest.mark.parametrize("tasks", [1, 5, 9])
def test_a_kill_costs_the_pairs_of_the_tasks_in_flight_at_most(
    tasks: int, job: Job, tmp_path: Path
) -> None:
    """`remote.commit` pairs for each task slot: what they have got is not in the store yet."""
    out = tmp_path / "out"
    with serving("cohere", delay=0.1) as server:
        keys = {"remote.commit": COMMIT, "remote.documents": 3, "remote.concurrency": 2}
        asked = replace(job, keys={**job.keys, **asking(server, **keys)})
        died = asked.run(out, None, Driver(f"tasks:{tasks}", str(out / "scores")),
                         environment=ENVIRONMENT)  # fmt: skip
        assert died.code == KILLED
        kept = len(oracle.stored(out))
        assert tasks <= kept / COMMIT + 1 and kept < 245
        time.sleep(3.0)  # workers end when they find no JVM to answer to
        before = sum(server.paid.values())
        assert before <= kept + SLOTS * COMMIT
        asked.finish(out, environment=ENVIRONMENT)
    assert len(server.paid) == 245
    assert sum(server.paid.values()) - 245 <= SLOTS * COMMIT
    assert max(server.paid.values()) <= 2
    counts = json.loads((out / "run.json").read_text())["counts"]
    assert (counts["from_store"], counts["scored"]) == (kept, 245 - kept)


@pytest.mark.parametrize("how", ["well", "badly"])
def test_neither_the_key_nor_a_text_is_in_anything_a_run_leaves(
    how: str, job: Job, database: Database, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    """Badly: the server quotes what it was sent, refuses some of it, and goes down."""
    aside, events = tmp_path_factory.mktemp("aside"), tmp_path / "events"
    write_pairs(aside / "pairs.jsonl")
    events.mkdir()
    settings = {
        **WORKERS,
        "spark.eventLog.enabled": "true", "spark.eventLog.dir": events.as_uri(),
        "spark.eventLog.compress": "false", "spark.eventLog.rolling.enabled": "false",
        "spark.local.dir": str(tmp_path / "local"),
    }  # fmt: skip

    def fault(number: int, docs: list[str]) -> str | None:
        if how == "well":
            return None
        return "503" if number > 20 else "400" if any(TEXT in doc for doc in docs) else None

    with serving("vllm", fault) as server:
        keys = asking(server, **{"remote.patience": 1.0, "remote.documents": 10})
        ended = Job(aside, {**job.keys, **keys}).run(
            tmp_path / "out", environment=ENVIRONMENT, input__path=aside / "pairs.jsonl",
            input__label="label", spark__settings=settings, mlflow__enabled=True,
            mlflow__tracking_uri=database(tmp_path / "mlflow.db"),
        )  # fmt: skip
    deadline = time.monotonic() + 60.0  # the JVM outlives its driver by its cleaning up
    while list((tmp_path / "local").glob("blockmgr-*")) and time.monotonic() < deadline:
        time.sleep(0.2)
    (tmp_path / "said").write_text(ended.out + ended.err)
    assert ended.code == (DONE if how == "well" else UNEXPECTED), ended.err[-3000:]
    assert '"Event":"SparkListenerTaskEnd"' in next(events.iterdir()).read_text()
    assert (how == "well") == (tmp_path / "out" / "report.html").exists()
    for needle in (TEXT, KEY):
        assert not hits(tmp_path, needle)
    assert not hits(aside, KEY)


def options(server: Server, source: Path, out: Path, key: Path) -> dict[str, object]:
    return {
        **asking(server), "remote.key_env": "", "remote.key_file": key, "input.path": source,
        "output.path": out, "mlflow.enabled": "false", "spark.master": f"local[{SLOTS}]",
        "spark.settings": "spark.ui.enabled=false",
    }  # fmt: skip


def test_a_hundred_thousand_pairs(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    memory = {}
    for pairs in (10_000, 100_000):
        source, out = tmp_path / f"{pairs}.parquet", tmp_path / f"{pairs}"
        write_many(source, pairs)
        with serving("cohere", delay=0.2) as server:
            driver, seconds = watched("jobs.rerank", options(server, source, out, tmp_path / "key"))
        assert len(server.paid) == pairs and set(server.paid.values()) == {1}
        assert server.most_waiting == SLOTS * 4
        record = json.loads((out / "run.json").read_text())
        assert record["counts"]["ranked"] == pairs
        memory[pairs] = (record["memory"]["process_mb"], driver / 1024)
        # A request per query, and one more where a query lies on the border of two tasks.
        assert len(server.started) <= pairs / 100 + pairs / 1000
        spent = server.started[-1] - server.started[0]
        print(f"{pairs:,} pairs: {seconds:.0f} s, {len(server.started):,} requests in "
              f"{spent:.0f} s, worker and driver {memory[pairs]} MB")  # fmt: skip
    (small, driver_small), (large, driver_large) = memory.values()
    assert large < small + 40 and driver_large < driver_small + 60
    ranked = pq.read_table(out / "ranked", columns=["query_id", "doc_id", "score"]).to_pandas()
    ranked = ranked.merge(pq.read_table(source).to_pandas(), on=["query_id", "doc_id"])
    exact = [logit_of(*pair) for pair in zip(ranked["query"], ranked["doc"], strict=True)]
    np.testing.assert_allclose(ranked["score"], exact, atol=1e-5)


def test_the_rate_of_the_whole_job_is_held(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    write_many(tmp_path / "pairs.parquet", 60_000)
    with serving("cohere", delay=0.1) as server:
        given = options(server, tmp_path / "pairs.parquet", tmp_path / "out", tmp_path / "key")
        watched("jobs.rerank", {**given, "remote.requests_per_minute": 900})
    started = np.array(server.started) - server.started[0]
    rate = (len(started) - 1) / started[-1] * 60
    in_a_minute = max(np.searchsorted(started, started + 30.0) - np.arange(len(started))) * 2
    print(f"{len(started)} requests: {rate:.0f} a minute, at most {in_a_minute / 2:.0f} in 30 s")
    assert rate == pytest.approx(900, rel=0.05)
