"""Kill -9 of a worker, an executor, and of driver and JVM together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.faults import oracle
from tests.faults.conftest import KILLED, Job
from tests.faults.daemon import Faults
from tests.faults.launch import Driver

# Each run is a process of its own, and takes half a minute to start from nothing.
pytestmark = pytest.mark.slow

SLOTS = 2
LARGEST_TASK = 60  # pairs; hashing spreads 245 of them over eight tasks


def run_json(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "run.json").read_text())
    return content


def test_a_worker_killed_in_its_third_batch_costs_its_task(
    job: Job, undisturbed: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    out, tally, fired = tmp_path / "out", tmp_path / "tally", tmp_path / "fired"
    job.finish(out, Faults(str(tally), str(fired), kill="worker"))
    assert fired.exists()
    cost = oracle.check(out, undisturbed, rows=pairs[1], tally=tally, same_batches=True)
    assert 0 < cost.scored_again <= LARGEST_TASK
    assert cost.stored_again == 0


@pytest.mark.parametrize("tasks", [1, 3, 5])
def test_driver_and_jvm_killed_after_some_tasks_then_the_same_command(
    tasks: int, job: Job, undisturbed: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    out, tally = tmp_path / "out", tmp_path / "tally"
    # A pace that lets the watcher see one task end before the next.
    slow, driver = Faults(str(tally), pace=0.1), Driver(f"tasks:{tasks}", str(out / "scores"))
    assert job.run(out, slow, driver).code == KILLED
    kept = len(oracle.stored(out))
    assert 0 < kept < 245
    assert not (out / "ranked").exists()
    job.finish(out, Faults(str(tally)))
    cost = oracle.check(out, undisturbed, rows=pairs[1], tally=tally)
    assert run_json(out)["counts"]["scored"] == 245 - kept
    assert cost.scored_again <= SLOTS * LARGEST_TASK
    assert cost.stored_again == 0


@pytest.mark.parametrize(
    ("point", "stored"),
    [("stored", 245), ("ranked", 245), ("moved:1", 245), ("moved:2", 245), ("published", 245)],
)
def test_a_driver_killed_at_a_failpoint_then_the_same_command(
    point: str, stored: int, job: Job, undisturbed: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    out, tally = tmp_path / "out", tmp_path / "tally"
    assert job.run(out, Faults(str(tally)), Driver(point)).code == KILLED
    assert len(oracle.stored(out)) == stored
    # Where there is a record, all that it speaks of is there.
    assert (out / "run.json").exists() == (point == "published")
    assert (out / "ranked").exists() == (point.startswith("moved") or point == "published")
    job.finish(out, Faults(str(tally)), Driver(patch={"jobs.output.folder._STALE": 0.0}))
    cost = oracle.check(out, undisturbed, rows=pairs[1], tally=tally, same_batches=True)
    assert (cost.scored_again, cost.stored_again) == (0, 0)
    assert not (out / "_work").exists()


def test_a_swap_that_was_cut_short_is_never_a_mixture(
    job: Job, undisturbed: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    """A second run with other results is killed between the renames; a third one begins again."""
    out = tmp_path / "out"
    job.finish(out)
    first = run_json(out)["run_id"]
    assert job.run(out, None, Driver("moved:1"), ranking__top_k=1).code == KILLED
    assert not (out / "run.json").exists()
    note = json.loads((out / "_swap.json").read_text())
    # What a third run does first: it ends what the second has begun.
    assert note["run_id"] != first
    assert job.run(out, None, Driver("moved:2")).code == KILLED
    assert len(oracle.table(out, "ranked")) == 28
    assert run_json(out)["counts"]["ranked"] == 28
    assert run_json(out)["run_id"] == note["run_id"]
    job.finish(out)
    oracle.check(out, undisturbed, rows=pairs[1], same_batches=True)


def test_an_executor_killed_on_a_cluster_costs_its_tasks(
    torch_job: Job, undisturbed_torch: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    out, tally, fired = tmp_path / "out", tmp_path / "tally", tmp_path / "fired"
    faults = Faults(str(tally), str(fired), kill="executor")
    torch_job.finish(out, faults, spark__master="local-cluster[2,1,1024]")
    assert fired.exists()
    cost = oracle.check(out, undisturbed_torch, rows=pairs[1], tally=tally, same_batches=True)
    assert 0 < cost.scored_again <= LARGEST_TASK
    assert cost.stored_again == 0


def test_the_embedded_model_survives_a_worker_and_a_driver(
    pairs: tuple[Path, int], tmp_path: Path
) -> None:
    keys = {"model.name": "embedded", "model.backend": "torch", "input.path": pairs[0]}
    job, out, tally, fired = Job(tmp_path, keys), tmp_path / "out", tmp_path / "t", tmp_path / "f"
    job.finish(tmp_path / "undisturbed")
    faults = Faults(str(tally), str(fired), kill="worker")
    assert job.run(out, faults, Driver("tasks:4", str(out / "scores"))).code == KILLED
    assert fired.exists()
    job.finish(out, Faults(str(tally)))
    cost = oracle.check(out, tmp_path / "undisturbed", rows=pairs[1], tally=tally)
    assert cost.scored_again <= (SLOTS + 1) * LARGEST_TASK
    assert run_json(out)["counts"]["from_store"] > 0
