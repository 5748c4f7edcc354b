"""The content of tune.json -> one HTML page, laid out as the report is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.evaluation.report import words
from jobs.evaluation.report.parts import Figure, Verdict
from jobs.evaluation.report.report import page, settings
from jobs.evaluation.report.tuning_sections import held_mb, recommended, reference, sections

Row = Mapping[str, Any]


def render(document: Mapping[str, Any]) -> str:
    """Write the page. The same document gives the same text."""
    model = document["model"]
    return page(
        kind="Tuning",
        title=str(model["name"]),
        about=[words.moment(document["started"]), document["device"], f"run {document['run_id']}"],
        verdict=verdict(document),
        figures=figures(document),
        sections=[section for section in sections(document) if section],
        examples=[],
        settings=settings(document),
    )


def verdict(document: Mapping[str, Any]) -> Verdict:
    """What to use, and how much that gains."""
    row = recommended(document)
    if row is None:
        limits = document["config"]["tune"]
        return Verdict(
            "hurt",
            "No setting can be recommended",
            more=[
                f"None scored every pair with Kendall’s tau of at least {limits['min_tau']:g} and "
                f"a loss of nDCG@10 of at most {limits['max_loss']:g}."
            ],
        )
    slow = reference(document)
    times = row["pairs_per_s"] / slow["pairs_per_s"] if slow else None
    numbers = (
        f", {times:.1f} times as fast as {document['reference']}"
        if times and row is not slow
        else ""
    )
    sentence = (
        f"{row['engine']}, max_length {words.count(row['max_length'])}, "
        f"max_tokens {words.count(row['max_tokens'])}"
    )
    return Verdict("helped", sentence, numbers, [_agreement_sentence(document, row)])


def figures(document: Mapping[str, Any]) -> list[Figure]:
    """The recommended setting in numbers."""
    row = recommended(document)
    if row is None:
        return []
    lengths = document["lengths"]
    cut = next(c for c in lengths["cuts"] if c["max_length"] == row["max_length"])
    hours = (cut["slot_hours"] or 0.0) / document["task_slots"]
    found = [
        Figure("throughput", words.amount(row["pairs_per_s"]), "pairs/s", "of one task slot"),
        Figure("time per pair", words.amount(row["ms_per_pair"]["p50"]), "ms", _p95(row)),
        Figure("memory", words.count(held_mb(row)), "MB", "of one worker, at its peak"),
        Figure("cut", words.share(cut["share_cut"]), "", f"of the pairs, p95 {lengths['p95']:g}"),
        Figure(
            "the whole table",
            words.seconds(3600 * hours),
            "",
            f"{words.many(document['counts']['distinct'], 'pair')}, "
            f"{words.many(document['task_slots'], 'task slot')}, estimated",
        ),
    ]
    return found


def _p95(row: Row) -> str:
    return f"p50; p95 {words.amount(row['ms_per_pair']['p95'])} ms"


def _agreement_sentence(document: Mapping[str, Any], row: Row) -> str:
    counts = document["counts"]
    on = f"{words.many(counts['measured_on'], 'pair')} of {words.queries(document['queries'])}"
    said = [f"Kendall’s tau {words.fixed(row['kendall_tau'], 3)}"]
    if words.known(row.get("ndcg_delta")):
        said.append(f"nDCG@10 {words.signed(row['ndcg_delta'])}")
    return f"Against {document['reference']} on {on}: {', '.join(said)}."
