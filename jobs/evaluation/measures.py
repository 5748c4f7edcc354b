"""Ranking measures by the names of ir_measures, and their values for a bucket of lists.

Executors import this module: it needs numpy, pandas, scipy and ir_measures (with pytrec_eval).

Reference: S. MacAvaney, C. Macdonald, I. Ounis, "Streamlining Evaluation with ir-measures",
ECIR 2022.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import ir_measures
import numpy as np
import pandas as pd
from numpy.typing import NDArray

#: Measured in every evaluation: how far a value can be trusted depends on it.
JUDGED: Final = "Judged@10"
#: Ranks that people look at.
TOP: Final = 10
AFTER: Final = "reranked "
BEFORE: Final = "first_stage "
CEILING: Final = "ceiling "

_PERSISTENCE: Final = 0.9  # of the reader that rank-biased overlap assumes
Ranks = NDArray[np.int64]


def parse_measure(text: str) -> str:
    """Return a measure's name as ir_measures prints it: `RR(rel=1)@10` is `RR@10`.

    Raises:
        ValueError: no such measure (naming near ones), a parameter that is missing or wrong, or a
            package that is not installed.
    """
    try:
        measure: Any = ir_measures.parse_measure(text.strip())
    except NameError:
        near = ", ".join(_near(text.strip())) or "nDCG@10, RR@10, AP, P@1, R@100, Success@1"
        raise ValueError(f"unknown measure {text!r}; did you mean {near}?") from None
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"cannot read measure {text!r} ({error}); write NAME, NAME@k or NAME(rel=g)@k, for "
            "example RR(rel=2)@10"
        ) from None
    known = measure.SUPPORTED_PARAMS
    if missing := [n for n, p in known.items() if p.required and n not in measure.params]:
        name = str(measure)
        remedy = f"{name}@10" if measure.AT_PARAM in missing else f"{name}({missing[0]}=...)"
        raise ValueError(f"measure {text!r} has no {missing[0]}; write {remedy}")
    try:
        measure.validate_params()
    except AssertionError as error:
        raise ValueError(
            f"measure {text!r}: {error}; parameters of it are {', '.join(known) or 'none'}"
        ) from None
    for name in ("rel", "cutoff"):
        if measure.params.get(name, 1) < 1:
            raise ValueError(f"measure {text!r}: the lowest {name} is 1")
    try:
        ir_measures.evaluator([measure], {})
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"measure {text!r} is computed by no package that is here, nor may be on executors: "
            f"{reason}"
        ) from None
    return str(measure)


def parse_measures(texts: Iterable[str]) -> tuple[str, ...]:
    """Read several measures, each once, in the order given; all errors in one ValueError."""
    found, errors = [], []
    for text in texts:
        try:
            found.append(parse_measure(text))
        except ValueError as error:
            errors.append(str(error))
    if errors:
        raise ValueError("\n".join(errors))
    return tuple(dict.fromkeys(found))


def _near(text: str) -> list[str]:
    """Names like a text: trec_eval's for the same measure, another case, a similar spelling."""
    name, rest = re.fullmatch(r"(\w*)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    known = {name.lower(): each.NAME for name, each in ir_measures.measures.registry.items()}
    try:
        return [str(each) for each in ir_measures.parse_trec_measure(name)[:3]]
    except ValueError:
        close = difflib.get_close_matches(name.lower(), known, 3, 0.5)
        return list(dict.fromkeys(f"{known[each]}{rest}" for each in close))


@dataclass(frozen=True)
class _List:
    """One list in its reranked order, each document once.

    Attributes:
        key: values of the columns that identify it.
        docs: N document ids.
        scores: float[N].
        before: int[N], first-stage ranks without gaps; None without a first stage.
        truncated: bool[N].
        repeated: rows left out, as they repeat a document.
    """

    key: tuple[Any, ...]
    docs: list[str]
    scores: NDArray[np.floating]
    before: Ranks | None
    truncated: NDArray[np.bool_]
    repeated: int


def measure_bucket(
    rows: pd.DataFrame, judgements: pd.DataFrame, keys: Sequence[str], names: Sequence[str]
) -> pd.DataFrame:
    """Measure whole lists: the reranked order, the first stage's, and the best possible one.

    ir_measures is given ranks instead of scores: its providers break ties in different ways, and
    so there are none. Of a document that a list holds twice the best ranks count.

    Args:
        rows: `keys`, the last of which is query_id, doc_id, score (float), after and before (ranks
            by score and of the first stage; before is null without one), truncated (bool).
        judgements: query_id, doc_id, relevance (int) of these queries.
        keys: columns that identify a list.
        names: of the measures.

    Returns:
        A row per list, and per judged query without any: `keys`; `reranked M`, `first_stage M` and
        `ceiling M` for every measure M (the ceiling is the value if these documents were in order
        of grade; Judged has none), null for a query without judgements; the columns of `_facts`.
    """
    grades: dict[str, dict[str, int]] = {}
    columns = (judgements[name].tolist() for name in ("query_id", "doc_id", "relevance"))
    for query, doc, grade in zip(*columns, strict=True):
        grades.setdefault(query, {})[doc] = grade
    lists = _lists(rows, keys)
    answered = {each.key[-1] for each in lists}
    nothing = np.zeros(0)
    lists += [_List((None,) * (len(keys) - 1) + (query,), [], nothing, None, nothing > 0, 0)
              for query in grades if query not in answered]  # fmt: skip
    facts = [{**dict(zip(keys, each.key, strict=True)), **_facts(each, grades.get(each.key[-1]))}
             for each in lists]  # fmt: skip
    depth = _depth(names)
    truth: dict[str, dict[str, int]] = {}
    runs: dict[str, dict[str, dict[str, float]]] = {AFTER: {}, BEFORE: {}, CEILING: {}}
    for at, each in enumerate(lists):
        if (known := grades.get(each.key[-1])) is None:
            continue
        truth[str(at)] = _safe(known)
        for side, order in _orders(each, known).items():
            runs[side][str(at)] = {doc: -float(rank) for rank, doc in enumerate(order[:depth])}
    return pd.DataFrame(facts).join(_values(runs, truth, len(lists), names))


def _lists(rows: pd.DataFrame, keys: Sequence[str]) -> list[_List]:
    if rows.empty:
        return []
    rows = rows.sort_values([*keys, "after"])
    pair = [*keys, "doc_id"]
    number = rows.groupby(list(keys), sort=False).ngroup().to_numpy()
    repeated = rows.duplicated(pair).to_numpy()
    repeats = np.bincount(number, weights=repeated)
    if repeated.any():
        rows["before"] = rows.groupby(pair)["before"].transform("min")
        rows, number = rows[~repeated], number[~repeated]
    key = list(rows[list(keys)].itertuples(index=False, name=None))
    docs, scores = rows["doc_id"].tolist(), rows["score"].to_numpy()
    before = rows["before"].to_numpy(dtype=float, na_value=np.nan)
    truncated = rows["truncated"].to_numpy(dtype=float, na_value=0.0) > 0
    edges = np.flatnonzero(np.diff(number, prepend=-1, append=-1))
    return [
        _List(key[a], docs[a:b], scores[a:b], _dense(before[a:b]), truncated[a:b],
              int(repeats[number[a]]))
        for a, b in pairwise(edges.tolist())
    ]  # fmt: skip


def _dense(before: NDArray[np.floating]) -> Ranks | None:
    """Ranks without gaps; None if any is missing."""
    if np.isnan(before).any():
        return None
    ranks = np.empty(len(before), np.int64)
    ranks[np.argsort(before)] = np.arange(1, len(before) + 1)
    return ranks


def _facts(found: _List, grades: Mapping[str, int] | None) -> dict[str, Any]:
    """What is known of one list beside its measures.

    n_retrieved, n_relevant (documents of the qrels with a grade of 1 or more), n_judged (retrieved
    documents with a grade), answered and judged (bool), n_repeated, n_tied (documents whose score
    another one has), top1_changed (bool), kendall_tau and rbo between both orders (None without a
    first stage, tau also for one document), n_truncated and n_truncated_top (of the first `TOP`
    before or after).
    """
    count, before = len(found.docs), found.before
    _, times = np.unique(found.scores, return_counts=True)
    after = np.arange(1, count + 1)
    near = (after if before is None else np.minimum(after, before)) <= TOP
    return {
        "n_retrieved": count,
        "n_relevant": sum(grade >= 1 for grade in (grades or {}).values()),
        "n_judged": sum(doc in grades for doc in found.docs) if grades else 0,
        "answered": count > 0,
        "judged": grades is not None,
        "n_repeated": found.repeated,
        "n_tied": int(times[times > 1].sum()),
        "top1_changed": None if before is None else bool(before[0] != 1),
        "kendall_tau": None if before is None else kendall_tau(before),
        "rbo": None if before is None else rank_biased_overlap(before),
        "n_truncated": int(found.truncated.sum()),
        "n_truncated_top": int((found.truncated & near).sum()),
    }


def _orders(found: _List, grades: Mapping[str, int]) -> dict[str, list[str]]:
    """The documents in every order to be measured; none where there is no document."""
    if not found.docs:
        return {}
    unjudged = -(2**31)
    best = sorted(found.docs, key=lambda doc: grades.get(doc, unjudged), reverse=True)
    orders = {AFTER: found.docs, CEILING: best}
    if found.before is not None:
        orders[BEFORE] = [found.docs[at] for at in np.argsort(found.before)]
    return orders


def _safe(grades: dict[str, int]) -> dict[str, int]:
    # pytrec_eval reads past an array where every grade of a query is negative.
    return grades if max(grades.values()) >= 0 else {**grades, "": 0}


def _depth(names: Sequence[str]) -> int | None:
    """Ranks that the measures look at; None if any looks at all of them."""
    cutoffs = []
    for measure in map(ir_measures.parse_measure, names):
        if "cutoff" not in measure.params or measure.params.get("judged_only"):
            return None
        cutoffs.append(int(measure.params["cutoff"]))
    return max(cutoffs)


def _values(
    runs: dict[str, dict[str, dict[str, float]]],
    truth: dict[str, dict[str, int]],
    count: int,
    names: Sequence[str],
) -> pd.DataFrame:
    """Value of every side and measure by list; 0 where nothing was retrieved, NaN unjudged."""
    measures = {ir_measures.parse_measure(name): name for name in names}
    known = np.array([str(at) in truth for at in range(count)], dtype=bool)
    table = {
        side + name: np.where(known, 0.0, np.nan)
        for side in runs
        for name in names
        if not (side == CEILING and name.startswith("Judged"))
    }
    if truth:
        evaluator = ir_measures.evaluator([*measures], truth)
        for side, run in runs.items():
            for found in evaluator.iter_calc(run) if run else ():
                column = table.get(side + measures[found.measure])
                if column is not None:
                    column[int(found.query_id)] = found.value
    return pd.DataFrame(table, index=range(count))


def kendall_tau(before: Ranks) -> float:
    """Return Kendall's tau between 1, 2, 3, ... and a permutation of it; NaN of one rank."""
    from scipy import stats

    if len(before) < 2:
        return float("nan")
    return float(stats.kendalltau(np.arange(len(before)), before).statistic)


def rank_biased_overlap(before: Ranks, persistence: float = _PERSISTENCE) -> float:
    """Return the extrapolated rank-biased overlap of 1, 2, 3, ... and a permutation of it.

    Webber, Moffat, Zobel, "A similarity measure for indefinite rankings", TOIS 28(4), 2010,
    equation 32 for two lists of one length. 1 for equal orders.
    """
    depth = np.arange(1, len(before) + 1)
    # A document is in both lists to depth d when d reaches the lower of its two ranks.
    reached = np.bincount(np.maximum(depth, before), minlength=len(before) + 1)[1:]
    agreement = np.cumsum(reached) / depth
    weights = persistence**depth
    tail = agreement[-1] * weights[-1]
    return float(tail + (1 - persistence) / persistence * (agreement @ weights))
