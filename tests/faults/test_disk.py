"""A disk that is full: the run fails, what was there stays, and the next run goes on."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.runtime.errors import REFUSED, UNEXPECTED
from tests.faults import oracle
from tests.faults.conftest import Job
from tests.faults.daemon import Faults
from tests.faults.test_stops import while_scoring

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, room: int = 0) -> None:
    """Leave so many bytes free."""
    free = int(subprocess.check_output(["stat", "-f", "-c", "%a", disk])) * 4096
    with (disk / "ballast").open("wb") as file:
        file.write(bytes(free - room))


def contents(out: Path) -> dict[Path, bytes]:
    """The published files."""
    tables = [file for name in ("ranked", "rejects") for file in (out / name).rglob("*")]
    return {file: file.read_bytes() for file in [*tables, out / "run.json"]}


def test_a_full_disk_costs_the_run_and_nothing_else(
    job: Job, undisturbed: Path, pairs: tuple[Path, int], small_disk: Path
) -> None:
    out = small_disk / "out"
    job.finish(out, model__max_length=60)
    before = contents(out)
    ballast = small_disk / "ballast"
    fill(small_disk, room=45 * 4096)  # for some of the scores
    ended = job.run(out)
    assert ended.code == UNEXPECTED
    assert f"No space left on device: free some in {out}" in ended.err
    assert "\tat " not in ended.err
    assert contents(out) == before

    ballast.unlink()
    job.finish(out)
    oracle.check(out, undisturbed, rows=pairs[1])


@pytest.mark.parametrize("full", ["at first", "while scoring"])
def test_a_full_temporary_folder_is_named(
    full: str, job: Job, undisturbed: Path, pairs: tuple[Path, int], small_disk: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """Java unpacks libraries there, and Spark keeps its shuffles there."""
    out = tmp_path / "out"
    keys: dict[str, Any] = {
        "environment": {
            "TMPDIR": str(small_disk), "JAVA_TOOL_OPTIONS": f"-Djava.io.tmpdir={small_disk}"
        },
        "spark__settings": {"spark.local.dir": str(small_disk)},
    }  # fmt: skip
    if full == "at first":
        fill(small_disk)
        ended = job.run(out, **keys)
        assert ended.code == REFUSED
        assert not out.exists()
    else:
        process = job.start(out, Faults(pace=0.3), **keys)
        while_scoring(out, process)
        fill(small_disk)
        ended = job.end(out, process)
        assert ended.code == UNEXPECTED
    said = ended.err.splitlines()[-1]
    assert str(small_disk) in said and "space" in said.lower(), ended.err[-2000:]
    assert "\tat " not in ended.err

    job.finish(out)
    oracle.check(out, undisturbed, rows=pairs[1])


def test_files_that_may_not_grow_cost_the_run_and_nothing_else(
    job: Job, undisturbed: Path, pairs: tuple[Path, int], tmp_path: Path
) -> None:
    """RLIMIT_FSIZE, which needs no rights: shuffles fail as well as results."""
    out = tmp_path / "out"
    job.finish(out, model__max_length=60)
    before = contents(out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (48_000, hard))
    try:
        process = job.start(out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    ended = job.end(out, process)
    assert ended.code == UNEXPECTED
    assert "File too large" in ended.err
    assert contents(out) == before

    job.finish(out)
    oracle.check(out, undisturbed, rows=pairs[1])
