"""Document templates: several fields of a row -> one text; `jobs.input.texts` renders them.

Title: {title}
Abstract: {abstract}
{body}
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

MissingRule = Literal["drop_line", "empty", "reject"]

# What counts as blank: white space and characters that show nothing, such as U+200B. Spelled out,
# because `\\s` means one set of characters to Python and another to Java.
BLANK: Final = (
    r"[\x00\x09-\x0d\x1c-\x20\x85\u00a0\u00ad\u1680\u2000-\u200f\u2028-\u202f"
    r"\u205f-\u2064\u3000\ufeff]*"
)

_PIECE: Final = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]|[^{}]+")


@dataclass(frozen=True)
class Piece:
    """A stretch of a template: literal text, or the name of a field."""

    text: str
    is_field: bool


@dataclass(frozen=True)
class Template:
    """A parsed template: lines of pieces, and the rule for fields that are null or blank.

    A line whose fields are all missing is left out (`drop_line`), or the field is an empty text
    (`empty`); a row that lacks any field (`reject`), or every one, has no text.
    """

    lines: tuple[tuple[Piece, ...], ...]
    missing: MissingRule

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, in order of appearance, each once."""
        names = [piece.text for line in self.lines for piece in line if piece.is_field]
        return tuple(dict.fromkeys(names))


def parse_template(source: str, missing: MissingRule = "drop_line") -> Template:
    r"""Read a template. `{field}` is replaced, `{{` and `}}` are braces, `\n` is a line break.

    Raises:
        ValueError: naming the position of a stray brace, or that there is no field at all.
    """
    lines = source.replace("\\n", "\n").split("\n")
    template = Template(tuple(tuple(_pieces(line)) for line in lines), missing)
    if not template.fields:
        raise ValueError("the template names no field; write one as {name}")
    return template


def _pieces(line: str) -> Iterator[Piece]:
    for match in _PIECE.finditer(line):
        text, field = match[0], match[1]
        if text in ("{", "}"):
            raise ValueError(
                f"the template has a stray brace at character {match.start() + 1} of a line; "
                "double it to mean the brace itself, or name a field as {name}"
            )
        yield Piece(field or text.replace("{{", "{").replace("}}", "}"), is_field=bool(field))
