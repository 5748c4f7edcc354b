"""Whether two scorers agree on a few pairs that fit into memory. Pure, on arrays."""

from collections.abc import Sequence
from typing import Final

import ir_measures
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

MEASURE: Final = "nDCG@10"

Floats = NDArray[np.floating]


def kendall_tau(queries: Sequence[str], one: Floats, other: Floats) -> float | None:
    """Return the mean over queries of Kendall's tau-b between two scores of the same candidates.

    N query ids and twice float[N]; a pair without a score (NaN) is left out. None where no query
    has two candidates with scores that differ.
    """
    pairs = pd.DataFrame({"one": one, "other": other, "query": list(queries)})
    lists = pairs[np.isfinite(one) & np.isfinite(other)].groupby("query")
    found = [
        stats.kendalltau(rows["one"], rows["other"]).statistic for _, rows in lists if len(rows) > 1
    ]
    known = [float(tau) for tau in found if np.isfinite(tau)]
    return float(np.mean(known)) if known else None


def ndcg(
    queries: Sequence[str], docs: Sequence[str], scores: Floats, grades: Floats
) -> float | None:
    """Return the mean nDCG@10 over queries with a relevant document, trec_eval's.

    The ideal order is that of these candidates alone, so the value is not that of the whole table.
    N query and document ids; scores float[N], a pair without one (NaN) comes last; grades float[N],
    NaN where a pair is not judged. None where no pair has a grade above 0.
    """
    run = pd.DataFrame({"query_id": list(queries), "doc_id": list(docs), "relevance": grades})
    run["score"] = np.where(np.isfinite(scores), scores, -np.inf)
    qrels = run[run["relevance"] > 0].astype({"relevance": int})
    if qrels.empty:
        return None
    measure = ir_measures.parse_measure(MEASURE)
    return float(ir_measures.calc_aggregate([measure], qrels, run)[measure])
