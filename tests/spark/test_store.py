"""Upkeep of a real store: what a few runs, two of them at once and one killed, leave behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs.output.filesystem import Files
from jobs.runtime.errors import DONE, GATE_NOT_PASSED, REFUSED, UNEXPECTED
from jobs.store.__main__ import main, merge, take_inventory
from jobs.store.scores import READ_ERRORS, ScoreStore, damaged
from tests.conftest import ROOT
from tests.sample import PAIRS
from tests.spark.conftest import Job

PRINT = "0" * 32


def keys(first: int, last: int) -> list[str]:
    return [f"{number:064x}" for number in range(first, last)]


@pytest.fixture
def store(written: Path, spark: SparkSession, tmp_path: Path) -> ScoreStore:
    """A copy of the store for each test."""
    shutil.copytree(written, tmp_path / "scores")
    return ScoreStore(spark, str(tmp_path / "scores"), PRINT)


@pytest.fixture(scope="module")
def written(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four attempts: 100 pairs in 4 files, 60 of them again with other last bits, 20 more, none.

    Pair 7 has no finite score, pair 50 has one in the second attempt only.
    """
    folder = tmp_path_factory.mktemp("store") / "scores"
    store = ScoreStore(spark, str(folder), PRINT)
    store.open({"model": "tiny", "revision": "0123456789", "max_length": 64, "precision": "bf16"})
    for first, last, shift, files in ((0, 100, 0.0, 4), (40, 120, 0.001, 3), (115, 130, 0.002, 1)):
        rows = [(key, int(key, 16) + shift) for key in keys(first, last)]
        table = spark.createDataFrame(rows, "pair_key string, logit double").repartition(files)
        failed = (F.col("pair_key") == keys(7, 8)[0]) | (F.col("pair_key") == keys(50, 51)[0])
        failed = failed & F.lit(first == 0)
        store.append(
            table.withColumns(
                {
                    "n_tokens": F.lit(9), "n_padded": F.lit(0), "truncated": F.lit(False),
                    "device_ms": F.lit(0.5), "logit": F.when(~failed, F.col("logit")),
                    "status": F.when(failed, "nonfinite").otherwise("ok"),
                }
            )
        )  # fmt: skip
    dead = Path(store.folder) / "attempt=dead" / "_temporary" / "0"
    dead.mkdir(parents=True)
    (dead / "part-0.parquet").write_bytes(b"PAR1 half")
    return folder


def parts(store: ScoreStore) -> pd.DataFrame:
    """The finished files of a store."""
    found = take_inventory(Files(store._spark), str(Path(store.folder).parent))
    return found[found["is_part"]]


def content(store: ScoreStore) -> pd.DataFrame:
    return store.read().toPandas().sort_values("pair_key", ignore_index=True)


def run(verb: str, store: ScoreStore, *words: str) -> int:
    return main([verb, "--store.path", str(Path(store.folder).parent), *words])


def age(store: ScoreStore, hours: float) -> None:
    """Make everything look as if it had been written so long ago."""
    then = time.time() - hours * 3600
    folder = Path(store.folder)
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


def test_a_platforms_own_commit_protocol_is_not_used_for_scores(
    store: ScoreStore, spark: SparkSession
) -> None:
    """Databricks' publishes nothing before the job ends: a killed run would lose its tasks."""
    key, other = "spark.sql.sources.commitProtocolClass", "ManifestFileCommitProtocol"
    spark.conf.set(key, f"org.apache.spark.sql.execution.streaming.{other}")
    try:
        rows = store.read().limit(1)
        with pytest.raises(READ_ERRORS, match="setupManifestOptions"):
            rows.write.parquet(f"{store.folder}/other")
        store.append(rows)
        assert str(spark.conf.get(key)).endswith(other)
    finally:
        spark.conf.unset(key)


