"""What reranking moved: two orders of the same candidates, counted over a whole table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from pyspark.sql import functions as F

from jobs.evaluation.measures import TOP
from jobs.evaluation.run import RunEvaluation
from jobs.runtime.distributions import Distribution, distributions

_FLOW: Final = ((1, 10), (11, 20), (21, 50), (51, 100), (101, 2**62))  # ranks before
_BINS: Final = 30
_AGREEMENT: Final = 1e-4  # to which tau and overlap are rounded, to be counted


def count_changes(
    run: RunEvaluation, record: Mapping[str, Any] | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return what moved (None without a first stage), and lengths of the pairs (None if unknown).

    Args:
        run: of the table.
        record: of the run that scored it, for its `max_length`.
    """
    values = {
        "changes": F.col("before") - F.col("after"),  # up is positive
        "origins": F.when(F.col("after") <= TOP, F.col("before")),
        "lengths": F.col("n_tokens"),
    }
    found, sums = distributions(run.rows, values, {"truncated": F.col("truncated").cast("int")})
    moved = _moved(run, found["changes"], found["origins"]) if found["changes"].size else None
    return moved, _lengths(found["lengths"], sums["truncated"], record)


def _moved(run: RunEvaluation, changes: Distribution, origins: Distribution) -> dict[str, Any]:
    agreement, sums = distributions(
        run.per_query,
        {"kendall_tau": F.col("kendall_tau"), "rbo": F.col("rbo")},
        {
            "compared": F.isnotnull("top1_changed").cast("int"),
            "changed": F.col("top1_changed").cast("int"),
            "pairs": F.col("n_truncated"),
            "queries": (F.col("n_truncated") > 0).cast("int"),
            "queries_in_top": (F.col("n_truncated_top") > 0).cast("int"),
        },
        step=_AGREEMENT,
    )
    compared = sums.pop("compared")
    edges, counts = changes.histogram(_BINS)
    quantiles = changes.summary(0.05, 0.5, 0.95)
    del quantiles["mean"]
    return {
        "queries_compared": compared,
        "top1_change_rate": sums.pop("changed") / compared,
        "bin_width": edges[1] - edges[0],
        "rank_change": {
            "mean_absolute": float(np.abs(changes.values) @ changes.counts / changes.size),
            **quantiles,
            "histogram": [list(pair) for pair in zip(edges[:-1], counts, strict=True)],
        },
        **{key: each.summary(0.05, 0.5, 0.95) for key, each in agreement.items() if each.size},
        "flow": {"k": TOP, "rows": [_flow(origins, low, high) for low, high in _FLOW]},
        "truncation": {**sums, "k": TOP},
    }


def _flow(origins: Distribution, low: int, high: int) -> dict[str, Any]:
    """How many of the first `TOP` had a rank of low to high before."""
    inside = (origins.values >= low) & (origins.values <= high)
    name = f"{low}-{high}" if (low, high) != _FLOW[-1] else f"beyond {low - 1}"
    return {"from": name, "count": int(origins.counts[inside].sum())}


def _lengths(
    lengths: Distribution, truncated: int, record: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    if not lengths.size:
        return None
    edges, counts = lengths.histogram(_BINS)
    return {
        "edges": edges,
        "counts": counts,
        **lengths.summary(0.5, 0.95, 0.99),
        "max": float(lengths.values[-1]),
        "max_length": (((record or {}).get("config") or {}).get("model") or {}).get("max_length"),
        "truncated": truncated,
    }
