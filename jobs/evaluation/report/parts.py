"""What a section of the report is made of. The template lays these out; others fill them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Spread:
    """An interval drawn in a table cell; all places in percent of the cell's scale, from the left.

    Attributes:
        zero: where no difference would be.
        low: the lower end.
        high: the upper end.
        middle: the value itself.
        tone: "helped", "hurt" or "".
    """

    zero: float
    low: float
    high: float
    middle: float
    tone: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what stands in it.
        detail: smaller, below the text.
        mark: a sign behind the text; what it means is in the table's notes.
        tone: "helped", "hurt", "best" or "".
        spread: an interval drawn in place of the text.
        bar: a bar in place of the text [percent of the cell].
    """

    text: str
    detail: str = ""
    mark: str = ""
    tone: str = ""
    spread: Spread | None = None
    bar: float | None = None


@dataclass(frozen=True)
class Column:
    """The head of a column: its name, its unit if it has one, and whether it holds numbers."""

    name: str
    unit: str = ""
    number: bool = True


@dataclass(frozen=True)
class Table:
    """A table; the first cell of every row is its name.

    Attributes:
        title: above it.
        columns: heads, the first one that of the rows' names.
        rows: as many cells each as there are columns.
        notes: sentences below it: how to read it, what the marks mean.
        narrow: whether two may stand side by side.
        folded: words to unfold it by; empty for a table that is always open.
        first: rows that are always open while the rest is folded; 0 for all of them.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    narrow: bool = False
    folded: str = ""
    first: int = 0


@dataclass(frozen=True)
class Plot:
    """A drawing, and one sentence that says how to read it."""

    drawing: Markup
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the report: sentences, then drawings, then tables."""

    key: str
    title: str
    sentences: Sequence[str] = ()
    plots: Sequence[Plot] = ()
    tables: Sequence[Table] = ()

    def __bool__(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.sentences or self.plots or self.tables)


@dataclass(frozen=True)
class Figure:
    """A key figure of the strip below the verdict."""

    name: str
    value: str
    unit: str = ""
    detail: str = ""
    shares: Sequence[tuple[str, float]] = field(default=())  # (tone, percent): a bar below it


@dataclass(frozen=True)
class Verdict:
    """The first thing to read.

    Attributes:
        tone: "helped", "hurt" or "".
        sentence: in large type.
        numbers: the rest of that sentence, in lighter type.
        more: further sentences, in text size.
    """

    tone: str
    sentence: str
    numbers: str = ""
    more: Sequence[str] = ()
