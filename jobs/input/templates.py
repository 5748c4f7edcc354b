"""The texts of a pair as Spark columns: templates, instructions and the pair's key."""

from __future__ import annotations

from functools import reduce

from pyspark.sql import Column
from pyspark.sql import functions as F

from jobs.input.readers import as_text
from udfs.templates import BLANK, Template


def is_blank(text: Column) -> Column:
    """Whether a text is null or shows nothing."""
    # Java's expressions need the text in Java's encoding; mostly its first character will do.
    first = F.left(text, F.lit(1))
    return text.isNull() | (first.rlike(f"^{BLANK}$") & text.rlike(f"^{BLANK}$"))


def render(template: Template) -> Column:
    """The template's text for a row, as `Template.render` does it; null where there is none."""
    lines = []
    for line in template.lines:
        fields = [as_text(piece.text) for piece in line if piece.is_field]
        parts = [
            F.when(is_blank(as_text(piece.text)), "").otherwise(as_text(piece.text))
            if piece.is_field
            else F.lit(piece.text)
            for piece in line
        ]
        text = F.concat(*parts) if parts else F.lit("")
        if template.missing == "drop_line" and fields:
            text = F.when(~_all(is_blank(field) for field in fields), text)
        lines.append(text)
    whole = F.concat_ws("\n", *lines)  # leaves out null lines
    if template.missing == "reject":
        return F.when(~lacks_field(template), whole)
    # Literal text alone is no document.
    return F.when(~_all(is_blank(as_text(name)) for name in template.fields), whole)


def lacks_field(template: Template) -> Column:
    """Whether any field of the template is null or blank."""
    return ~_all(~is_blank(as_text(name)) for name in template.fields)


def with_instruction(instruction: str, text: Column) -> Column:
    """The text as the model reads it. A blank text stays blank, so that it is still found out."""
    if not instruction:
        return text
    return F.when(is_blank(text), text).otherwise(F.concat(F.lit(instruction), text))


def pair_key(query: Column, doc: Column) -> Column:
    """SHA-256 of the rendered pair [64 hex digits].

    The query's length goes in front, so that no two pairs share a concatenation.
    """
    size = F.octet_length(query).cast("string")
    return F.sha2(F.concat(size, F.lit(":"), query, doc).cast("binary"), 256)


def _all(conditions: object) -> Column:
    return reduce(lambda left, right: left & right, conditions)  # type: ignore[call-overload, no-any-return]
