"""What the terminal shows: the closing summary, and the answer to `--dry-run`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.lengths import LengthProfile


def closing_summary(record: Mapping[str, Any], places: Mapping[str, str]) -> str:
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
        *_some(counts["truncated"], "truncated", f"pairs, cut at {_max_length(record)} tokens"),
    ]
    if rates["top1_change_rate"] is not None:
        lines.append(
            f"top-1      {rates['top1_change_rate']:>12.1%} of queries have a new first document"
        )
    if record.get("metrics"):
        lines += ["", *metrics_table(record["metrics"])]
    lines += ["", *(f"{name:<10} {path}" for name, path in places.items())]
    return "\n".join(lines)


def metrics_table(metrics: Mapping[str, Any]) -> list[str]:
    """First stage and reranked side by side."""
    title = f"over {metrics['queries']:,} queries"
    if metrics["first_stage"] is None:
        after = metrics["reranked"].items()
        return [f"{title:<20}   after", *(f"{name:<20}  {value:.4f}" for name, value in after)]
    lines = [f"{title:<20}  before   after  change"]
    for name, before in metrics["first_stage"].items():
        after, delta = metrics["reranked"][name], metrics["delta"][name]
        lines.append(f"{name:<20}  {before:.4f}  {after:.4f}  {delta:+.4f}")
    return lines


def dry_run_summary(
    counts: Mapping[str, int], lengths: LengthProfile | None, max_length: int, fingerprint: str
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
        lines += [
            f"tokens     {lengths.mean_scored * missing:>12,.0f} to score, estimated",
            "",
            f"lengths of {lengths.sampled:,} sampled pairs [tokens]:",
            f"  p50 {lengths.p50:,.0f}   p95 {lengths.p95:,.0f}   p99 {lengths.p99:,.0f}",
            f"  {lengths.share_cut:.1%} would be cut at model.max_length={max_length}",
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


def _max_length(record: Mapping[str, Any]) -> str:
    return f"{record['config']['model']['max_length']:,}"
