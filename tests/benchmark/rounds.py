"""What the rounds of two ways say about each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any


def ratio(
    rows: Sequence[Mapping[str, Any]], fast: str, slow: str, key: str = "seconds"
) -> float | None:
    """Median of the rounds' ratios of throughput fast : slow; None if one of them is missing."""
    found = {row["what"]: row.get(key) or [] for row in rows}
    both = zip(found.get(fast, []), found.get(slow, []), strict=False)
    ratios = [theirs / ours for ours, theirs in both if ours and theirs]
    return round(median(ratios), 3) if ratios else None