def test_ls_tells_what_a_store_holds(store: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls", store) == DONE
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:7] == [PRINT, "tiny@0123456", "64", "bf16", "130", "8", row[6]]
    assert row[8] == "4"


def test_a_store_that_is_none_is_refused(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del spark
    assert main(["ls", "--store.path", str(tmp_path / "no")]) == REFUSED
    assert "does not exist" in capsys.readouterr().err
    assert main(["gc", "--store.path", str(tmp_path), "--older-than", "soon"]) == REFUSED
    assert "store.older_than" in capsys.readouterr().err
    assert main(["ls", "--store.path", str(tmp_path)]) == REFUSED
    assert "holds no fingerprint" in capsys.readouterr().err
    assert main(["tidy"]) == REFUSED
    assert main(["--help"]) == DONE
    assert "compact" in capsys.readouterr().out


def test_verify_passes_scores_that_differ_by_the_last_bits_only(
    store: ScoreStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("verify", store) == DONE
    said = capsys.readouterr().out
    assert "129 pairs in 8 files, 64 scored more than once (they differ by up to 0.00" in said
    assert run("verify", store, "--store.tolerance", "0.0005") == GATE_NOT_PASSED
    assert "64 pairs have scores that differ by more than" in capsys.readouterr().out


def flip(file: Path) -> None:
    """A bit in the middle of the data, with nobody but Parquet to notice."""
    content = bytearray(file.read_bytes())
    content[60] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def garbage(file: Path) -> None:
    file.write_bytes(b"not a table" * 100)


def other_types(file: Path) -> None:
    pd.DataFrame({"pair_key": [1.5]}).to_parquet(file)


def other_columns(file: Path) -> None:
    pd.DataFrame({"pair_key": ["x", "y"], "doc": ["a", "b"]}).to_parquet(file)


DAMAGES = [flip, cut, empty, garbage, other_types, other_columns]


def test_damaged_files_are_named_and_set_aside_and_their_pairs_are_missing(
    store: ScoreStore, spark: SparkSession, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their pairs only; verifying, a dry run, and a run without damage move nothing."""
    wanted = spark.createDataFrame([(key,) for key in keys(0, 140)], "pair_key string")
    assert store.missing(wanted, 140)[1] == 11  # pair 7 has no finite score
    parts = sorted(Path(store.folder).glob("attempt=*/part-*.parquet"))
    broken, whole = parts[: len(DAMAGES)], parts[len(DAMAGES) :]
    for file, how in zip(broken, DAMAGES, strict=True):
        (file.parent / f".{file.name}.crc").unlink()  # nobody but Parquet is to notice
        how(file)
    assert run("verify", store) == GATE_NOT_PASSED
    said = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("  - ") and "scored again" in line for line in said) == len(DAMAGES)

    known = pd.concat(map(pd.read_parquet, whole)).query("status == 'ok'")["pair_key"]
    assert store.missing(wanted, 140, dry_run=True)[1] <= 140 - known.nunique()
    assert all(file.exists() for file in broken)
    missing, count = store.missing(wanted, 140)
    said = capsys.readouterr().err
    for file in broken:
        assert f"{file.name} is damaged" in said
        assert not file.exists()
        assert (Path(store.folder) / "_corrupt" / f"{file.parent.name}-{file.name}").exists()
    assert count == 140 - known.nunique()
    assert {row["pair_key"] for row in missing.collect()} == set(keys(0, 140)) - set(known)
    assert run("verify", store) == DONE
    age(store, hours=7)
    assert run("gc", store) == DONE
    assert not (Path(store.folder) / "_corrupt").exists()


def test_files_out_of_reach_are_not_called_damaged(store: ScoreStore) -> None:
    """An outage of the storage must not set a whole store aside."""
    files = parts(store).set_index("path")["size"].to_dict()
    shutil.move(store.folder, f"{store.folder}-elsewhere")
    assert not damaged(store._spark, files)


def test_a_job_that_was_cancelled_sets_nothing_aside(
    store: ScoreStore, spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal does it, again and again."""
    before, over = parts(store), threading.Event()

    def cancel() -> None:
        while not over.wait(0.001):
            spark.sparkContext.cancelAllJobs()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    try:
        with pytest.raises(READ_ERRORS):
            store.missing(spark.createDataFrame([], "pair_key string"), 0)
        with pytest.raises(READ_ERRORS):
            damaged(spark, before.set_index("path")["size"].to_dict())
    finally:
        over.set()
        canceller.join()
    pd.testing.assert_frame_equal(parts(store), before)


def test_the_same_command_heals_a_damaged_store(
    job: Job, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One file is named, its pairs are scored again, and nothing else is seen of it."""
    out = tmp_path / "out"
    keys = {"model__backend": "stub", "batching__partitions": 4}
    assert job(out, **keys) == DONE
    before = pd.read_parquet(out / "ranked")
    file = sorted(out.glob("scores/fingerprint=*/attempt=*/part-*.parquet"))[1]
    lost = len(pd.read_parquet(file))
    (file.parent / f".{file.name}.crc").unlink()
    flip(file)
    capfd.readouterr()
    assert job(out, **keys) == DONE
    said = capfd.readouterr().err
    assert said.count("is damaged") == 1 and file.name in said
    assert "Exception" not in said and "ERROR" not in said
    counts = json.loads((out / "run.json").read_text())["counts"]
    assert (counts["scored"], counts["from_store"]) == (lost, PAIRS - lost)
    order = ["query_id", "rank"]
    columns = [*order, "doc_id", "score", "n_tokens"]
    pd.testing.assert_frame_equal(
        pd.read_parquet(out / "ranked")[columns].sort_values(order, ignore_index=True),
        before[columns].sort_values(order, ignore_index=True),
    )


def test_compact_leaves_a_store_in_use_alone(
    store: ScoreStore, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path(store.folder).rglob("*"))
    assert run("compact", store) == DONE
    assert "minutes ago, left alone" in capsys.readouterr().out
    assert sorted(Path(store.folder).rglob("*")) == before
    age(store, hours=7)
    store.open({"model": "tiny"})  # a run that has only looked
    assert run("compact", store) == DONE
    assert "left alone" in capsys.readouterr().out


def test_compact_merges_and_changes_no_score(
    store: ScoreStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of pairs with two scores every reader still takes the one it took before."""
    before = content(store)
    assert len(before) == 130
    age(store, hours=7)
    assert run("compact", store, "--dry-run") == DONE
    assert "would merge 8 files" in capsys.readouterr().out
    assert run("compact", store) == DONE
    assert "8 files of 3 attempts are now 1, with 130 pairs" in capsys.readouterr().out
    assert len(list(Path(store.folder).rglob("part-*.snappy.parquet"))) == 1
    pd.testing.assert_frame_equal(content(store), before)
    assert run("verify", store) == DONE
    age(store, hours=7)
    assert run("compact", store) == DONE
    assert "nothing to merge" in capsys.readouterr().out


def test_a_merge_with_a_younger_attempt_keeps_each_readers_choice(store: ScoreStore) -> None:
    """The merged attempt's name is random; what counts is the name a score came with."""
    before = content(store)
    held = parts(store)["folder"].unique()
    for leave_out in (0, 1):
        copy = Path(store.folder).with_name(f"fingerprint={leave_out}")
        shutil.copytree(store.folder, copy)
        kept = held[leave_out]
        aside = copy.parent / f"aside-{leave_out}"
        (copy / kept).rename(aside)
        copied = ScoreStore(store._spark, str(copy.parent), str(leave_out))
        found = take_inventory(Files(store._spark), str(copy.parent))
        merge(store._spark, found[found["fingerprint"] == str(leave_out)])
        aside.rename(copy / kept)
        pd.testing.assert_frame_equal(content(copied), before)


def test_compact_may_be_killed_between_any_two_steps(
    store: ScoreStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each deletion, and with half a folder deleted: the same scores."""
    before = content(store)
    age(store, hours=7)
    really, steps = Files.delete, 0

    class KilledError(Exception):
        pass

    def delete(files: Files, path: str) -> None:
        nonlocal steps
        pd.testing.assert_frame_equal(content(store), before)
        half = sorted(Path(path.removeprefix("file:")).glob("part-*.parquet"))
        for file in half[: len(half) // 2]:
            file.unlink()
        pd.testing.assert_frame_equal(content(store), before)
        steps += 1
        if steps == 2:
            raise KilledError
        really(files, path)

    monkeypatch.setattr(Files, "delete", delete)
    assert run("compact", store, "--store.settled", "0m") == UNEXPECTED
    assert steps == 2
    pd.testing.assert_frame_equal(content(store), before)
    assert run("compact", store, "--store.settled", "0m") == DONE
    pd.testing.assert_frame_equal(content(store), before)
    assert steps >= 4


def test_a_merge_that_cannot_read_all_deletes_nothing(
    store: ScoreStore, capsys: pytest.CaptureFixture[str]
) -> None:
    file = min(Path(store.folder).glob("attempt=*/part-*.parquet"))
    cut(file)
    (file.parent / f".{file.name}.crc").unlink()
    before = sorted(Path(store.folder).glob("*/part-*.parquet"))
    assert run("compact", store, "--store.settled", "0m") == REFUSED
    assert "nothing more was deleted" in capsys.readouterr().err
    assert sorted(Path(store.folder).glob("*/part-*.parquet")) == before


def test_gc_drops_dead_attempts_and_what_is_out_of_use(
    store: ScoreStore, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(store)
    assert run("gc", store) == DONE  # all of it may still be at work
    assert "0.0 MiB freed" in capsys.readouterr().out
    age(store, hours=7)
    assert run("gc", store, "--dry-run") == DONE
    assert "would drop" in capsys.readouterr().out
    assert (Path(store.folder) / "attempt=dead").exists()
    assert run("gc", store) == DONE
    assert "attempt=dead: no finished task" in capsys.readouterr().out
    assert not (Path(store.folder) / "attempt=dead").exists()
    left = min(Path(store.folder).glob("attempt=*")) / "_temporary" / "0"
    left.mkdir(parents=True)
    (left / "part-9.parquet").write_bytes(b"half")
    age(store, hours=24 * 29)
    assert run("gc", store) == DONE
    assert "tasks that never ended" in capsys.readouterr().out
    pd.testing.assert_frame_equal(content(store), before)
    age(store, hours=24 * 31)
    assert run("gc", store, "--older-than", "30d", "--store.settled", "32d") == DONE
    assert run("gc", store, "--older-than", "32d") == DONE
    pd.testing.assert_frame_equal(content(store), before)
    assert run("gc", store, "--older-than", "30d") == DONE
    assert "not used for 31 days" in capsys.readouterr().out
    assert not Path(store.folder).exists()


@pytest.mark.slow
def test_kill_9_of_compact_at_any_time_loses_no_score(store: ScoreStore) -> None:
    before = content(store)
    killed = 0
    for delay in (0.0, 0.05, 0.2, 0.4, 0.8):
        age(store, hours=7)
        folders = set(Path(store.folder).glob("attempt=*"))
        process = subprocess.Popen(
            [sys.executable, "-m", "jobs.store", "compact", "--store.path",
             str(Path(store.folder).parent), "--spark.master", "local[1]"],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        while process.poll() is None and set(Path(store.folder).glob("attempt=*")) == folders:
            time.sleep(0.01)
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, 9)
            killed += 1
        process.wait()
        pd.testing.assert_frame_equal(content(store), before)
    assert killed >= 2
    about = json.loads((Path(store.folder) / "_about.json").read_text())
    assert about["model"] == "tiny"
