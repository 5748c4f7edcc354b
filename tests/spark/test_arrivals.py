"""Which days of a log have new rows: every one once, and again if it was not dealt with."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from jobs.config import Config, InputConfig
from jobs.input.arrivals import for_new_days, in_a_row
from jobs.runtime.errors import RefusedError


class _BrokenError(Exception):
    """What a run may raise."""


def days(*numbers: int) -> list[date]:
    return [date(2026, 1, number) for number in numbers]


def test_days_in_a_row() -> None:
    assert in_a_row(days(5, 1, 2, 4)) == [(*days(1, 2),), (*days(4, 5),)]
    assert in_a_row([date(2025, 12, 31), *days(1)]) == [(date(2025, 12, 31), *days(1))]
    assert in_a_row([]) == []


@pytest.mark.parametrize("kind", ["folders", "json", "csv", "table"])
def test_new_rows_are_seen_once(kind: str, spark: SparkSession, tmp_path: Path) -> None:
    path, taken = str(tmp_path / "log [1]"), []
    given = {"table": "arrivals_log"} if kind == "table" else {"path": path}
    if kind not in ("table", "folders"):
        given["format"] = kind
    config = InputConfig.model_validate(
        {**given, "date": "day", "checkpoint": str(tmp_path / "checkpoint")}
    )

    def arrive(*numbers: int) -> None:
        rows = [(f"q{number}", str(day)) for number, day in enumerate(days(*numbers))]
        frame = spark.createDataFrame(rows, "query_id string, day string").coalesce(1)
        if kind == "table":
            frame.write.format("parquet").mode("append").saveAsTable("arrivals_log")
        elif kind == "folders":
            frame.write.partitionBy("day").mode("append").parquet(path)
        else:
            if kind == "json":
                frame = frame.selectExpr("query_id", "day || 'T23:59:00' AS day")
            frame.write.format(kind).option("header", True).mode("append").save(path)

    def new(fail: bool = False) -> list[tuple[date, date]]:
        def process(first: date, last: date) -> None:
            taken.append((first, last))
            if fail and len(taken) == 2:
                raise _BrokenError

        taken.clear()
        for_new_days(spark, config, process)
        return list(taken)

    try:
        arrive(1, 2)
        assert new() == [(*days(1, 2),)]
        assert new() == []
        arrive(1, 3, 4)
        with pytest.raises(_BrokenError) as error:
            new(fail=True)
        assert error.value.__notes__ == [
            "this is about days after 2026-01-01; those up to it are published"
        ]
        assert taken == [(*days(1, 1),), (*days(3, 4),)]
        arrive(9)
        assert new() == [(*days(1, 1),), (*days(3, 4),), (*days(9, 9),)]
        assert new() == []
    finally:
        spark.sql("DROP TABLE IF EXISTS arrivals_log")
        spark.sparkContext.setLogLevel("WARN")


def test_records_of_several_lines_and_other_text_for_days(
    spark: SparkSession, tmp_path: Path
) -> None:
    """A line that begins within a record is no record, and what is no day is of no day."""
    (tmp_path / "log").mkdir()
    config = InputConfig(path=str(tmp_path / "log"), format="csv", date="day", checkpoint="-")

    def new(checkpoint: str, *lines: str) -> list[tuple[date, date]]:
        taken: list[tuple[date, date]] = []
        (tmp_path / "log" / "part.csv").write_text("\n".join(lines) + "\n")
        chosen = config.model_copy(update={"checkpoint": str(tmp_path / checkpoint)})
        for_new_days(spark, chosen, lambda first, last: taken.append((first, last)))
        return taken

    rows = ('"two\nlines",2026-01-01', '"three\n\nlines",2026-01-03')
    assert new("last", "doc,day", *rows) == [(*days(1, 1),), (*days(3, 3),)]
    rows = ('2026-01-01,"two\nlines"', "2026-02-30,one", "no day at all,one")
    assert new("first", "day,doc", *rows) == [(*days(1, 1),)]


def test_what_is_no_log_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    def refused(**keys: object) -> str:
        config = InputConfig.model_validate({"date": "day", "checkpoint": str(tmp_path), **keys})
        with pytest.raises(RefusedError) as error:
            for_new_days(spark, config, lambda first, last: None)
        return str(error.value)

    spark.range(3).selectExpr("id", "'31.1.' day").write.parquet(str(tmp_path / "log.parquet"))
    there = str(tmp_path / "log.parquet")
    assert "input.date=day holds other text" in refused(path=there)
    assert "input.date=id is bigint" in refused(path=there, date="id")
    assert "has no column night" in refused(path=there, date="night")
    assert "cannot be read as a stream" in refused(table="no_such_table")
    (tmp_path / "log.csv").write_text("q1,a secret,2026-01-31\n")
    said = refused(path=str(tmp_path / "log.csv"))
    assert "does not name the column day; set input.date" in said and "secret" not in said
    with pytest.raises(ValueError, match=r"input\.checkpoint needs input\.date"):
        InputConfig(path="log", checkpoint="c")
    log = {"path": "log", "date": "day", "group": ["day"], "checkpoint": "c"}
    with pytest.raises(ValueError, match=r"add output\.partition_by=day"):
        Config.model_validate({"input": log})
    by_day = {"output": {"partition_by": ["day"]}}
    commits = {"partition_by": ["day"], "table": "lake.search.ranked"}
    assert (
        Config.model_validate({"input": log, "output": commits}).output.commit_mode == "partitions"
    )
    for mode, narrow in (("replace", log), ("append", log), ("replace", {"since": "2026-01-31"})):
        given = {"path": "log", "date": "day", "group": ["day"], **narrow}
        with pytest.raises(ValueError, match=f"output.table_mode={mode} would not keep"):
            Config.model_validate({"input": given, "output": {**commits, "table_mode": mode}})
    with pytest.raises(ValueError, match=r"leave out input\.since"):
        Config.model_validate({"input": {**log, "since": "2026-01-31"}, **by_day})
