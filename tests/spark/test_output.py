"""The output folder when several runs meet in it, or have died there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs.config import OutputConfig
from jobs.output import filesystem
from jobs.output.filesystem import Files
from jobs.output.folder import OutputFolder
from jobs.runtime.errors import LockedError

NAMES = ["ranked", "rejects", "run.json"]


def publish(spark: SparkSession, path: Path | str) -> str:
    """A run whose every result holds the run's id."""
    with OutputFolder(spark, OutputConfig(path=str(path))) as out:
        for name in NAMES[:-1]:
            out.stage_file(name, out.run_id)
        out.stage_file("run.json", {"run_id": out.run_id})
        out.publish(NAMES)
    return out.run_id


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_microseconds_are_kept(kind: str, spark: SparkSession, tmp_path: Path) -> None:
    table = spark.sql("SELECT timestamp'2026-01-01 00:00:12.000001' a,"
                      " timestamp_ntz'2026-01-01 00:00:12.000002' b")  # fmt: skip
    with OutputFolder(spark, OutputConfig(path=str(tmp_path))) as out:
        assert out.stage("times", table, kind).collect() == table.collect()


def seen(path: Path) -> set[str] | None:
    """The runs that the results are of, by a reader who looks for run.json first and last."""
    try:
        before = json.loads((path / "run.json").read_text())["run_id"]
        found = {(path / name).read_text() for name in NAMES[:-1]}
        after = json.loads((path / "run.json").read_text())["run_id"]
    except FileNotFoundError:
        return None
    return found | {before} if before == after else None


def test_runs_that_publish_at_the_same_time_never_mix(spark: SparkSession, tmp_path: Path) -> None:
    out, over, views = tmp_path / "out", threading.Event(), []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for _ in range(4):
                publish(spark, out)
        except BaseException as error:
            failures.append(error)

    def watch() -> None:
        while not over.is_set():
            views.append(seen(out))

    runs = [threading.Thread(target=run) for _ in range(3)]
    watcher = threading.Thread(target=watch)
    for thread in (*runs, watcher):
        thread.start()
    for thread in runs:
        thread.join()
    over.set()
    watcher.join()
    assert not failures, "".join(traceback.format_exception(failures[0]))
    whole = [view for view in views if view is not None]
    assert len({run for view in whole for run in view}) > 3, "the readers saw too little"
    assert all(len(view) == 1 for view in whole)
    assert len(seen(out) or ()) == 1
    assert not (out / "_work").exists()
    assert not (out / "_swap.json").exists()


def test_a_copy_goes_to_a_folder_of_any_name(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    target = tmp_path / "Zürich 50% [1]" / "run.json"
    Files(spark).copy_to_local(f"file:{tmp_path}/run.json", target)
    assert target.read_text() == "{}"


def test_a_lock_goes_with_its_holder(spark: SparkSession, tmp_path: Path) -> None:
    """Another process holds it and is killed."""
    publish(spark, tmp_path)
    code = f"import fcntl, time; f = open({str(tmp_path / '.lock')!r}, 'a'); "
    code += "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        threading.Timer(1.0, os.kill, (holder.pid, signal.SIGKILL)).start()
        start = time.monotonic()
        publish(spark, tmp_path)
        assert time.monotonic() - start > 0.9


def test_a_lock_by_name_is_exclusive_and_says_how_to_get_rid_of_it(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For file systems without locks of the kernel's."""
    monkeypatch.setattr(filesystem, "_LOCK_TIMEOUT", 0.3)
    monkeypatch.setattr(filesystem, "local_path", lambda _: None)
    files, path = Files(spark), f"file:{tmp_path}/.lock"
    with files.locked(path):
        with (
            pytest.raises(LockedError, match=r"\.lock for more than.*delete that file"),
            files.locked(path),
        ):
            pass
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


def test_a_file_system_that_cannot_rename_over_a_file(spark: SparkSession, tmp_path: Path) -> None:
    """As for dbfs, which has no AbstractFileSystem in plain Hadoop; links lead to a disk."""
    overload = "org.apache.hadoop.fs.viewfs.ViewFileSystemOverloadScheme"
    disk = "org.apache.hadoop.fs.LocalFileSystem"
    hadoop = spark._jsc.hadoopConfiguration()  # type: ignore[attr-defined]
    for key, value in {
        "fs.bucket.impl": overload,
        "fs.viewfs.overload.scheme.target.bucket.impl": disk,
        "fs.viewfs.overload.scheme.target.file.impl": disk,
        "fs.viewfs.mounttable.here.link./out": f"file:{tmp_path}",
    }.items():
        hadoop.set(key, value)
    for _ in range(2):
        run = publish(spark, "bucket://here/out")
        assert seen(tmp_path) == {run}
    assert sorted(file.name for file in tmp_path.iterdir() if file.suffix != ".crc") == [
        "ranked", "rejects", "run.json"
    ]  # fmt: skip


def test_what_a_killed_run_has_begun_is_ended_by_the_next(
    spark: SparkSession, tmp_path: Path
) -> None:
    """It had moved one of four results, one of which the next run has none of."""
    publish(spark, tmp_path)
    work = tmp_path / "_work" / "dead"
    work.mkdir(parents=True)
    for name in ("rejects", "extra"):
        (work / name).write_text("dead")
    (work / "run.json").write_text('{"run_id": "dead"}')
    (tmp_path / "ranked").write_text("dead")
    (tmp_path / "run.json").unlink()
    (tmp_path / "metrics.json").write_text("{}")
    note = {"run_id": "dead", "names": ["ranked", "rejects", "extra", "run.json"]}
    (tmp_path / "_swap.json").write_text(json.dumps({**note, "gone": ["metrics.json"]}))
    run = publish(spark, tmp_path)
    assert seen(tmp_path) == {run}
    assert (tmp_path / "extra").read_text() == "dead"
    assert not (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "_work").exists()


def test_workspaces_of_dead_runs_go_and_those_of_living_ones_stay(
    spark: SparkSession, tmp_path: Path
) -> None:
    for name, age in (("dead", 49), ("living", 47)):
        started = tmp_path / "_work" / name / "started"
        started.parent.mkdir(parents=True)
        started.touch()
        os.utime(started, (time.time() - age * 3600,) * 2)
    older = tmp_path / "_work" / "older"  # which died as it began
    older.mkdir()
    os.utime(older, (time.time() - 49 * 3600,) * 2)
    (tmp_path / "_work" / "beginning").mkdir()
    publish(spark, tmp_path)
    kept = sorted(folder.name for folder in (tmp_path / "_work").iterdir())
    assert kept == ["beginning", "living"]
