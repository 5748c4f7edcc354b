"""The content of tune.json -> the sections of its page, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from jobs.evaluation.report import tuning_plots, words
from jobs.evaluation.report.parts import Cell, Column, Plot, Section, Table

Row = Mapping[str, Any]

_SPEED: Final = (
    Column("pairs/s"), Column("ms per pair", "p50"), Column("ms per pair", "p95"),
    Column("memory", "MB"),
)  # fmt: skip
_AGREEMENT: Final = (Column("Kendall’s tau"), Column("nDCG@10"))
_NOTES: Final = (
    "✓ recommended.",
    "Speeds are those of one task slot; slots of one machine share its memory bus.",
)


def sections(document: Mapping[str, Any]) -> list[Section]:
    """All that a page may have; empty ones have no part in it."""
    rows = [row for row in document["rows"] if row["runs"]]
    grid = [row for row in rows if not row["of_batches"]]
    best = recommended(document) or reference(document)
    return [
        _pareto(document, grid),
        Section(
            "precision",
            "Precision",
            tables=_one_key(
                grid, best, "precision", lambda row: str(row["engine"]), ("backend", "precision")
            ),
        ),
        _lengths(document, grid, best),
        Section(
            "budget",
            "Token budget",
            ["The padded size of one batch; too small and the device waits, too large and memory "
             "runs out."],
            tables=_one_key(
                grid, best, "max_tokens", lambda row: words.count(row["max_tokens"]),
                ("max_tokens",),
            ),
        ),
        _batches([row for row in rows if row["of_batches"]]),
        _all(document),
    ]  # fmt: skip


def recommended(document: Mapping[str, Any]) -> Row | None:
    """The row of the recommended setting."""
    return next((row for row in document["rows"] if row["recommended"]), None)


def reference(document: Mapping[str, Any]) -> Row | None:
    """The row that others are compared with."""
    row = document["rows"][document["reference_at"]]
    return row if "pairs_per_s" in row else None


def _pareto(document: Mapping[str, Any], grid: Sequence[Row]) -> Section:
    known = [row for row in grid if words.known(row.get("kendall_tau"))]
    if not known:
        return Section("pareto", "")
    front = [row for row in known if row["pareto"]]
    named = [
        f"{row['engine']} at max_length {row['max_length']}: {words.amount(row['pairs_per_s'])} "
        f"pairs/s, tau {words.fixed(row['kendall_tau'], 3)}"
        for row in sorted(front, key=lambda row: row["pairs_per_s"])
    ]
    caption = (
        "Each mark is a setting: to the right is faster, up is nearer to the order of "
        f"{document['reference']}. No setting beats those on the line in both; the circle "
        "is the recommended one. Below the dashed line nothing is recommended."
    )
    least = document["config"]["tune"]["min_tau"]
    label = (
        f"Throughput against agreement of {words.many(len(known), 'setting')}. {'; '.join(named)}."
    )
    return Section(
        "pareto",
        "Throughput against agreement",
        plots=[Plot(tuning_plots.pareto(label, known, least), caption)],
    )


def _lengths(document: Mapping[str, Any], grid: Sequence[Row], best: Row | None) -> Section:
    found = document["lengths"]
    percentiles = ", ".join(
        f"{key} {words.count(found[key])}"
        for key in ("mean", "p50", "p75", "p90", "p95", "p99", "max")
    )
    speeds = {row["max_length"]: row for row in _like(grid, best, ("max_length",))}
    rows = []
    for cut in found["cuts"]:
        row = speeds.get(cut["max_length"], {})
        rows.append(
            [
                Cell(words.count(cut["max_length"])),
                Cell(words.share(cut["share_cut"])),
                Cell(words.amount(cut["tokens_per_pair"])),
                Cell(words.share(cut["cost"])),
                Cell(words.seconds(3600 * cut["slot_hours"] if cut["slot_hours"] else None)),
                Cell(words.amount(row.get("pairs_per_s"))),
                Cell(words.fixed(row.get("kendall_tau"), 3)),
                Cell(words.signed(row.get("ndcg_delta"))),
            ]
        )
    columns = (
        Column("max_length", "tokens"), Column("pairs cut"), Column("tokens per pair"),
        Column("tokens in all", "of uncut"), Column("time", "one slot"), Column("pairs/s"),
        *_AGREEMENT,
    )  # fmt: skip
    notes = [
        "Time: for the whole table on one task slot at the speed of the recommended setting; "
        "estimated from tokens, though attention costs more on long pairs.",
        "Speed and agreement where a length was tried.",
    ]
    return Section(
        "lengths",
        "Lengths",
        [f"Tokens of {words.many(found['sampled'], 'sampled pair')}: {percentiles}."],
        tables=[Table("max_length", columns, rows, notes)],
    )


def _batches(rows: Sequence[Row]) -> Section:
    known = [row for row in rows if "pairs_per_s" in row]
    if not known:
        return Section("batches", "")
    columns = (
        Column("max_pairs"), Column("pairs/s"), Column("ms per batch", "p50"),
        Column("ms per batch", "p95"), Column("memory", "MB"), Column("padding"),
    )  # fmt: skip
    cells = [
        [
            Cell(words.count(row["max_pairs"])),
            Cell(words.amount(row["pairs_per_s"])),
            Cell(words.amount(row["ms_per_batch"]["p50"])),
            Cell(words.amount(row["ms_per_batch"]["p95"])),
            Cell(words.count(held_mb(row))),
            Cell(words.share(row["padding"])),
        ]
        for row in known
    ]
    label = "; ".join(
        f"{row['max_pairs']} pairs: {words.amount(row['pairs_per_s'])} pairs/s, "
        f"{words.amount(row['ms_per_batch']['p50'])} ms a batch"
        for row in known
    )
    caption = "How many pairs in a batch give which throughput, and how long a batch takes."
    return Section(
        "batches",
        "Batch size",
        ["The recommended setting with a fixed number of pairs in a batch in place of a budget."],
        plots=[Plot(tuning_plots.batch_sizes(label, known), caption)] if len(known) > 1 else [],
        tables=[Table("Batch size", columns, cells)],
    )


def _all(document: Mapping[str, Any]) -> Section:
    columns = (Column("setting", number=False), Column("runs"), *_SPEED, *_AGREEMENT)
    cells = [
        [
            _name(row, f"{row['engine']} · {row['max_length']} · {row['max_tokens']} · "
                  f"{row['max_pairs']}"),
            Cell(words.count(row["runs"])),
            *_speed(row),
            *_agreement(row),
        ]
        for row in sorted(document["rows"], key=_in_order)
    ]  # fmt: skip
    notes = [
        "Setting: precision · max_length · max_tokens · max_pairs. Medians over the runs.",
        *_NOTES,
    ]
    table = Table("All settings", columns, cells, notes, folded="every setting that was tried")
    return Section("all", "All settings", tables=[table])


def _one_key(
    grid: Sequence[Row],
    best: Row | None,
    title: str,
    name: Callable[[Row], str],
    keys: Sequence[str],
) -> list[Table]:
    """Rows that differ from the best in `keys` only."""
    rows = _like(grid, best, keys)
    if len(rows) < 2:
        return []
    columns = (Column(title, number=False), *_SPEED, *_AGREEMENT)
    cells = [[_name(row, name(row)), *_speed(row), *_agreement(row)] for row in rows]
    return [Table(title, columns, cells, _NOTES)]


def _name(row: Row, text: str) -> Cell:
    """A setting's name, with what went wrong below it."""
    return Cell(
        text,
        detail="" if row["outcome"] == "ok" else row["outcome"].replace("_", " "),
        mark="✓" if row["recommended"] else "",
        tone="best" if row["recommended"] else "",
    )


