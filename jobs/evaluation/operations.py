"""How the scores came about, out of the record of the run that made them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_RATES: Final = (
    "pairs_per_s", "tokens_per_s", "padding_share", "from_store_rate", "reject_rate",
    "truncated_rate",
)  # fmt: skip


def operations(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Speed, shares and counts of a rerank run; None where nothing is known of it."""
    if not record or "rates" not in record:
        return None
    rates = record["rates"]
    return {
        "counts": record.get("counts", {}),
        "ms_per_pair": record.get("device_ms"),
        "memory": record.get("memory"),
        **{name: rates.get(name) for name in _RATES},
        "reject_reasons": record.get("reject_reasons", {}),
        "timings": record.get("timings", {}),
        "model": record.get("model", {}),
    }


def max_length(record: Mapping[str, Any] | None) -> int | None:
    """The longest pair that the model was given [tokens]."""
    found = ((record or {}).get("config") or {}).get("model", {}).get("max_length")
    return int(found) if found else None
