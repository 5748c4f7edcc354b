"""Which days of a log have new rows since the last run, found out by Structured Streaming.

The checkpoint of a stream knows which files of a folder, or commits of a table, were taken. The
stream reads nothing of them but their days; a run then takes the rows of these days as ever.
"""

from collections.abc import Callable, Iterable
from datetime import date as Day
from datetime import timedelta
from typing import Final

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession

from jobs.config import InputConfig
from jobs.input.columns import quoted
from jobs.input.readers import USUAL, csv_options, resolve_format
from jobs.input.selection import day_of, refuse_days
from jobs.input.texts import require
from jobs.output.filesystem import Files, literal, text_folders
from jobs.runtime.compat import condition_of
from jobs.runtime.errors import RefusedError

# Else Spark takes no file that is a week older than the newest one.
_EVER: Final = {"maxFileAge": "36500d"}


def for_new_days(
    spark: SparkSession, config: InputConfig, process: Callable[[Day, Day], None]
) -> None:
    """Call `process` with the first and last of each days in a row that have new rows.

    They count as taken when it has returned for all of them. If it raises, or the driver dies, the
    next call begins with the same days. Rows without a day, which no run takes, are passed over.

    Raises:
        RefusedError: if the input cannot be read as a stream.
        Exception: what `process` raises.
    """
    failed: list[BaseException] = []
    done: list[Day] = []

    def take(batch: DataFrame, _: int) -> None:
        try:
            found = [_parsed(row["day"]) for row in batch.distinct().collect()]
            for first, last in in_a_row(day for day in found if day):
                process(first, last)
                done.append(last)
        except BaseException as error:
            if done:
                error.add_note(f"this is about days after {done[-1]}; those up to it are published")
            failed.append(error)
            spark.sparkContext.setLogLevel("OFF")  # it would show the stack of the stream's end
            raise

    days = _days(spark, config).writeStream.foreachBatch(take)
    query = days.option("checkpointLocation", config.checkpoint).trigger(availableNow=True).start()
    try:
        query.awaitTermination()
    except Exception:
        if failed:
            raise failed[0] from None
        raise


def _parsed(day: str | None) -> Day | None:
    """Return a day; None of anything else, as a damaged record may have there."""
    try:
        return Day.fromisoformat(day or "")
    except ValueError:
        return None


def in_a_row(days: Iterable[Day]) -> list[tuple[Day, Day]]:
    """Return first and last of all stretches of days that follow one another."""
    spans: list[tuple[Day, Day]] = []
    for day in sorted(days):
        if spans and day - spans[-1][1] == timedelta(days=1):
            spans[-1] = (spans[-1][0], day)
        else:
            spans.append((day, day))
    return spans


def _days(spark: SparkSession, config: InputConfig) -> DataFrame:
    """Return the stream of the input's days."""
    name, options, kind = str(config.date), {**config.options}, ""
    try:
        with text_folders(spark):
            if config.table:
                there = spark.table(config.table)
                rows = spark.readStream.options(**_EVER).table(config.table)
            else:
                path = str(config.path)
                kind = resolve_format(spark, path, config.format, None)
                folder = Files(spark).entry(path)
                if folder and folder.is_folder:  # or Spark finds no partitions behind brackets
                    options["basePath"] = path
                pattern = literal(path) if folder else path
                if kind in USUAL:
                    kind, options = "csv", csv_options(spark, pattern, kind, options)
                there = spark.read.format(kind).options(**options).load(pattern)
                stream = spark.readStream.format(kind).options(**options, **_EVER)
                rows = stream.schema(there.schema).load(pattern)
    except AnalysisException as error:
        raise RefusedError(
            f"{config.table or config.path} cannot be read as a stream ({condition_of(error)}); "
            "name a folder or a table that can, or leave input.checkpoint out"
        ) from None
    if kind == "csv" and name not in there.columns:  # they may be texts, no header
        raise RefusedError(
            f"the first line of {config.path} does not name the column {name}; set input.date to "
            "one that it names, or give the file a header"
        )
    require(there.columns, "the input", {"date": name})
    refuse_days(there, name)
    return rows.select(day_of(quoted(name)).alias("day"))