def _in_order(row: Row) -> list[Any]:
    keys = ("of_batches", "backend", "precision", "max_length", "max_tokens", "max_pairs")
    return [row[key] for key in keys]


def _like(grid: Sequence[Row], best: Row | None, keys: Sequence[str]) -> list[Row]:
    others = {"backend", "precision", "max_length", "max_tokens", "max_pairs"} - set(keys)
    if best is None:
        return []
    return sorted(
        (row for row in grid if all(row[key] == best[key] for key in others)),
        key=lambda row: [row[key] for key in keys],
    )


def _speed(row: Row) -> list[Cell]:
    times = row.get("ms_per_pair") or {}
    return [
        Cell(words.amount(row.get("pairs_per_s"))),
        Cell(words.amount(times.get("p50"))),
        Cell(words.amount(times.get("p95"))),
        Cell(words.count(held_mb(row))),
    ]


def _agreement(row: Row) -> list[Cell]:
    return [
        Cell(words.fixed(row.get("kendall_tau"), 3)),
        Cell(words.fixed(row.get("ndcg")), detail=words.signed(row.get("ndcg_delta"))),
    ]


def held_mb(row: Row) -> float | None:
    """Most memory held where it is scarce: on the GPU if there is one [MB]."""
    on_device: float | None = row.get("device_memory_mb")
    held: float | None = row.get("memory_mb")
    return held if on_device is None else on_device
