"""A run that is stopped: one line, nothing lost, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from jobs.runtime.errors import DONE, UNEXPECTED
from tests.faults import oracle
from tests.faults.conftest import Job
from tests.faults.daemon import Faults

pytestmark = pytest.mark.slow

_SUSPENDED = 150.0  # s


def while_scoring(out: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until some of the tasks have kept their scores."""
    while len(list(out.glob("scores/fingerprint=*/attempt=*/*.parquet"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)


def jvm(process: subprocess.Popen[bytes]) -> int:
    """The driver's JVM."""
    children = subprocess.check_output(["ps", "-o", "pid=,comm=", "--ppid", str(process.pid)])
    return next(int(line.split()[0]) for line in children.decode().splitlines() if "java" in line)


@pytest.mark.parametrize("fault", ["SIGINT", "SIGTERM", "the JVM"])
def test_a_run_that_is_stopped_while_it_scores(
    fault: str, job: Job, undisturbed: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = job.start(out, Faults(pace=0.3))
    while_scoring(out, process)
    if fault == "the JVM":
        os.kill(jvm(process), signal.SIGKILL)
    else:
        process.send_signal(signal.Signals[fault])
    ended = job.end(out, process)
    kept = len(oracle.stored(out))
    assert 0 < kept < 245
    end = f"{kept} scored pairs are kept in file:{out}/scores/"
    (said,) = [line for line in ended.err.splitlines() if "scored pairs are kept" in line]
    assert end in said and said.endswith("run the same command again to go on")
    assert "Traceback" not in ended.err and "\tat " not in ended.err
    assert len(ended.err.replace("\r", "\n").splitlines()) < 40
    if fault == "the JVM":
        assert ended.code == UNEXPECTED
        assert said.startswith("Spark's JVM has ended (code -9)")
        (workspace,) = (out / "_work").iterdir()
        assert f"a later run removes file:{workspace}" in said
    else:
        assert ended.code == 128 + signal.Signals[fault]
        assert said.startswith(f"stopped by {fault}; ")
        assert not (out / "_work").exists()
    assert not (out / "ranked").exists()
    job.finish(out)
    oracle.check(out, undisturbed, rows=pairs[1])


def test_a_run_that_is_suspended_for_minutes_goes_on(
    job: Job, undisturbed: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    """A laptop that sleeps: longer than Spark waits for a heartbeat or an answer (120 s)."""
    out = tmp_path / "out"
    process = job.start(out, Faults(pace=0.3))
    while_scoring(out, process)
    driver = psutil.Process(process.pid)
    suspended = [driver, *driver.children(recursive=True)]
    for each in suspended:
        each.suspend()
    time.sleep(_SUSPENDED)
    for each in suspended:
        each.resume()
    ended = job.end(out, process)
    assert ended.code == DONE, ended.err[-4000:]
    assert len(ended.err.replace("\r", "\n").splitlines()) < 40
    assert "ERROR" not in ended.err and "Exception" not in ended.err
    oracle.check(out, undisturbed, rows=pairs[1])
