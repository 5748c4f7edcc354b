"""The drawings with their captions; none where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from jobs.evaluation.report import plots, words
from jobs.evaluation.report.parts import Plot

# A limit further out than this many times the longest pair would squeeze the histogram.
_NEAR: Final = 1.6


def win_loss(document: Mapping[str, Any]) -> Plot | None:
    """What became of every query."""
    found = document.get("per_query") or {}
    differences = [value for value in found.get("differences") or [] if words.known(value)]
    if not any(differences):
        return None
    measure = str(found["measure"])
    test = (document.get("tests") or {}).get(measure) or {}
    tested = all(key in test for key in ("helped", "hurt", "tied"))
    numbers = (
        [test["helped"], test["hurt"], test["tied"]]
        if tested
        else [
            sum(value > 0 for value in differences),
            sum(value < 0 for value in differences),
            sum(value == 0 for value in differences),
        ]
    )
    helped, hurt, tied = (words.count(number) for number in numbers)
    total = sum(numbers)
    caption = (
        f"One bar per query: above the line {helped} gained, below it {hurt} lost, and {tied} kept "
        f"their {measure}."
    )
    if total > len(differences):
        caption += f" Drawn are {words.count(len(differences))} of {words.count(total)} queries."
    label = (
        f"Sorted bars of the change of {measure} per query, from "
        f"{words.signed(max(differences), 3)} to {words.signed(min(differences), 3)}: {helped} "
        f"queries helped, {hurt} hurt, {tied} tied."
    )
    return Plot(plots.win_loss(label, measure, differences, numbers), caption)


def flow(document: Mapping[str, Any]) -> Plot | None:
    """Where the documents that are now among the first came from."""
    found = (document.get("moved") or {}).get("flow") or {}
    rows = found.get("rows") or []
    total = sum(row["count"] for row in rows)
    if not total:
        return None
    parts = [f"{words.count(row['count'])} from {row['from']}" for row in rows]
    label = f"Bars of the documents now among the first {found['k']} by rank before: "
    caption = (
        f"The ranks that the {words.many(total, 'document')} now among the first {found['k']} had "
        "in the first stage."
    )
    return Plot(plots.flow(label + ", ".join(parts), rows), caption)


def rank_changes(document: Mapping[str, Any]) -> Plot | None:
    """How far documents moved."""
    moved = document.get("moved") or {}
    found = moved.get("rank_change") or {}
    histogram = found.get("histogram") or []
    total = sum(number for _, number in histogram)
    if not total:
        return None
    width = moved.get("bin_width") or 1
    middle = (
        f" Nine of ten moved between {words.signed(found['p5'], 0)} and "
        f"{words.signed(found['p95'], 0)} ranks."
        if words.known(found.get("p5")) and words.known(found.get("p95"))
        else ""
    )
    caption = (
        "How many documents moved by how many ranks; those to the right of the line came nearer "
        f"to the top.{middle}"
    )
    label = f"Histogram of the rank changes of {words.many(total, 'document')}.{middle}"
    return Plot(plots.rank_changes(label, histogram, width), caption)


def scores(document: Mapping[str, Any]) -> Plot | None:
    """The raw scores of relevant, not relevant and unjudged pairs."""
    found = document.get("scores") or {}
    edges = found.get("edges") or []
    keys = ("relevant", "not_relevant", "unjudged")
    parts = [
        (key.replace("_", " "), found[key]) for key in keys if found.get(key) and any(found[key])
    ]
    if len(edges) < 2 or not parts:
        return None
    sizes = [f"{name} {words.many(sum(counts), 'pair')}" for name, counts in parts]
    label = (
        f"Histograms of the raw score from {words.signed(edges[0], 1)} to "
        f"{words.signed(edges[-1], 1)}: {', '.join(sizes)}."
    )
    caption = (
        "Raw scores, each group in percent of its own pairs; the further right the relevant ones "
        "lie of the others, the better the model tells them apart."
        if {"relevant", "not relevant"} <= {name for name, _ in parts}
        else "How many percent of the pairs got which raw score."
    )
    return Plot(plots.scores_by_label(label, edges, parts), caption)


def reliability(document: Mapping[str, Any]) -> Plot | None:
    """Whether a probability means what it says."""
    found = document.get("scores") or {}
    rows = found.get("reliability") or []
    if not any(row["pairs"] for row in rows):
        return None
    error = (
        f" Expected calibration error: {words.fixed(found['ece'], 3)}."
        if words.known(found.get("ece"))
        else ""
    )
    caption = (
        "On the dashed line a probability is the share that is relevant; below it the model is "
        f"too sure of relevance, above it not sure enough.{error}"
    )
    points = [
        f"{words.fixed(row['mean_probability'], 2)} given, {words.fixed(row['share_relevant'], 2)} "
        f"relevant, {words.many(row['pairs'], 'pair')}"
        for row in rows
        if row["pairs"]
    ]
    return Plot(plots.reliability(f"Reliability curve: {'; '.join(points)}.{error}", rows), caption)


def lengths(document: Mapping[str, Any]) -> Plot | None:
    """How long the pairs are, and where they are cut."""
    found = document.get("lengths") or {}
    edges, counts = found.get("edges") or [], found.get("counts") or []
    if len(edges) < 2 or not any(counts):
        return None
    marks = [("p95", found["p95"], False)] if words.known(found.get("p95")) else []
    limit = found.get("max_length")
    near = words.known(limit) and limit <= _NEAR * edges[-1]
    if near:
        marks.append(("max_length", limit, True))
    caption = "How many pairs have how many tokens; 95% of them are no longer than the p95 line."
    if near:
        caption += " What is longer than max_length is cut."
    elif words.known(limit):
        caption += f" The cut, max_length {words.count(limit)}, lies far to the right."
    label = (
        f"Histogram of the lengths of {words.many(sum(counts), 'pair')} [tokens]: "
        f"{lengths_in_words(found)}."
    )
    return Plot(plots.lengths(label, edges, counts, marks), caption)


def lengths_in_words(found: Mapping[str, Any]) -> str:
    """Mean and percentiles in a row."""
    keys = ("mean", "p50", "p95", "p99", "max")
    return ", ".join(f"{key} {words.count(found[key])}" for key in keys if key in found)
