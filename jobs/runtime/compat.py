"""What older releases of Spark and scipy lack. Each function names the last release without it."""

import inspect
from typing import Any, Final

from pyspark import accumulators
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

ANSI: Final = "spark.sql.ansi.enabled"
_BATCH_BYTES: Final = 64 * 2**20
_BATCH_ROWS: Final = 1024


def lenient_casts() -> dict[str, str]:
    """Return the settings that `try_cast` needs (Spark 3.5)."""
    return {} if hasattr(Column, "try_cast") else {ANSI: "false"}


def try_cast(column: Column, kind: str) -> Column:
    """Return the value as another type, null where it is none (Spark 3.5)."""
    return column.try_cast(kind) if hasattr(Column, "try_cast") else column.cast(kind)


def is_valid_utf8(text: Column | str) -> Column:
    """Return whether the bytes of a text are UTF-8, null for null (Spark 3.5)."""
    if hasattr(F, "is_valid_utf8"):
        return F.is_valid_utf8(text)
    return make_valid_utf8(text) == _column(text)


def make_valid_utf8(text: Column | str) -> Column:
    """Return a text with U+FFFD in place of what is no UTF-8 (Spark 3.5)."""
    if hasattr(F, "make_valid_utf8"):
        return F.make_valid_utf8(text)
    # Spark 3.5 decodes leniently; Spark 4 would raise an error.
    return F.decode(_column(text).cast("binary"), "UTF-8")


def condition_of(error: PySparkException) -> str:
    """Return Spark's name of an error, such as `PATH_NOT_FOUND` (Spark 3.5: an error class)."""
    named = error.getCondition if hasattr(error, "getCondition") else error.getErrorClass
    return str(named() or type(error).__name__)


def has_profiles() -> bool:
    """Return whether `mapInPandas` takes a resource profile (Spark 3.5)."""
    return "profile" in inspect.signature(DataFrame.mapInPandas).parameters


def accumulator_server() -> Any:
    """Return the class of the driver's server for accumulators (Spark 3.5: another name)."""
    names = ("AccumulatorTCPServer", "AccumulatorServer")
    return next(getattr(accumulators, name) for name in names if hasattr(accumulators, name))


def limit_batches(texts: DataFrame) -> None:
    """Limit the rows of an Arrow batch by the largest pair where bytes have no limit (Spark 4.0).

    A batch that is too large kills the thread that writes it, and the task waits for ever.
    `texts` are query and doc; they are read once for it.
    """
    spark = texts.sparkSession
    if not spark.conf.isModifiable("spark.sql.execution.arrow.maxBytesPerBatch"):
        size = F.octet_length("query") + F.octet_length("doc")
        largest = texts.agg(F.max(size)).collect()[0][0] or 1
        rows = min(_BATCH_ROWS, max(1, _BATCH_BYTES // largest))
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(rows))


def _column(text: Column | str) -> Column:
    return F.col(text) if isinstance(text, str) else text
