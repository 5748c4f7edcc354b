"""The evaluation document -> the sections of the report, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from jobs.evaluation.report import comparisons, figures, words
from jobs.evaluation.report.operations import operations
from jobs.evaluation.report.parts import Cell, Column, Section, Table
from jobs.evaluation.report.verdict import first_measure, gate_table

_T = TypeVar("_T")
_FIRST: Final = 10  # queries of a table; the rest is folded


def sections(document: Mapping[str, Any]) -> list[Section]:
    """All that have something to show."""
    made = (
        Section("gate", "Gate", tables=_some(gate_table(document))),
        before_and_after(document),
        Section("systems", "All systems", tables=_some(comparisons.systems_table(document))),
        won_and_lost(document),
        order(document),
        slices(document),
        scores(document),
        lengths(document),
        operations(document),
    )
    return [section for section in made if section]


def before_and_after(document: Mapping[str, Any]) -> Section:
    """The measures of the first stage, the reranked order and the baseline."""
    tables = []
    if first_measure(document) and document.get("queries"):
        stages = ("first stage", "reranked")
        tables.append(
            comparisons.measures_table("Measures", document, stages, _stage_rows(document))
        )
    baseline = document.get("baseline")
    if baseline and tables:
        title = f"Against {baseline['name']}, over {words.queries(baseline['queries'])}"
        names = (words.shortened(str(baseline["name"])), "reranked")
        rows = _baseline_rows(document, baseline)
        tables.append(comparisons.measures_table(title, document, names, rows, noted=False))
    title = "Before and after" if document.get("first_stage") else "Measures"
    return Section("measures", title, _population(document) if tables else (), tables=tables)


def won_and_lost(document: Mapping[str, Any]) -> Section:
    """Query by query."""
    found = document.get("per_query") or {}
    sentences = []
    if found.get("differences") and not any(found["differences"]):
        sentences.append(f"No query changed its {found['measure']}.")
    tables = [
        *_query_tables("Most helped queries", found.get("most_helped") or [], found),
        *_query_tables("Most hurt queries", found.get("most_hurt") or [], found),
    ]
    return Section(
        "queries", "Query by query", sentences, _some(figures.win_loss(document)), tables
    )


def order(document: Mapping[str, Any]) -> Section:
    """What became of the order."""
    moved = document.get("moved") or {}
    plots = _some(figures.flow(document), figures.rank_changes(document))
    table = _agreement_table(moved)
    sentences = []
    if words.known(moved.get("top1_change_rate")):
        rate, queries = moved["top1_change_rate"], moved["queries_compared"]
        sentences.append(
            f"{words.share(rate)} of {words.queries(queries)} have a new first document."
        )
    sentences += _truncation(moved)
    return Section("order", "What moved", sentences, plots, _some(table))


def slices(document: Mapping[str, Any]) -> Section:
    """The same measures for parts of the queries."""
    level = f"{100 * (document.get('intervals') or {}).get('level', 0.95):g}%"
    measures = document.get("measures") or []
    tables = [
        table
        for column in document.get("slices") or []
        for table in comparisons.slice_tables(column, measures, level)
    ]
    return Section("slices", "Slices", tables=tables)


def scores(document: Mapping[str, Any]) -> Section:
    """What the scores say about relevance."""
    found = document.get("scores") or {}
    plots = _some(figures.scores(document), figures.reliability(document))
    sentences = []
    if words.known(found.get("ece")) and found.get("judged_pairs"):
        sentences.append(
            f"Over {words.many(found['judged_pairs'], 'judged pair')} the probability is off by "
            f"{words.fixed(100 * found['ece'], 1)} percentage points on average."
        )
    return Section("scores", "Scores and labels", sentences, plots)


def lengths(document: Mapping[str, Any]) -> Section:
    """How long the pairs are."""
    found = document.get("lengths") or {}
    plots = _some(figures.lengths(document))
    sentences = [f"Tokens per pair: {figures.lengths_in_words(found)}."] if plots else []
    if plots and words.known(found.get("truncated")):
        verb = "was" if found["truncated"] == 1 else "were"
        sentences.append(f"{words.many(found['truncated'], 'pair')} {verb} cut to fit the model.")
    return Section("lengths", "Lengths", sentences, plots)


def _population(document: Mapping[str, Any]) -> list[str]:
    """What the means are over, and which queries count 0 or not at all."""
    sentences = [f"Means over {words.queries(document['queries'])} with judgements."]
    for key, one, more in (
        ("queries_unanswered", "has no candidates and counts 0", "have no candidates and count 0"),
        (
            "queries_without_relevant",
            "has no relevant document and counts 0",
            "have no relevant document and count 0",
        ),
        ("queries_only_in_run", "without judgement is left out", "without judgement are left out"),
    ):
        if document.get(key):
            ending = one if document[key] == 1 else more
            sentences.append(f"{words.queries(document[key])} {ending}.")
    if document.get("first_stage_order"):
        sentences.append(f"The first stage is ordered by {document['first_stage_order']}.")
    return sentences


def _stage_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    intervals = document.get("intervals") or {}

    def of(block: Mapping[str, Any], key: str, measure: str) -> Any:
        return (block.get(key) or {}).get(measure)

    return [
        {
            "measure": str(measure),
            "before": of(document, "first_stage", measure),
            "before_ends": of(intervals, "first_stage", measure),
            "after": of(document, "reranked", measure),
            "after_ends": of(intervals, "reranked", measure),
            "delta": of(document, "delta", measure),
            "delta_ends": of(intervals, "delta", measure),
            "test": of(document, "tests", measure),
            "ceiling": of(document, "ceiling", measure),
        }
        for measure in document.get("measures") or []
        if measure in document["reranked"]
    ]


def _baseline_rows(
    document: Mapping[str, Any], baseline: Mapping[str, Any]
) -> list[dict[str, Any]]:
    rows = []
    for measure in document.get("measures") or []:
        before = (baseline.get("values") or {}).get(measure)
        delta = (baseline.get("delta") or {}).get(measure)
        if before is None or delta is None:
            continue
        rows.append(
            {
                "measure": str(measure),
                "before": before,
                # Over the queries both have, which may be fewer than those of the table above.
                "after": before + delta,
                "delta": delta,
                "delta_ends": (baseline.get("intervals") or {}).get(measure),
                "test": (baseline.get("tests") or {}).get(measure),
            }
        )
    return rows


def _query_tables(
    title: str, rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any]
) -> list[Table]:
    columns = (Column("query", number=False), Column("before"), Column("after"), Column("change"))
    cells = [
        [
            Cell(str(row["query_id"])),
            Cell(words.fixed(row["before"], 3)),
            Cell(words.fixed(row["after"], 3)),
            Cell(words.signed(row["delta"], 3)),
        ]
        for row in rows
    ]
    return (
        [Table(f"{title}, {found['measure']}", columns, cells, narrow=True, first=_FIRST)]
        if cells
        else []
    )


def _agreement_table(moved: Mapping[str, Any]) -> Table | None:
    """Rank correlations of the two orders, and their spread over queries."""
    rows = []
    notes = []
    tau, overlap = moved.get("kendall_tau"), moved.get("rbo")
    if tau:
        rows.append(_spread_row("Kendall’s tau", tau))
        notes.append("Kendall’s tau: 1 where the two orders are equal, −1 where they are reversed.")
    if overlap:
        rows.append(_spread_row("rank-biased overlap", overlap))
        weight = (
            f", persistence {overlap['persistence']:g}"
            if words.known(overlap.get("persistence"))
            else ""
        )
        notes.append(
            "Rank-biased overlap: 1 where they are equal, 0 where they share nothing; the first "
            f"ranks weigh most{weight}."
        )
    change = moved.get("rank_change") or {}
    if words.known(change.get("mean_absolute")):
        notes.append(
            f"A document moved by {words.amount(change['mean_absolute'])} ranks on average."
        )
    if not rows:
        return None
    columns = (
        Column("measure", number=False),
        Column("mean"), Column("p5"), Column("median"), Column("p95"),
    )  # fmt: skip
    return Table("Agreement of the two orders", columns, rows, notes)


def _spread_row(name: str, found: Mapping[str, Any]) -> list[Cell]:
    keys = ("mean", "p5", "p50", "p95")
    return [Cell(name), *(Cell(words.fixed(found.get(key), 3)) for key in keys)]


def _truncation(moved: Mapping[str, Any]) -> list[str]:
    found = moved.get("truncation")
    if not found:
        return []
    if not found["pairs"]:
        return ["No pair was cut to fit the model, so no order can have changed by that."]
    if not found["queries"]:
        return [
            f"No order can have changed by truncation ({words.many(found['pairs'], 'cut pair')})."
        ]
    changed = words.count(found["queries"])
    return [
        f"Truncation could have changed the order of {changed} of "
        f"{words.queries(moved['queries_compared'])}; {words.count(found['queries_in_top'])} have "
        f"a cut document among the first {found['k']} ({words.many(found['pairs'], 'cut pair')})."
    ]


def _some(*items: _T | None) -> list[_T]:
    return [item for item in items if item is not None]
