"""One model for all workers of a GPU, in a process of its own that may die as well.

The GPU is the CPU here, which the workers take for one.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.faults import oracle
from tests.faults.conftest import Job
from tests.faults.daemon import Faults

pytestmark = pytest.mark.slow


def owners(tally: Path) -> list[str]:
    """Process ids of the owners that were started."""
    return Path(f"{tally}.owners").read_text().split()


def test_two_workers_share_one_owner_which_ends_with_the_run(
    torch_job: Job, undisturbed_torch: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    out, tally = tmp_path / "out", tmp_path / "tally"
    torch_job.finish(out, Faults(str(tally), owned=True))
    cost = oracle.check(out, undisturbed_torch, rows=pairs[1], tally=tally, same_batches=True)
    assert (cost.scored_again, cost.stored_again) == (0, 0)
    workers = {line.split()[0] for line in tally.read_text().splitlines()}
    assert len(workers) == 2
    (pid,) = owners(tally)
    assert pid not in workers
    assert json.loads((out / "run.json").read_text())["memory"]["process_mb"] > 100
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


def test_an_owner_killed_in_mid_run_is_replaced_and_no_task_fails(
    torch_job: Job, undisturbed_torch: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    out, tally, fired = tmp_path / "out", tmp_path / "tally", tmp_path / "fired"
    torch_job.finish(out, Faults(str(tally), str(fired), kill="owner", owned=True))
    assert fired.exists()
    cost = oracle.check(out, undisturbed_torch, rows=pairs[1], tally=tally, same_batches=True)
    assert (cost.scored_again, cost.stored_again) == (0, 0)
    assert len(set(owners(tally))) == 2
