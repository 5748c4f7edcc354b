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
from tests.spark.test_nightly import DAYS, ROWS, day, files, of, table, unseen, write_log

pytestmark = pytest.mark.slow

NIGHT = 3


def keys(folder: Path, number: int) -> dict[str, object]:
    return {
        "input__path": folder / "log", "input__corpus": folder / "corpus.parquet",
        "input__queries": folder / "queries.parquet", "input__doc_template": None,
        "input__date": "date", "input__group": ["date"], "output__partition_by": ["date"],
        "label__by": "logit", "label__thresholds": [0.0], **of(number),
    }  # fmt: skip


@pytest.fixture(scope="module")
def nights(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """The nights before, in `out`, and the same with the night that will be killed, in `whole`."""
    folder = tmp_path_factory.mktemp("nights")
    rows = write_log(folder)
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
