"""A night that is killed and repeated is as exact as one that nobody disturbed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.faults import oracle
from tests.faults.conftest import KILLED, Job
from tests.faults.daemon import Faults
from tests.faults.launch import Driver
from tests.spark.test_nightly import ROWS, day, files, of, record, table, unseen, write_log

pytestmark = pytest.mark.slow

DAYS, NIGHT = 6, 3


def keys(folder: Path, number: int) -> dict[str, object]:
    return {
        "input__path": folder / "log", "input__corpus": folder / "corpus.parquet",
        "input__queries": folder / "queries.parquet", "input__doc_template": None,
        "input__date": "date", "input__group": ["date"], "output__partition_by": ["date"],
        "label__scale": "logit", "label__thresholds": [0.0], **of(number),
    }  # fmt: skip


@pytest.fixture(scope="module")
def nights(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """The nights before, in `out`, and the same with the night that will be killed, in `whole`."""
    folder = tmp_path_factory.mktemp("nights")
    rows = write_log(folder, DAYS)
    job = Job(folder, {"model.name": tiny_bert})
    job.finish(folder / "out", **{**keys(folder, 0), **of(0, NIGHT - 1)})
    shutil.copytree(folder / "out", folder / "whole")
    job.finish(folder / "whole", **keys(folder, NIGHT))
    return folder, rows


@pytest.mark.parametrize("point", ["tasks:4", "ranked", "moved:1"])
def test_a_night_that_is_killed_and_repeated(
    point: str, job: Job, nights: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    (folder, rows), out = nights, tmp_path / "out"
    shutil.copytree(folder / "out", out)
    before, scored = files(out, "ranked", "rejects"), len(oracle.stored(out))
    finished = len(list(out.glob("scores/fingerprint=*/attempt=*/*.parquet")))
    at = point.replace("tasks:4", f"tasks:{finished + 4}")
    driver = Driver(at, str(out / "scores"))
    assert job.run(out, Faults(pace=0.1), driver, **keys(folder, NIGHT)).code == KILLED
    # Readers: the other days as they were; of this one nothing, or all of it.
    assert before.items() <= files(out, "ranked", "rejects").items()
    there = table(out)["date"].eq(day(NIGHT)).sum()
    assert there == (ROWS if point.startswith("moved") else 0)
    kept = len(oracle.stored(out)) - scored
    assert kept > 0

    job.finish(out, **keys(folder, NIGHT))
    counts = json.loads((out / "run.json").read_text())["counts"]
    new = unseen(rows)[day(NIGHT)]
    assert counts["scored"] == new - kept and len(oracle.stored(out)) == scored + new
    assert before.items() <= files(out, "ranked", "rejects").items()
    for name in ("ranked", "drift"):
        found, expected = table(out, name), table(folder / "whole", name)
        if name == "drift":  # what was kept of the killed run is in the store now
            found, expected = (each.drop(columns="from_store") for each in (found, expected))
        pd.testing.assert_frame_equal(found, expected)
    assert not (out / "_swap.json").exists() and len(table(out)) == ROWS * (NIGHT + 1) < ROWS * DAYS


def test_days_with_new_rows_are_taken_once(job: Job, tmp_path: Path) -> None:
    """Late rows, a gap, a kill between publishing and the checkpoint: as one run over all."""
    write_log(tmp_path, 5)
    log, out, whole = tmp_path / "log", tmp_path / "out", tmp_path / "whole"
    log.rename(tmp_path / "all")

    def arrive(number: int, first: int = 0, last: int = ROWS) -> None:
        folder = f"date={day(number)}"
        (log / folder).mkdir(parents=True, exist_ok=True)
        part = pd.read_parquet(tmp_path / "all" / folder)[first:last]
        part.to_parquet(log / folder / f"{first}.parquet")

    days = {"input__since": None, "input__until": None}
    given = {**keys(tmp_path, 0), **days, "input__checkpoint": tmp_path / "checkpoint"}
    arrive(0, last=50)
    arrive(1, last=50)
    job.finish(out, **given)
    assert len(table(out)) == 100
    first_day = {name: content for name, content in files(out, "ranked").items() if day(0) in name}

    arrive(1, first=50)
    arrive(2)
    assert job.run(out, None, Driver("published"), **given).code == KILLED
    offsets, commits = (
        len([file for file in (tmp_path / "checkpoint" / name).iterdir() if file.name.isdigit()])
        for name in ("offsets", "commits")
    )
    assert (offsets, commits) == (2, 1)  # published, and not yet taken
    killed = record(out)
    assert (killed["config"]["input"]["since"], killed["counts"]["input"]) == (day(1), 2 * ROWS)
    scored = len(oracle.stored(out))

    arrive(0, first=50)
    arrive(4)
    said = job.finish(out, **given).out
    runs = [line.split()[1] for line in said.splitlines() if line.startswith("input ")]
    assert runs == [str(number) for number in (2 * ROWS, ROWS, ROWS)]  # days 1 and 2, 0, 4
    assert said.splitlines()[4].split()[:2] == ["scored", "0"]
    assert len(oracle.stored(out)) > scored
    assert not first_day.items() <= files(out, "ranked").items()

    before = files(out, "ranked", "rejects", "drift"), record(out)
    assert "no new rows since the last run" in job.finish(out, **given).out
    assert (files(out, "ranked", "rejects", "drift"), record(out)) == before

    job.finish(whole, **{**given, "input__checkpoint": None})
    assert len(oracle.stored(out)) == len(oracle.stored(whole))
    pd.testing.assert_frame_equal(table(out), table(whole))
    columns = [name for name in table(whole, "drift") if name != "from_store"]
    pd.testing.assert_frame_equal(table(out, "drift")[columns], table(whole, "drift")[columns])
