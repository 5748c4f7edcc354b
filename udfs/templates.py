"""Document templates: several fields of a row -> one text.

    Title: {title}
    Abstract: {abstract}
    {body}

Standard library only. `jobs.input.texts` renders a parsed template as Spark columns, `render`
does the same in Python; a test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

MissingRule = Literal["drop_line", "empty", "reject"]

# What counts as blank: white space and characters that show nothing, such as U+200B. Spelled out,
# because `\\s` means one set of characters to Python and another to Java.
BLANK: Final = (
    r"[\x00\x09-\x0d\x1c-\x20\x85\u00a0\u00ad\u1680\u2000-\u200f\u2028-\u202f"
    r"\u205f-\u2064\u3000\ufeff]*"
)

_FIELD: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True)
class Piece:
    """A stretch of a template: literal text, or the name of a field."""

    text: str
    is_field: bool


@dataclass(frozen=True)
class Template:
    """A parsed template: lines of pieces, and the rule for fields that are null or blank."""

    source: str
    lines: tuple[tuple[Piece, ...], ...]
    missing: MissingRule

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields, in order of appearance, each once."""
        names = [piece.text for line in self.lines for piece in line if piece.is_field]
        return tuple(dict.fromkeys(names))

    def render(self, values: Mapping[str, str | None]) -> str | None:
        """The text of one row; None if every field is missing, or one that the rule demands."""
        given = {name: values.get(name) or "" for name in self.fields}
        blank = {name for name, value in given.items() if re.fullmatch(BLANK, value)}
        present = {name: "" if name in blank else value for name, value in given.items()}
        if len(blank) == len(given) or (blank and self.missing == "reject"):
            return None
        lines = []
        for line in self.lines:
            fields = {piece.text for piece in line if piece.is_field}
            if self.missing == "drop_line" and fields and fields <= blank:
                continue
            lines.append("".join(present[p.text] if p.is_field else p.text for p in line))
        return "\n".join(lines)


def parse_template(source: str, missing: MissingRule = "drop_line") -> Template:
    r"""Read a template. `{field}` is replaced, `{{` and `}}` are braces, `\n` is a line break.

    Raises:
        ValueError: naming the position of a stray brace, or that there is no field at all.
    """
    text = source.replace("\\n", "\n")
    lines = tuple(tuple(_pieces(line)) for line in text.split("\n"))
    template = Template(source=source, lines=lines, missing=missing)
    if not template.fields:
        raise ValueError("the template names no field; write one as {name}")
    return template


def _pieces(line: str) -> list[Piece]:
    pieces: list[Piece] = []
    at = 0
    for match in _FIELD.finditer(line):
        if match.start() > at:
            pieces.append(Piece(line[at : match.start()], is_field=False))
        at = match.end()
        if match.group() in ("{{", "}}"):
            pieces.append(Piece(match.group()[0], is_field=False))
        elif match.group(1):
            pieces.append(Piece(match.group(1), is_field=True))
        else:
            raise ValueError(
                f"the template has a stray brace at character {match.start() + 1} of a line; "
                "double it to mean the brace itself, or name a field as {name}"
            )
    if at < len(line):
        pieces.append(Piece(line[at:], is_field=False))
    return pieces
