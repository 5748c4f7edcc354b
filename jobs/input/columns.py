"""Columns of any type as ids, texts and numbers."""

from collections.abc import Mapping
from typing import Final

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import DecimalType, DoubleType, FloatType, NumericType

from jobs.runtime.compat import is_valid_utf8, try_cast
from udfs.templates import BLANK

BYTE_ORDER_MARK: Final = "\ufeff"
# What `str.strip` of Python removes; Java's `\s` and Spark's `trim` mean other sets.
WHITE_SPACE: Final = (
    "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)
_LONG: Final = 2.0**63


def quoted(name: str) -> Column:
    """Return a column by its exact name, whatever characters are in it."""
    return F.col("`" + name.replace("`", "``") + "`")


def as_text(name: str) -> Column:
    """Return a column as a string; binary is taken for UTF-8, and validated later."""
    return quoted(name).cast("string")


def nothing() -> Column:
    """Return a column of null strings."""
    return F.lit(None).cast("string")


def trimmed(text: Column, extra: str = "") -> Column:
    """Return a text without white space, and characters of `extra`, at its ends."""
    characters = WHITE_SPACE + extra
    # Trimming walks through the whole text, as does finding its last character; the last byte is at
    # hand, and of white space it is at most a blank's or no ASCII. Broken UTF-8 is rejected later.
    last = F.substring(text.cast("binary"), -1, 1)
    at_ends = F.left(text, F.lit(1)).isin(*characters) | ~last.between(F.lit(b"!"), F.lit(b"\x7f"))
    return F.when(at_ends & is_valid_utf8(text), F.btrim(text, F.lit(characters))).otherwise(text)


def is_blank(text: Column) -> Column:
    """Return whether a text is null or shows nothing."""
    # Java's expressions need the text in Java's encoding; mostly its first character will do.
    first = F.left(text, F.lit(1))
    return text.isNull() | (first.rlike(f"^{BLANK}$") & text.rlike(f"^{BLANK}$"))


def as_kind(column: Column, kind: str) -> Column:
    """Return a column, of text perhaps, as another type; null where it has no such value.

    The text `2.0` is the whole number 2.
    """
    return try_cast(column if kind == "boolean" else try_cast(column, "double"), kind)


def id_text(rows: DataFrame, name: str) -> Column:
    """Return a column of ids as text, equal for equal ids of tables with other types.

    White space and a byte-order mark at the ends are removed. Whole numbers of a floating-point or
    decimal column are written as integers: 0.0 is "0", 1e10 is "10000000000". NaN is null.
    """
    value, text = quoted(name), as_text(name)
    if not holds_fractions(rows, name):
        return trimmed(text, BYTE_ORDER_MARK)
    as_long = F.when(F.abs(value) < F.lit(_LONG), try_cast(value, "long").cast("string"))
    whole = F.coalesce(as_long, try_cast(value, "decimal(38,0)").cast("string"), text)
    is_number = ~F.isnan(value.cast("double"))
    return F.when(is_number, F.when(value % 1 == 0, whole).otherwise(text))


def holds_fractions(rows: DataFrame, name: str) -> bool:
    """Whether a column is of a type of numbers with digits behind the point."""
    kind = rows.schema[name].dataType
    return isinstance(kind, FloatType | DoubleType) or (
        isinstance(kind, DecimalType) and kind.scale > 0
    )


def number(
    rows: DataFrame, name: str, limit: float, words: Mapping[str, int] | None
) -> tuple[Column, Column]:
    """Return a column as a double below a limit, and whether a value is there that is none.

    A boolean is 0 or 1. `words` are numbers of values that are words; they are given for labels,
    where NaN means that there is no value.
    """
    if isinstance(rows.schema[name].dataType, NumericType):
        value = quoted(name).cast("double")
        given = value.isNotNull()
    else:
        text = trimmed(as_text(name))
        value = try_cast(text, "double")
        for word, meaning in {"true": 1, "false": 0, **(words or {})}.items():
            value = F.when(text == word, F.lit(float(meaning))).otherwise(value)
        given = text.isNotNull() & (text != "")
    if words is not None:
        given = given & ~F.coalesce(F.isnan(value), F.lit(False))
    fits = F.coalesce(F.abs(value) < F.lit(limit), F.lit(False))  # NaN is above all numbers
    return F.when(fits, value), given & ~fits
