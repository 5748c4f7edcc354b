"""The ranked table as a table of a catalog, beside the output folder: one commit a run."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from operator import and_, or_
from typing import Final

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from jobs.config import OutputConfig
from jobs.runtime.compat import condition_of
from jobs.runtime.errors import InterruptedRunError, RefusedError

_CATALOGS: Final = "spark.sql.catalog."
_OWN: Final = "spark_catalog"
# Iceberg keeps it in the snapshot's summary; other formats ignore it.
_RUN_ID: Final = "snapshot-property.spark-rerank.run-id"


def refuse_table(spark: SparkSession, config: OutputConfig, schema: StructType) -> None:
    """Refuse a table that cannot take rows of this schema, before anything is scored.

    Raises:
        RefusedError: naming the catalog, or the columns, that do not fit.
    """
    name = str(config.table)
    catalog = name.partition(".")[0] if "." in name else ""
    if spark.conf.get(f"{_CATALOGS}{catalog}", None) is None:
        catalog = spark.catalog.currentCatalog()
    exists = _exists(spark, name)
    if catalog == _OWN and spark.conf.get(f"{_CATALOGS}{_OWN}", None) is None:
        raise RefusedError(
            f"output.table={name} would be in Spark's own catalog, which replaces nothing in one "
            f"commit; name a table of a catalog of Iceberg or Delta ({_CATALOGS}NAME)"
        )
    if not exists or config.commit_mode == "replace":
        return
    there = {field.name: field.dataType.simpleString() for field in spark.table(name).schema}
    here = {field.name: field.dataType.simpleString() for field in schema}
    differ = [
        f"{column} is {there.get(column, 'missing')} there and {here.get(column, 'missing')} here"
        for column in dict.fromkeys([*here, *there])
        if there.get(column) != here.get(column)
    ]
    if differ:
        raise RefusedError(
            f"output.table={name} does not take the ranked table: {'; '.join(differ[:5])}; alter "
            "it, name another one, or use output.table_mode=replace"
        )


def write_table(
    spark: SparkSession,
    ranked: DataFrame,
    processed: DataFrame | None,
    config: OutputConfig,
    run_id: str,
) -> None:
    """Commit the rows of a run: readers see the former rows or all of the new ones.

    Args:
        spark: the session.
        ranked: what is written; read back from where it was staged.
        processed: the partitions that the run has looked at; their former rows go, also where
            nothing is left of one (which `overwritePartitions` would keep).
        config: names the table.
        run_id: goes into the snapshot's properties, where the format has them.

    Raises:
        InterruptedRunError: if the catalog does not take it, for lack of a right or a schema, say.
    """
    name, by = str(config.table), [_column(name) for name in config.partition_by]
    writer = ranked.writeTo(name).option(_RUN_ID, run_id)
    with _failures_said(name):
        new = config.commit_mode == "replace" or not _exists(spark, name)
        if new and config.table_format:
            writer = writer.using(config.table_format)
        if new and by:
            writer = writer.partitionedBy(*by)
        if config.commit_mode == "replace":
            writer.createOrReplace()
        elif new:
            writer.create()
        elif config.commit_mode == "append" or processed is None:
            writer.append()
        elif rows := processed.select(*by).distinct().collect():
            writer.overwrite(reduce(or_, (_is(row.asDict()) for row in rows)))


@contextmanager
def _failures_said(name: str) -> Iterator[None]:
    try:
        yield
    except AnalysisException as error:
        raise InterruptedRunError(
            f"output.table={name} could not be written ({condition_of(error)}), so nothing "
            "was published; mend it, and start the same command again"
        ) from error


def _is(values: dict[str, object]) -> Column:
    """Whether a row is of the partition with these values by column."""
    conditions = (
        _column(name).isNull() if value is None else _column(name) == F.lit(value)
        for name, value in values.items()
    )
    return reduce(and_, conditions)


def _column(name: str) -> Column:
    return F.col(f"`{name.replace('`', '``')}`")


def _exists(spark: SparkSession, name: str) -> bool:
    try:
        return spark.catalog.tableExists(name)
    except AnalysisException as error:
        raise RefusedError(
            f"output.table={name} cannot be looked up ({condition_of(error)}); check the name, and "
            "the catalog's settings (spark.sql.catalog...)"
        ) from None
