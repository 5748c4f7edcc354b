"""A disk that is full: the run fails, what was there stays, and the next run goes on."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.runtime.errors import REFUSED, UNEXPECTED
from tests.faults import oracle
from tests.faults.conftest import Job

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


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
    with ballast.open("wb") as file:  # leaves room for some of the scores
        free = int(subprocess.check_output(["stat", "-f", "-c", "%a", small_disk])) * 4096
        file.write(bytes(free - 45 * 4096))
    ended = job.run(out)
    assert ended.code == UNEXPECTED
    assert f"No space left on device: free some in {out}" in ended.err
    assert "\tat " not in ended.err
    assert contents(out) == before

    ballast.unlink()
    job.finish(out)
    oracle.check(out, undisturbed, rows=pairs[1])


@pytest.mark.parametrize("room", [0, 1_150_000])
def test_a_full_temporary_folder_is_named(
    room: int,
    job: Job,
    undisturbed: Path,
    pairs: tuple[Path, int],
    small_disk: Path,
    tmp_path: Path,
) -> None:
    """Java unpacks libraries there, and Spark keeps its shuffles there."""
    out = tmp_path / "out"
    free = int(subprocess.check_output(["stat", "-f", "-c", "%a", small_disk])) * 4096
    (small_disk / "ballast").write_bytes(bytes(free - room))
    ended = job.run(
        out,
        environment={
            "TMPDIR": str(small_disk), "JAVA_TOOL_OPTIONS": f"-Djava.io.tmpdir={small_disk}"
        },
        spark__settings={"spark.local.dir": str(small_disk)},
    )  # fmt: skip
    assert ended.code == (UNEXPECTED if room else REFUSED)
    said = ended.err.splitlines()[-1]
    assert str(small_disk) in said and "space" in said.lower(), ended.err[-2000:]
    # Snappy prints a stack of its own where it cannot be unpacked.
    assert len(ended.err.replace("\r", "\n").splitlines()) < 80

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
