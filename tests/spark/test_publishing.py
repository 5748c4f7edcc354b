"""What a run may replace in its output folder, and what it leaves as it was."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs.config import OutputConfig
from jobs.output.folder import OutputFolder
from jobs.output.locations import refuse_locations
from jobs.runtime.errors import (
    DONE,
    GATE_NOT_PASSED,
    REFUSED,
    TOO_MANY_REJECTS,
    RefusedError,
)
from tests.spark.conftest import Job

STUB = {"model__backend": "stub", "input__doc_template": None, "input__label": "label"}


def write(file: Path, date: str, docs: int, *, blank: int = 0, first: str = "doc") -> Path:
    """A table of one date: two queries with `docs` documents each, of which some are blank."""
    rows = [
        {
            "query_id": query, "query": f"what is {query}", "doc_id": f"{first}{i}", "date": date,
            "doc": " " if i < blank else f"document {i} of {query}", "label": i % 2,
            "retrieval_score": float(docs - i),
        }
        for query in ("a", "b")
        for i in range(docs)
    ]  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(file)
    return file


def contents(out: Path) -> dict[str, bytes]:
    """Everything that is published."""
    names = ("ranked", "rejects", "per_query", "metrics.json", "report.html", "run.json")
    files = [f for name in names for f in ((out / name), *(out / name).rglob("*")) if f.is_file()]
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


def table(folder: Path) -> pd.DataFrame:
    return pq.read_table(folder).to_pandas()


def test_what_somebody_else_put_there_is_not_touched(
    job: Job, spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, out = write(tmp_path / "good.parquet", "1", 3), tmp_path / "out"
    notes = out / "ranked" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    plain = {**STUB, "input__label": ""}
    assert job(out, input__path=good, **plain) == REFUSED
    assert "is not empty and not ours: it holds ranked and no run.json" in capsys.readouterr().err
    assert [file.name for file in out.rglob("*")] == ["ranked", "notes.txt"]
    (out / "run.json").write_text('{"run_id": "of another program"}')
    with pytest.raises(RefusedError, match=r"holds ranked, run\.json and no"):
        refuse_locations(spark, OutputConfig(path=str(out)))
    assert job(out, input__path=good, output__overwrite="true", **plain) == DONE
    assert not notes.exists()
    # In a folder that is ours, what is not a result stays.
    (out / "notes.txt").write_text("mine")
    assert job(out, input__path=good, **plain) == DONE
    assert (out / "notes.txt").read_text() == "mine"
    # What a first run leaves that was killed, or not published, is ours.
    for names, store, ours in (
        (("scores/fingerprint=1",), None, True), (("scores/theirs",), None, False),
        (("_work/1", "unpublished/1", ".hidden"), None, True), (("kept/x",), "kept", True),
        (("_swap.json", "ranked"), None, True), (("kept/x",), None, False),
    ):  # fmt: skip
        folder = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        for name in names:
            (folder / name).mkdir(parents=True)
        at = str(folder / store) if store else None
        if ours:
            refuse_locations(spark, OutputConfig(path=str(folder)), store=at)
        else:
            with pytest.raises(RefusedError, match="not ours"):
                refuse_locations(spark, OutputConfig(path=str(folder)), store=at)


def test_a_run_that_is_refused_or_fails_its_gate_leaves_what_is_published(
    job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write(tmp_path / "good.parquet", "1", 4)
    bad = write(tmp_path / "other.parquet", "1", 4, blank=2)
    out, plain = tmp_path / "out", {**STUB, "input__label": ""}
    gate = {"evaluation__gate": "RR@10 >= 1.1", "input__path": good}
    # Nobody is to read what a gate refused, on a first run either.
    assert job(out, **gate, **STUB) == GATE_NOT_PASSED
    assert job(out, **{**gate, "input__path": bad}, **STUB) == TOO_MANY_REJECTS
    assert contents(out) == {}
    assert "a rule of evaluation.gate did not hold" in capsys.readouterr().err
    assert job(out, input__path=good, **plain) == DONE
    before = contents(out)
    assert job(out, input__path=bad, **plain) == TOO_MANY_REJECTS
    (kept,) = (out / "unpublished").iterdir()
    said = capsys.readouterr()
    assert "50.00% of the rows were rejected" in said.err
    assert f"are in file:{kept}" in said.err and f"file:{kept}/ranked" in said.out
    assert len(table(kept / "rejects")) == 4
    assert job(out, **gate, **STUB) == GATE_NOT_PASSED
    (newest,) = (out / "unpublished").iterdir()
    assert newest != kept
    assert json.loads((newest / "metrics.json").read_text())["gate"]["passed"] is False
    assert (newest / "report.html").exists()
    assert job(out, input__path=good, ranking__min_score=1e9, **plain) == DONE
    assert "no row was ranked" in capsys.readouterr().err
    assert contents(out) == before
    assert not (out / "_work").exists()
    assert job(out, input__path=bad, output__publish="always", **plain) == TOO_MANY_REJECTS
    assert len(table(out / "ranked")) == 4


def test_a_log_by_date(job: Job, spark: SparkSession, tmp_path: Path) -> None:
    log = {day: write(tmp_path / "log" / f"d={day}" / "p.parquet", f"2026-01-0{day}", 3)
           for day in (1, 2)}  # fmt: skip
    out, keys = tmp_path / "out", {**STUB, "output__partition_by": "date", "input__label": ""}
    assert job(out, input__path=log[1], **keys) == DONE
    first = {file: file.read_bytes() for file in (out / "ranked" / "date=2026-01-01").iterdir()}
    assert job(out, input__path=log[2], **keys) == DONE
    write(log[2], "2026-01-02", 3, blank=1)
    assert job(out, input__path=log[2], input__max_reject_rate=1.0, **keys) == DONE
    dates = table(out / "ranked")["date"].astype(str)
    assert dates.value_counts().to_dict() == {"2026-01-01": 6, "2026-01-02": 4}
    assert table(out / "rejects")["date"].astype(str).tolist() == ["2026-01-02"] * 2
    assert {file: file.read_bytes() for file in first} == first
    assert json.loads((out / "run.json").read_text())["counts"]["ranked"] == 4

    def refused(by: list[str], source: str | None, **keys: bool | str) -> str:
        config = OutputConfig(path=str(out), partition_by=by, **keys)  # type: ignore[arg-type]
        try:
            refuse_locations(spark, config, source=source)
        except RefusedError as error:
            return str(error)
        return ""

    assert not refused(["date"], "log/d=3/p.parquet")
    assert "holds partitions as parquet, and output.format is csv" in refused(
        ["date"], "log/d=3/p.parquet", format="csv"
    )
    assert "partitioned by date, not by nothing; set output.partition_by" in refused([], "x")
    for by in ([], ["date"]):  # another command
        assert "holds partitions of jobs.rerank, which would be replaced" in refused(by, "")
    assert not refused([], "x", overwrite=True)
    assert not refused([], "", overwrite=True)
    assert not refused([], None)
    record = json.loads((out / "run.json").read_text())
    record["config"]["output"]["partition_by"] = []
    record["config"]["input"]["path"] = "log/d=1/p-17.parquet"
    (out / "run.json").write_text(json.dumps(record))
    (out / ".run.json.crc").unlink()
    assert "holds results of log/d=1/p-17.parquet; set" in refused([], "log/d=2/p-18.parquet")
    assert not refused([], "log/d=1/p-17.parquet")
    assert not refused([], "another/d=1/p-17.parquet")


def test_a_partition_without_rows_goes_and_others_stay(spark: SparkSession, tmp_path: Path) -> None:
    """By what is staged; where the published results are partitioned otherwise, all of them go."""

    def publish(by: list[str], ranked: str, rejects: str, seen: str) -> set[str]:
        with OutputFolder(spark, OutputConfig(path=str(tmp_path), partition_by=by)) as out:
            for name, days in (("ranked", ranked), ("rejects", rejects), ("partitions", seen)):
                rows = [(day, 1) for day in days]
                out.stage(name, spark.createDataFrame(rows, "day string, n int").coalesce(1))
            config = {"output": {"partition_by": by}}
            out.stage_file("run.json", {"run_id": out.run_id, "kind": "rerank", "config": config})
            out.publish(["ranked", "rejects", "run.json"])
        parts = [*tmp_path.glob("r*/day=*"), *tmp_path.glob("ranked/*.parquet")]
        return {re.sub(r".*/|part-.*", "", str(part.parent)) + part.name[-1] for part in parts}

    assert publish(["day"], "ab", "a", "ab") == {"rankeda", "rankedb", "rejectsa"}
    assert publish(["day"], "b", "b", "b") == {"rankeda", "rankedb", "rejectsa", "rejectsb"}
    assert publish(["day"], "b", "", "ab") == {"rankedb"}
    assert publish([], "c", "", "c") == {"rankedt"}


def test_the_names_of_folders_are_no_patterns(job: Job, tmp_path: Path) -> None:
    good = write(tmp_path / "o1" / "good.parquet", "1", 2)
    out = tmp_path / "o[1]" / "o{a}" / "o 1*?"
    assert job(out, input__path=good, **{**STUB, "input__label": ""}) == DONE
    assert len(table(out / "ranked")) == 4


def test_partitions_that_a_killed_run_was_moving_are_moved_by_the_next(
    spark: SparkSession, tmp_path: Path
) -> None:
    """Former partitions are renamed aside, never deleted file by file in their place."""
    config = OutputConfig(path=str(tmp_path), partition_by=["date"])
    work = tmp_path / "_work" / "dead"
    for path, text in (
        (tmp_path / "ranked" / "date=1" / "f", "old"), (work / "ranked" / "date=2" / "f", "new"),
        (tmp_path / "rejects" / "date=1" / "f", "old"), (work / "run.json", '{"run_id": "dead"}'),
        (tmp_path / "run.json", '{"run_id": "old"}'),
    ):  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    note = {"run_id": "dead", "names": ["ranked/date=1", "ranked/date=2", "run.json"]}
    (tmp_path / "_swap.json").write_text(json.dumps({**note, "gone": ["rejects/date=1"]}))
    with OutputFolder(spark, config):
        pass
    found = {str(f.relative_to(tmp_path)): f.read_text() for f in tmp_path.rglob("f")}
    assert found == {"ranked/date=1/f": "old", "ranked/date=2/f": "new"}
    assert json.loads((tmp_path / "run.json").read_text())["run_id"] == "dead"
    assert not (tmp_path / "_swap.json").exists()
