"""Which rows of the input a run takes: those of some days, those that a condition holds for."""

import re
from collections.abc import Mapping, Sequence
from datetime import date as Day
from datetime import timedelta
from typing import Any, Final

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import (
    DateType,
    StringType,
    StructField,
    StructType,
    TimestampNTZType,
    TimestampType,
)

from jobs.config import InputConfig
from jobs.input.columns import quoted
from jobs.input.readers import READ_ERROR
from jobs.input.texts import require
from jobs.runtime.compat import condition_of
from jobs.runtime.errors import RefusedError

_ISO: Final = re.compile(r"\d{4}-\d\d-\d\d")
_DAYS: Final = (DateType, TimestampType, TimestampNTZType, StringType)


def select_rows(rows: DataFrame, config: InputConfig) -> DataFrame:
    """Return the rows of the days `since` to `until` for which `where` holds.

    Both are conditions on columns as they are, so Spark reads only the partitions that they leave.
    A record that cannot be read stays, unless its partition says that it is not meant.

    Raises:
        RefusedError: a column of no days, or a condition that is none.
    """
    if config.date:
        require(rows.columns, "the input", {"date": config.date})
        rows = _of_days(rows, config.date, config)
    if config.where:
        try:
            rows = _kept(rows, F.expr(config.where))
            plan: Any = rows._jdf.queryExecution().analyzed()
        except AnalysisException as error:
            raise RefusedError(
                f"input.where={config.where} is no condition on the input ({condition_of(error)}); "
                f"its columns are {', '.join(c for c in rows.columns if c != READ_ERROR)}"
            ) from None
        if not plan.deterministic():
            raise RefusedError(
                f"input.where={config.where} may answer otherwise when rows are read again; leave "
                "out rand() and the like"
            )
    return rows


def day_of(column: Column) -> Column:
    """Return the day of a date, a timestamp or a text [yyyy-MM-dd]."""
    return F.substring(column.cast("string"), 1, 10)


def with_published(
    partitions: DataFrame, published: Sequence[Mapping[str, str | None]], config: InputConfig
) -> DataFrame:
    """Add to the input's partitions published ones of the days asked for, of which it has no row.

    `published` are values by column, as text. Lists are then of one day, and none of it is left.
    Partitions of a day and something else may be those of other inputs, and stay.
    """
    if not (config.since or config.until) or partitions.columns != [config.date]:
        return partitions
    since, until = str(config.since or "0"), str(config.until or "9999-12-31")
    there = [p for p in published if since <= (p.get(str(config.date)) or "")[:10] <= until]
    if not there:
        return partitions
    names = {field.name: field.dataType for field in partitions.schema}
    rows = [tuple(values[name] for name in names) for values in there]
    texts = StructType([StructField(name, StringType()) for name in names])
    typed = [quoted(name).cast(kind).alias(name) for name, kind in names.items()]
    more = partitions.sparkSession.createDataFrame(rows, texts).select(*typed)
    return partitions.union(more).distinct()


def refuse_days(rows: DataFrame, name: str) -> None:
    """Refuse a column that holds no days."""
    kind = rows.schema[name].dataType
    wrong = "" if isinstance(kind, _DAYS) else f"is {kind.simpleString()}"
    if isinstance(kind, StringType):
        first = rows.where(quoted(name).isNotNull()).select(quoted(name)).first()
        wrong = "holds other text" if first and not _ISO.match(first[0]) else ""
    if wrong:
        raise RefusedError(
            f"input.date={name} {wrong}; it has to be a date, a timestamp, or text that starts "
            "like 2026-01-31"
        )


def _of_days(rows: DataFrame, name: str, config: InputConfig) -> DataFrame:
    refuse_days(rows, name)
    kind = rows.schema[name].dataType
    if config.since:
        rows = _kept(rows, quoted(name) >= _literal(config.since, kind))
    if config.until and config.until < Day.max:
        rows = _kept(rows, quoted(name) < _literal(config.until + timedelta(days=1), kind))
    return rows


def _literal(day: Any, kind: object) -> Column:
    return F.lit(str(day) if isinstance(kind, StringType) else day)


def _kept(rows: DataFrame, condition: Column) -> DataFrame:
    return rows.where(condition | (F.isnotnull(READ_ERROR) & condition.isNull()))
