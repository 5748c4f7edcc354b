"""Tables of measures: before and after, against a baseline, all systems, slices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Final

from jobs.evaluation.report import words
from jobs.evaluation.report.parts import Cell, Column, Spread, Table
from jobs.evaluation.significance import SIGNIFICANT

_Row = Mapping[str, Any]

_BETTER, _WORSE = "▲", "▼"
_MARGIN: Final = 4.0  # percent left free at both ends of a drawn interval


def measures_table(
    title: str,
    document: Mapping[str, Any],
    names: tuple[str, str],
    rows: Sequence[Mapping[str, Any]],
    *,
    noted: bool = True,
) -> Table:
    """A row per measure, with whatever is known of it.

    Args:
        title: above it.
        document: for the level of the intervals.
        names: of what was before, and of what came after.
        rows: measure, before, before_ends, after, after_ends, delta, delta_ends, test, ceiling;
            all but the first may be None. A column without any value is left out.
        noted: whether the notes that say how to read it stand below it.
    """
    rows = _with_spreads(rows)
    has = {key for row in rows for key, value in row.items() if value is not None}
    tested = "test" in has
    return _table(
        title,
        [
            (True, Column("measure", number=False), lambda row: Cell(row["measure"])),
            ("before" in has, Column(names[0]), _valued("before", "before_ends")),
            (True, Column(names[1]), _valued("after", "after_ends")),
            ("delta" in has, Column("change"), _changed),
            ("spread" in has, Column("interval", number=False), _drawn),
            (tested, Column("p (Holm)"), lambda row: _p(row.get("test"))),
            (tested, Column("effect size"), lambda row: _effect(row.get("test"))),
            (tested, Column("helped / hurt / tied", "queries"), lambda row: _wins(row.get("test"))),
            ("ceiling" in has, Column("ceiling"), _valued("ceiling", "")),
        ],
        rows,
        _notes(document, has, rows) if noted else [],
    )


def systems_table(document: Mapping[str, Any]) -> Table | None:
    """Systems by measures as in a paper, if there are systems to compare beyond the two stages."""
    systems = document.get("systems") or []
    own = [system for system in systems if system["name"] != "first stage"]
    if len(own) < 2 and not (document.get("baseline") and len(systems) > 1):
        return None
    named = document.get("measures") or []
    measures = [m for m in named if any(m in s["values"] for s in systems)]
    best = {m: _best(systems, m) for m in measures if not m.startswith("Judged")}
    rows = [
        [Cell(str(system["name"])), *(_system_cell(system, m, best.get(m)) for m in measures)]
        for system in systems
    ]
    references = [str(system["name"]) for system in systems if system.get("versus") is None]
    notes = ["Bold: the best of its column."]
    if len(references) == 1:
        notes.append(
            f"{_BETTER} significantly better, {_WORSE} significantly worse than {references[0]} "
            f"(p below {SIGNIFICANT:g} after Holm’s correction)."
        )
    columns = [Column("system", number=False), *(Column(m) for m in measures)]
    return Table("Every system by every measure", columns, rows, notes)


def slice_tables(column: Mapping[str, Any], measures: Sequence[str], level: str) -> list[Table]:
    """The first measure of every slice, and the others folded."""
    tables = []
    for place, measure in enumerate(measures):
        rows = [row for row in column["rows"] if measure in (row.get("reranked") or {})]
        if rows:
            title = f"{measure} by {column['column']}"
            tables.append(_slice_table(title, rows, measure, level, folded=place > 0))
    return tables


def _with_spreads(rows: Sequence[_Row]) -> list[_Row]:
    """Add the drawn interval to every row, on one scale that holds them all, and zero."""

    def numbers(row: _Row) -> list[float]:
        found = [row.get("delta"), *(row.get("delta_ends") or [None])]
        return found if all(words.known(number) for number in found) else []

    scale: list[float] = [0.0, *(number for row in rows for number in numbers(row))]
    low, width = min(scale), max(scale) - min(scale)

    def place(number: float) -> float:
        return round(_MARGIN + (100 - 2 * _MARGIN) * (number - low) / width, 2)

    def spread(row: _Row) -> Spread | None:
        if not width or not numbers(row):
            return None
        middle, *ends = map(place, numbers(row))
        return Spread(place(0), ends[0], ends[1], middle, _direction(row)[1])

    return [{**row, "spread": spread(row)} for row in rows]


def _direction(row: _Row) -> tuple[str, str]:
    """Mark and tone of a difference: none unless it is significant."""
    delta = row.get("delta")
    if not words.known(delta) or not words.significant((row.get("test") or {}).get("p_holm")):
        return "", ""
    return (_BETTER, "helped") if delta > 0 else (_WORSE, "hurt")


def _slice_table(
    title: str, rows: Sequence[Mapping[str, Any]], measure: str, level: str, *, folded: bool
) -> Table:
    rows = _with_spreads([_slice_row(row, measure) for row in rows])
    has = {key for row in rows for key, value in row.items() if value is not None}
    compared, tested = "delta" in has, "test" in has
    notes = [f"Smaller numbers are {level} intervals."] if "ends" in has else []
    notes += [f"{_BETTER} {_WORSE} mark p below {SIGNIFICANT:g}."] if tested else []
    return _table(
        title,
        [
            (True, Column("slice", number=False), lambda row: Cell(row["name"])),
            (True, Column("queries"), lambda row: Cell(words.count(row["queries"]))),
            (compared, Column("first stage"), _valued("before", "")),
            # Without a first stage the intervals are those of the values themselves.
            (True, Column("reranked"), _valued("after", "" if compared else "ends")),
            (compared, Column("change"), _changed),
            ("spread" in has, Column("interval", number=False), _drawn),
            (tested, Column("p (Holm)"), lambda row: _p(row.get("test"))),
        ],
        rows,
        [] if folded else notes,
        folded=title if folded else "",
    )


def _slice_row(row: Mapping[str, Any], measure: str) -> _Row:
    def of(key: str) -> Any:
        return (row.get(key) or {}).get(measure)

    p = of("p_holm")
    return {
        "name": str(row["value"]),
        "queries": row.get("queries"),
        "before": of("first_stage"),
        "after": of("reranked"),
        "delta": of("delta"),
        "delta_ends": of("intervals"),
        "ends": of("intervals"),
        "test": None if p is None else {"p_holm": p},
    }


def _table(
    title: str,
    columns: Sequence[tuple[bool, Column, Callable[[_Row], Cell]]],
    rows: Sequence[_Row],
    notes: Sequence[str],
    folded: str = "",
) -> Table:
    """Of (whether it is shown, its head, how its cells are made) the columns that are shown."""
    shown = [(column, make) for is_shown, column, make in columns if is_shown]
    cells = [[make(row) for _, make in shown] for row in rows]
    return Table(title, [column for column, _ in shown], cells, notes, folded=folded)


def _valued(key: str, ends: str) -> Callable[[_Row], Cell]:
    return lambda row: Cell(words.fixed(row.get(key)), words.span(row.get(ends)))


def _changed(row: _Row) -> Cell:
    text = words.signed(row.get("delta"))
    return Cell(text, words.span(row.get("delta_ends"), sign=True), *_direction(row))


def _drawn(row: _Row) -> Cell:
    return Cell("", spread=row["spread"])


def _p(test: _Row | None) -> Cell:
    return Cell(words.p_value((test or {}).get("p_holm")))


def _effect(test: _Row | None) -> Cell:
    return Cell(words.signed((test or {}).get("effect_size"), 2))


def _wins(test: _Row | None) -> Cell:
    if not test:
        return Cell(words.NONE)
    return Cell(" / ".join(words.count(test.get(key)) for key in ("helped", "hurt", "tied")))


def _best(systems: Sequence[_Row], measure: str) -> str:
    values = [system["values"].get(measure) for system in systems]
    return words.fixed(max((value for value in values if words.known(value)), default=None))


def _system_cell(system: _Row, measure: str, best: str | None) -> Cell:
    text = words.fixed(system["values"].get(measure))
    versus = (system.get("versus") or {}).get(measure) or {}
    mark = ""
    if words.significant(versus.get("p_holm")) and versus.get("delta"):
        mark = _BETTER if versus["delta"] > 0 else _WORSE
    return Cell(text, mark=mark, tone="best" if text == best != words.NONE else "")


def _notes(document: _Row, has: Set[str], rows: Sequence[_Row]) -> list[str]:
    notes = ["Every measure lies between 0 and 1, and higher is better."]
    if any(row["measure"].startswith("Judged") for row in rows):
        notes.append("Judged: the share of these ranks whose document has a judgement.")
    if has & {"before_ends", "after_ends", "delta_ends"}:
        level = (document.get("intervals") or {}).get("level", 0.95)
        drawn = "; the vertical line in the drawn ones is no change" if "spread" in has else ""
        notes.append(
            f"Smaller numbers are {100 * level:g}% intervals of the mean over queries{drawn}."
        )
    if "test" in has:
        tests = [row["test"] for row in rows if row.get("test")]
        methods = list(dict.fromkeys(str(t["method"]) for t in tests if t.get("method")))
        notes.append(
            f"p: {'; '.join(['two-sided, after Holm’s correction', *methods])}. {_BETTER} {_WORSE} "
            f"mark p below {SIGNIFICANT:g}."
        )
        notes.append("Effect size: mean of the differences over their standard deviation.")
    if "ceiling" in has:
        notes.append(
            "Ceiling: what the best order of these candidates would reach; the rest is lost to "
            "documents that were never retrieved."
        )
    return notes
