"""What the run cost: time per pair, throughput, rejects, and where the time went."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from jobs.evaluation.report import words
from jobs.evaluation.report.parts import Cell, Column, Section, Table

_COUNTS: Final = {
    "input": ("input", "rows"),
    "collapsed": ("collapsed, equal to another", "rows"),
    "rejected": ("rejected", "rows"),
    "distinct": ("distinct", "pairs"),
    "from_store": ("from the score store", "pairs"),
    "scored": ("scored", "pairs"),
    "truncated": ("truncated", "pairs"),
    "cut": ("cut by top_k or min_score", "rows"),
    "ranked": ("ranked", "rows"),
    "queries": ("queries", "queries"),
}


def operations(document: Mapping[str, Any]) -> Section:
    """Time and rejects of the run, where the document knows of one."""
    found = document.get("operations") or {}
    tables = [
        table
        for table in (_speed(found), _counts(found), _timings(found), _rejects(found))
        if table.rows
    ]
    return Section("operations", "Time and rejects", _model(found.get("model") or {}), (), tables)


def _model(model: Mapping[str, Any]) -> list[str]:
    if not model.get("name"):
        return []
    about = [str(model[key]) for key in ("architecture", "precision") if model.get(key)]
    if words.known(model.get("parameters")):
        about.insert(1, f"{words.compact(model['parameters'])} parameters")
    revision = f" at {model['revision']}" if model.get("revision") else ""
    details = f" ({', '.join(about)})" if about else ""
    return [f"Model: {model['name']}{revision}{details}."]


def _speed(found: Mapping[str, Any]) -> Table:
    times = found.get("ms_per_pair") or {}
    names = {"mean": "mean", "p50": "median", "p95": "p95", "p99": "p99"}
    rows = [
        (f"time per pair, {name}", words.amount(times[key]), "ms")
        for key, name in names.items()
        if words.known(times.get(key))
    ]
    for key, name, unit in (
        ("pairs_per_s", "throughput", "pairs/s"),
        ("tokens_per_s", "throughput", "tokens/s"),
    ):
        if words.known(found.get(key)):
            rows.append((name, words.amount(found[key]), unit))
    memory = found.get("memory") or {}
    for key, name in (("process_mb", "memory, largest process"), ("device_mb", "memory on a GPU")):
        if words.known(memory.get(key)):
            rows.append((name, words.amount(memory[key]), "MB"))
    for key, name, unit in (
        ("padding_share", "padding", "of tokens"),
        ("from_store_rate", "from the score store", "of pairs"),
        ("truncated_rate", "truncated", "of pairs"),
        ("reject_rate", "rejected", "of input rows"),
    ):
        if words.known(found.get(key)):
            rows.append((name, words.share(found[key]), unit))
    return _quantities("Speed and rates", rows)


def _counts(found: Mapping[str, Any]) -> Table:
    counts = found.get("counts") or {}
    rows = [
        (name, words.count(counts[key]), unit)
        for key, (name, unit) in _COUNTS.items()
        if words.known(counts.get(key))
    ]
    return _quantities("Counts", rows)


def _timings(found: Mapping[str, Any]) -> Table:
    """Parts of the run as bars in percent of the whole."""
    timings = {k: v for k, v in (found.get("timings") or {}).items() if words.known(v)}
    total = timings.pop("total", None)
    whole = max([*timings.values(), total or 0.0, 1e-9])
    rows = [
        [Cell(str(name)), Cell(words.seconds(time)), Cell("", bar=round(100 * time / whole, 1))]
        for name, time in timings.items()
    ]
    if total is not None:
        rows.append([Cell("total"), Cell(words.seconds(total), tone="best"), Cell("")])
    columns = (Column("part", number=False), Column("time"), Column("share", number=False))
    return Table("Timings", columns, rows, narrow=True)


def _rejects(found: Mapping[str, Any]) -> Table:
    reasons = sorted((found.get("reject_reasons") or {}).items(), key=lambda row: (-row[1], row[0]))
    whole = sum(number for _, number in reasons) or 1
    rows = [
        [
            Cell(str(reason)),
            Cell(words.count(number)),
            Cell("", bar=round(100 * number / whole, 1)),
        ]
        for reason, number in reasons
    ]
    columns = (
        Column("reason", number=False),
        Column("rejected", "rows"),
        Column("share", number=False),
    )
    return Table("Rejects by reason", columns, rows, narrow=True)


def _quantities(title: str, rows: list[tuple[str, str, str]]) -> Table:
    columns = (Column("quantity", number=False), Column("value"), Column("unit", number=False))
    cells = [[Cell(text) for text in row] for row in rows]
    return Table(title, columns, cells, narrow=True)
