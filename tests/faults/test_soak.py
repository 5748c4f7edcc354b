"""One task attempt in ten fails and the driver dies at random times, until the run is through.

SOAK_SEEDS=3 runs that many seeds; the default is 20.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path

import pytest

from jobs.runtime.errors import DONE
from tests.faults import oracle
from tests.faults.conftest import KILLED, Job
from tests.faults.daemon import Faults
from tests.faults.launch import Driver

SEEDS = int(os.environ.get("SOAK_SEEDS", "20"))
# Of what an undisturbed run takes from the moment its session is there. The first driver dies.
LONGEST_LIFE, FIRST_LIFE = 1.3, 0.6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_whatever_fails_and_dies_the_result_is_exact(
    seed: int, job: Job, undisturbed: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    out, tally, fired = tmp_path / "out", tmp_path / "tally", tmp_path / "fired"
    fired.touch()
    timings = json.loads((undisturbed / "run.json").read_text())["timings"]
    whole = timings["total"] - timings["session"]
    lots, lives = random.Random(seed), 0
    for life in range(30):
        faults = Faults(str(tally), str(fired), share=0.1, seed=f"{seed}-{life}", pace=0.05)
        longest = whole * (LONGEST_LIFE if life else FIRST_LIFE)
        dies = Driver(f"seconds:{lots.uniform(1.0, longest):.1f}" if lives < 8 else "")
        ended = job.run(out, faults, dies)
        lives += 1
        if ended.code == DONE:
            break
        assert ended.code == KILLED, ended.err[-4000:]
    else:
        pytest.fail("30 lives were not enough")
    cost = oracle.check(out, undisturbed, rows=pairs[1], tally=tally)
    failed = len(fired.read_text().splitlines())
    assert lives > 1 or failed, "no fault fired"
    sys.stdout.write(
        f"seed {seed}: {lives - 1} dead drivers, {failed} failed tasks, "
        f"{cost.scored_again} pairs scored again\n"
    )
    # Of every death and failure, no more than the tasks in flight.
    assert cost.scored_again <= (lives * 2 + failed) * 60
