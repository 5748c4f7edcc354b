"""Whether two scorers agree on a few pairs that fit into memory. Pure, on arrays.

For whole tables there are `jobs.evaluation.metrics` and `jobs.evaluation.rank_changes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

CUTOFF: Final = 10  # ranks

Floats = NDArray[np.floating]


def kendall_tau(queries: Sequence[str], one: Floats, other: Floats) -> float | None:
    """Mean over queries of Kendall's tau-b between two scores of the same candidates.

    Args:
        queries: query id of each pair.
        one: float[N], scores; NaN where a pair has none, which leaves it out.
        other: float[N], as `one`.

    Returns:
        None where no query has two candidates with scores that differ.
    """
    from scipy import stats

    both = np.isfinite(one) & np.isfinite(other)
    found = []
    for rows in _by_query(queries):
        kept = rows[both[rows]]
        if len(kept) > 1:
            found.append(float(stats.kendalltau(one[kept], other[kept]).statistic))
    known = [tau for tau in found if np.isfinite(tau)]
    return float(np.mean(known)) if known else None


def ndcg(
    queries: Sequence[str], docs: Sequence[str], scores: Floats, grades: Floats
) -> float | None:
    """Mean nDCG@10 over the queries, trec_eval's: gain is the grade, ties by document id.

    The ideal order is that of these candidates alone, so the value is not that of the whole table.

    Args:
        queries: query id of each pair.
        docs: document id of each pair.
        scores: float[N]; a pair without one (NaN) comes last.
        grades: float[N], NaN where a pair is not judged.

    Returns:
        None where no pair has a grade above 0.
    """
    gains = np.maximum(np.nan_to_num(np.asarray(grades, np.float64)), 0.0)
    keyed = np.where(np.isfinite(scores), scores, -np.inf)
    values = []
    for rows in _by_query(queries):
        order = sorted(rows.tolist(), key=lambda row: (keyed[row], docs[row]), reverse=True)
        ideal = _dcg(np.sort(gains[rows])[::-1])
        if ideal:
            values.append(_dcg(gains[order]) / ideal)
    return float(np.mean(values)) if values else None


def _dcg(gains: Floats) -> float:
    top = gains[:CUTOFF]
    return float((top / np.log2(np.arange(2, len(top) + 2))).sum())


def _by_query(queries: Sequence[str]) -> Iterator[NDArray[np.intp]]:
    names = np.asarray(queries, dtype=object)
    for name in dict.fromkeys(queries):
        yield np.flatnonzero(names == name)
