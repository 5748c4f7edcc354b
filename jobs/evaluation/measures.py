"""Ranking measures by the names of ir_measures, and their values for a bucket of lists.

Executors import this module: it needs numpy, pandas, scipy and ir_measures (with pytrec_eval).

Reference: S. MacAvaney, C. Macdonald, I. Ounis, "Streamlining Evaluation with ir-measures",
ECIR 2022.
"""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import ir_measures
import numpy as np
import pandas as pd

#: Measured in every evaluation: how far a value can be trusted depends on it.
JUDGED: Final = "Judged@10"
#: Ranks that people look at.
TOP: Final = 10
AFTER: Final = "reranked "
BEFORE: Final = "first_stage "
CEILING: Final = "ceiling "

#: Columns that measuring adds to the candidates.
ADDED: Final = ("relevance", "before", "after")
#: What is known of a list beside its measures, and its type in Spark.
FACTS: Final = {
    "n_retrieved": "int",
    "n_relevant": "int",  # documents of the qrels with a grade of 1 or more
    "n_judged": "int",  # retrieved documents with a grade
    "answered": "boolean",  # whether there is a candidate
    "judged": "boolean",  # whether the qrels have the query
    "n_repeated": "int",  # rows left out, as they repeat a document
    "n_tied": "int",  # documents whose score another one has
    "top1_changed": "boolean",  # this and the next two are null without a first stage
    "kendall_tau": "double",  # null also for a single document
    "rbo": "double",
    "n_truncated": "int",
    "n_truncated_top": "int",  # of the first `TOP` before or after
}


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
    if measure.NAME == "Accuracy":
        raise ValueError(
            f"measure {text!r} is undefined for lists without an irrelevant document; leave it out"
        )
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


