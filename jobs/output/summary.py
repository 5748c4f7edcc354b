"""What the terminal shows: the closing summary, and the answer to `--dry-run`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.evaluation.significance import SIGNIFICANT
from jobs.runtime.redaction import masked
from jobs.scoring.token_lengths import SampledLengths


def closing_summary(
    record: Mapping[str, Any], document: Mapping[str, Any] | None, places: Mapping[str, str]
) -> str:
    """Counts, rates and where the files are, in a dozen lines."""
    counts, rates = record["counts"], record["rates"]
    lines = [
        f"input      {counts['input']:>12,} rows",
        f"ranked     {counts['ranked']:>12,} rows of {counts['queries']:,} queries",
        *_some(counts["cut"], "cut", "rows, by top_k or min_score"),
        *_some(counts["collapsed"], "collapsed", "rows, equal to another"),
        *_some(counts["rejected"], "rejected", f"rows, {_reasons(record['reject_reasons'])}"),
        f"distinct   {counts['distinct']:>12,} pairs",
        f"from store {counts['from_store']:>12,} pairs",
        f"scored     {counts['scored']:>12,} pairs{_speed(record)}",
        *_memory(record.get("memory") or {}),
        *_some(counts["truncated"], "truncated", f"pairs, cut at {_max_length(record)} tokens"),
    ]
    if rates["top1_change_rate"] is not None:
        lines.append(
            f"top-1      {rates['top1_change_rate']:>12.1%} of queries have a new first document"
        )
    if document:
        lines += ["", *metrics_table(document), *systems_table(document), *gate_lines(document)]
    lines += ["", *(f"{name:<10} {masked(path)}" for name, path in places.items())]
    return "\n".join(lines)


def evaluation_summary(document: Mapping[str, Any], places: Mapping[str, str]) -> str:
    """What `jobs.evaluate` shows: measures, comparison, gate, and where the files are."""
    lines = [*metrics_table(document), *systems_table(document), *gate_lines(document)]
    lines += ["", *(f"{name:<10} {masked(path)}" for name, path in places.items())]
    return "\n".join(lines)


def metrics_table(document: Mapping[str, Any]) -> list[str]:
    """First stage and reranked side by side, with Holm's p and what the candidates allow."""
    title = f"over {document['queries']:,} queries"
    ceiling = document["ceiling"]
    if document["first_stage"] is None:
        after = document["reranked"].items()
        return [f"{title:<20}   after", *(f"{name:<20}  {value:.4f}" for name, value in after)]
    lines = [f"{title:<20}  before   after   change  p (Holm)  ceiling"]
    for name, before in document["first_stage"].items():
        after, delta = document["reranked"][name], document["delta"][name]
        test = (document["tests"] or {}).get(name)
        p = f"{test['p_holm']:.4f}" if test else "-"
        best = f"{ceiling[name]:.4f}" if name in ceiling else "-"
        lines.append(f"{name:<20}  {before:.4f}  {after:.4f}  {delta:+.4f}  {p:>8}  {best:>7}")
    counted = {"queries_unanswered": "without a candidate, counted 0",
               "queries_without_relevant": "without a relevant document, counted 0",
               "queries_only_in_run": "without a judgement, left out"}  # fmt: skip
    lines += [f"  {document[k]:,} queries {what}" for k, what in counted.items() if document.get(k)]
    return lines + [f"  note: {note}" for note in document.get("notes", [])]


def systems_table(document: Mapping[str, Any]) -> list[str]:
    """Models x measures, where there are more than the two orders of one table."""
    systems = document["systems"]
    if len(systems) < 3:
        return []
    names = document["measures"]
    wide = max(len(row["name"]) for row in systems)
    lines = ["", " " * wide + "".join(f"  {name:>14}" for name in names)]
    for row in systems:
        cells = []
        for name in names:
            versus = (row["versus"] or {}).get(name)
            star = "*" if versus and versus["p_holm"] < SIGNIFICANT else " "
            value = f"{row['values'][name]:.4f}" if name in row["values"] else "-"
            cells.append(f"  {value + star:>14}")
        mark = "" if row["versus"] is not None else "  (baseline)"
        lines.append(f"{row['name']:<{wide}}{''.join(cells)}{mark}")
    lines.append(f"* differs from the baseline, p < {SIGNIFICANT} after Holm")
    return lines


def gate_lines(document: Mapping[str, Any]) -> list[str]:
    """Each rule with its numbers."""
    gate = document.get("gate")
    if not gate:
        return []
    lines = ["", f"gate {'passed' if gate['passed'] else 'NOT PASSED'}"]
    for row in gate["rules"]:
        value = "unknown" if row["value"] is None else f"{row['value']:.4f}"
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(f"  {'ok  ' if row['passed'] else 'FAIL'} {row['rule']}: {value}{note}")
    return lines


def dry_run_summary(
    counts: Mapping[str, int], lengths: SampledLengths | None, max_length: int, fingerprint: str
) -> str:
    """What a run would do: pairs, what the store holds, tokens and lengths."""
    missing = counts["distinct"] - counts["from_store"]
    share = counts["from_store"] / counts["distinct"] if counts["distinct"] else 0.0
    lines = [
        f"input      {counts['input']:>12,} rows",
        *_some(counts["collapsed"], "collapsed", "rows, equal to another"),
        *_some(counts["rejected"], "rejected", "rows"),
        f"distinct   {counts['distinct']:>12,} pairs",
        f"from store {counts['from_store']:>12,} pairs ({share:.1%})",
        f"to score   {missing:>12,} pairs",
    ]
    if lengths is not None:
        cut = lengths.cut_at(max_length)
        percentiles = "   ".join(f"p{p} {lengths.percentile(p):,.0f}" for p in (50, 95, 99))
        lines += [
            f"tokens     {cut.mean * missing:>12,.0f} to score, estimated",
            "",
            f"lengths of {len(lengths.whole):,} sampled pairs [tokens]:",
            f"  {percentiles}",
            f"  {cut.share:.1%} would be cut at model.max_length={max_length}",
        ]
    lines += ["", f"fingerprint {fingerprint}", "nothing was scored or written (--dry-run)"]
    return "\n".join(lines)


def _some(count: int, name: str, what: str) -> list[str]:
    return [f"{name:<10} {count:>12,} {what}"] if count else []


def _reasons(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())


def _speed(record: Mapping[str, Any]) -> str:
    rate = record["rates"]["pairs_per_s"]
    return f", {rate:,.1f} pairs/s" if rate else ""


def _memory(found: Mapping[str, Any]) -> list[str]:
    """The most that one process took while it scored, and what tensors took on a GPU."""
    if not found:
        return []
    device = found["device_mb"]
    on_device = "" if device is None else f", {device:,.0f} MB on a GPU"
    return [f"memory     {found['process_mb']:>12,.0f} MB, largest process that scored{on_device}"]


def _max_length(record: Mapping[str, Any]) -> str:
    return f"{record['config']['model']['max_length']:,}"
