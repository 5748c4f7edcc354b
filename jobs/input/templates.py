"""The texts of a pair as Spark columns: templates, instructions and the pair's key."""

from __future__ import annotations

from pyspark.sql import Column
from pyspark.sql import functions as F

from jobs.input.columns import all_of, as_text, is_blank
from udfs.templates import Template


def render(template: Template) -> Column:
    """Return the template's text for a row, as `Template.render` does; null where it has none."""
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
            text = F.when(~all_of(*map(is_blank, fields)), text)
        lines.append(text)
    whole = F.concat_ws("\n", *lines)  # leaves out null lines
    if template.missing == "reject":
        return F.when(~lacks_field(template), whole)
    # Literal text alone is no document.
    return F.when(~all_of(*(is_blank(as_text(name)) for name in template.fields)), whole)


def lacks_field(template: Template) -> Column:
    """Return whether any field of the template is null or blank."""
    return ~all_of(*(~is_blank(as_text(name)) for name in template.fields))


def with_instruction(instruction: str, text: Column) -> Column:
    """Return the text as the model reads it. A blank text stays blank, to be rejected later."""
    if not instruction:
        return text
    return F.when(is_blank(text), text).otherwise(F.concat(F.lit(instruction), text))


def pair_key(query: Column, doc: Column) -> Column:
    """Return the SHA-256 of the rendered pair [64 hex digits].

    The query's length goes in front, so that no two pairs share a concatenation.
    """
    size = F.octet_length(query).cast("string")
    return F.sha2(F.concat(size, F.lit(":"), query, doc).cast("binary"), 256)