def _near(text: str) -> list[str]:
    """Names like a text: trec_eval's for the same measure, another case, a similar spelling."""
    name, rest = re.fullmatch(r"(\w*)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    known = {name.lower(): each.NAME for name, each in ir_measures.measures.registry.items()}
    try:
        return [str(each) for each in ir_measures.parse_trec_measure(name)[:3]]
    except ValueError:
        close = difflib.get_close_matches(name.lower(), known, 3, 0.5)
        return list(dict.fromkeys(f"{known[each]}{rest}" for each in close))


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
        A row per list, and per judged query without any: `keys`; the columns of `value_columns`,
        null for a query without judgements; `FACTS`.
    """
    rows = _ranked(rows, judgements, [*keys])
    lists = _facts(rows, judgements, [*keys])
    grades: dict[str, dict[str, int]] = {}
    columns = (judgements[name].tolist() for name in ("query_id", "doc_id", "relevance"))
    for query, doc, grade in zip(*columns, strict=True):
        grades.setdefault(query, {})[doc] = grade
    # pytrec_eval reads past an array where every grade of a query is negative.
    safe = {query: {"": 0, **of} if max(of.values()) < 0 else of for query, of in grades.items()}
    judged = lists.loc[lists["judged"], "query_id"]
    truth = {str(number): safe[query] for number, query in judged.items()}
    values = _values(rows[rows["query_id"].isin(grades)], truth, names)
    values = values.reindex(index=lists.index.astype(str), columns=value_columns(names))
    values = values.fillna(0.0).set_axis(lists.index)
    values[~lists["judged"]] = np.nan
    return lists.join(values)[[*keys, *values, *FACTS]]


def value_columns(names: Sequence[str]) -> list[str]:
    """Return `reranked M`, `first_stage M` and `ceiling M` of every measure; Judged has no ceiling.

    The ceiling is the value if the documents of the list were in order of grade.
    """
    columns = [side + name for name in names for side in (AFTER, BEFORE, CEILING)]
    return [name for name in columns if not name.startswith(f"{CEILING}Judged")]


def _ranked(rows: pd.DataFrame, judgements: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Each document of a list once, with three ranks without gaps, and the `number` of its list."""
    rows = rows.astype({"before": float}).sort_values([*keys, "after"])
    pairs = rows.groupby([*keys, "doc_id"], sort=False)
    before, copies = pairs["before"].transform("min"), pairs["doc_id"].transform("size")
    rows = rows.assign(before=before, copies=copies).drop_duplicates([*keys, "doc_id"])
    rows = rows.merge(judgements, on=["query_id", "doc_id"], how="left")
    lists = rows.groupby(keys, sort=False)
    best = lists["relevance"].rank("first", ascending=False, na_option="bottom")
    return rows.assign(
        number=lists.ngroup(), best=best, after=lists.cumcount() + 1,
        before=lists["before"].rank("first"), truncated=rows["truncated"].eq(True),
    )  # fmt: skip


def _facts(rows: pd.DataFrame, judgements: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """`FACTS` of every list, and of every judged query without one."""
    marked = rows.assign(
        repeated=rows["copies"] - 1, tied=rows.duplicated(["number", "score"], keep=False),
        moved=rows["before"] != 1,
        near=rows["truncated"] & (rows[["after", "before"]].min(axis=1) <= TOP),
    )  # fmt: skip
    facts: dict[str, Any] = {
        "n_retrieved": ("doc_id", "size"), "n_judged": ("relevance", "count"),
        "n_repeated": ("repeated", "sum"), "n_tied": ("tied", "sum"),
        "n_truncated": ("truncated", "sum"), "n_truncated_top": ("near", "sum"),
    }  # fmt: skip
    if rows["before"].notna().all():
        facts |= {"top1_changed": ("moved", "first"), "kendall_tau": ("before", kendall_tau),
                  "rbo": ("before", rank_biased_overlap)}  # fmt: skip
    lists = marked.groupby(keys, sort=False, as_index=False).agg(**facts)
    queries = judgements["query_id"].drop_duplicates()
    unanswered = queries[~queries.isin(lists["query_id"])].to_frame()
    lists = pd.concat([lists, unanswered], ignore_index=True).reindex(columns=[*keys, *FACTS])
    relevant = judgements.loc[judgements["relevance"] >= 1, "query_id"].value_counts()
    lists["n_relevant"] = lists["query_id"].map(relevant)
    counts = [name for name, kind in FACTS.items() if kind == "int"]
    lists[counts] = lists[counts].fillna(0).astype(int)
    lists["top1_changed"] = lists["top1_changed"].astype(object)  # may hold nulls
    return lists.assign(answered=lists["n_retrieved"] > 0, judged=lists["query_id"].isin(queries))


def _values(
    rows: pd.DataFrame, truth: dict[str, dict[str, int]], names: Sequence[str]
) -> pd.DataFrame:
    """Values by number of the list, in a column per side and measure; of some lists only."""
    measures: list[Any] = [ir_measures.parse_measure(name) for name in names]
    evaluator, tables = ir_measures.evaluator(measures, truth), [pd.DataFrame()]
    # Ranks that the measures look at; those of judged documents alone may be at any depth.
    depth = max(math.inf if each.params.get("judged_only") else each.params.get("cutoff", math.inf)
                for each in measures)  # fmt: skip
    for side, column in {AFTER: "after", BEFORE: "before", CEILING: "best"}.items():
        run: dict[str, dict[str, float]] = {}
        some = rows[rows[column] <= depth]
        scores = 1 / some[column].astype(float)  # Compat takes what was not retrieved for 0
        for number, doc, score in zip(
            some["number"].astype(str), some["doc_id"], scores, strict=True
        ):
            run.setdefault(number, {})[doc] = score
        if run:
            values = pd.DataFrame(evaluator.iter_calc(run)).astype({"measure": str})
            values = values.pivot(index="query_id", columns="measure", values="value")
            tables.append(values.add_prefix(side))
    return pd.concat(tables, axis=1)


def kendall_tau(before: Iterable[float]) -> float:
    """Return Kendall's tau between 1, 2, 3, ... and a permutation of it; NaN of one rank."""
    from scipy import stats

    ranks = np.asarray(before)
    if len(ranks) < 2:
        return float("nan")
    # Of the p-value alone, whose exact method takes longer than the statistic; needs three ranks.
    method = "asymptotic" if len(ranks) > 2 else "exact"
    return float(stats.kendalltau(np.arange(len(ranks)), ranks, method=method).statistic)


def rank_biased_overlap(before: Iterable[float], persistence: float = 0.9) -> float:
    """Return the extrapolated rank-biased overlap of 1, 2, 3, ... and a permutation of it.

    Webber, Moffat, Zobel, "A similarity measure for indefinite rankings", TOIS 28(4), 2010,
    equation 32 for two lists of one length. 1 for equal orders.
    """
    ranks = np.asarray(before, dtype=int)
    depth = np.arange(1, len(ranks) + 1)
    # A document is in both lists to depth d when d reaches the lower of its two ranks.
    reached = np.bincount(np.maximum(depth, ranks), minlength=len(ranks) + 1)[1:]
    agreement = np.cumsum(reached) / depth
    weights = persistence**depth
    tail = agreement[-1] * weights[-1]
    return float(tail + (1 - persistence) / persistence * (agreement @ weights))
