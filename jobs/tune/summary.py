"""What tuning found, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.tune.rows import Row

_HEAD = f"{'engine':<17} {'length':>6} {'tokens':>7} {'pairs':>5} {'runs':>4} {'pairs/s':>8} "


def closing_summary(document: Mapping[str, Any], places: Mapping[str, str]) -> str:
    """Lengths, all settings, the recommended one, and where the files are."""
    lengths, counts = document["lengths"], document["counts"]
    keys = ("p50", "p75", "p90", "p95", "p99", "max")
    lines = [
        f"lengths of {lengths['sampled']:,} sampled pairs [tokens]:",
        "  " + "   ".join(f"{key} {lengths[key]:,.0f}" for key in keys),
        *(
            f"  max_length {cut['max_length']:>5,}: {cut['share_cut']:6.1%} cut, "
            f"{cut['cost']:6.1%} of the tokens"
            for cut in lengths["cuts"]
        ),
        "",
        f"measured on {counts['measured_on']:,} pairs of {document['queries']:,} queries, one task "
        f"slot, {document['device']}; agreement with {document['reference']}:",
        f"{_HEAD}{'ms p50':>7} {'p95':>6} {'MB':>7} {'tau':>6} {'nDCG@10':>8} {'':>8}",
        *(_line(row) for row in sorted(document["rows"], key=_in_order)),
        "",
    ]
    if document["recommended"]:
        lines += [
            f"recommended: {section}.{key} {value}"
            for section, content in document["recommended"].items()
            for key, value in content.items()
        ]
    else:
        lines.append("no setting can be recommended; see tune.min_tau and tune.max_loss")
    lines += ["", *(f"{name:<11} {place}" for name, place in places.items())]
    return "\n".join(lines)


def _in_order(row: Row) -> tuple[Any, ...]:
    """Batch sizes last, then setting by setting."""
    keys = ("of_batches", "backend", "precision", "max_length", "max_tokens", "max_pairs")
    return tuple(row[key] for key in keys)


def _line(row: Row) -> str:
    start = (
        f"{row['engine']:<17} {row['max_length']:>6} {row['max_tokens']:>7} {row['max_pairs']:>5} "
        f"{row['runs']:>4} "
    )
    if "pairs_per_s" not in row:
        return f"{start}{row['outcome']}"
    held = row["device_memory_mb"] if row["device_memory_mb"] is not None else row["memory_mb"]
    times = row["ms_per_pair"]
    tau = "-" if row["kendall_tau"] is None else f"{row['kendall_tau']:.3f}"
    ndcg, delta = (
        ("-", "") if row["ndcg"] is None else (f"{row['ndcg']:.4f}", f"{row['ndcg_delta']:+.4f}")
    )
    marks = (
        "recommended" if row["recommended"] else "" if row["outcome"] == "ok" else row["outcome"]
    )
    line = (
        f"{start}{row['pairs_per_s']:>8.1f} {times['p50']:>7.1f} {times['p95']:>6.1f} "
        f"{held:>7,.0f} {tau:>6} {ndcg:>8} {delta:>8} {marks}"
    )
    return line.rstrip()
