"""Evaluations of tables -> one document: what `metrics.json` holds, and what gate and report read.

Keys: name, measures, queries (and queries_judged: with a judged candidate, queries_unanswered,
queries_without_relevant, queries_only_in_run), judged (mean share of the first ten documents that
have a judgement), first_stage_order, first_stage, reranked, delta, ceiling, intervals, tests,
baseline, systems, per_query, slices; `jobs.evaluation.result` adds moved, scores, lengths,
operations, examples, warnings, notes, gate.

`baseline` and `systems` are about the queries that table and baseline both rank (or neither does,
which count 0): `queries` of them, without those that are `only_here` or `only_baseline`. `values`
are the baseline's means over them, `reranked` the table's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pandas as pd

from jobs.evaluation.measures import AFTER, BEFORE, CEILING, JUDGED
from jobs.evaluation.run import RunEvaluation
from jobs.evaluation.significance import LEVEL, compare_paired, holm, interval
from jobs.runtime.errors import RefusedError

FIRST_STAGE: Final = "first stage"
_BASELINE: Final = "baseline "  # as `AFTER` and `BEFORE`
_POINTS: Final = 1000  # of the plot per query
_EXTREMES: Final = 20  # most helped and most hurt queries
_GROUPS: Final = 12  # distinct numbers up to which a numeric slice is not cut into quarters


@dataclass(frozen=True)
class Baseline:
    """What a table is compared with: `RunEvaluation.values` under a name."""

    name: str
    values: pd.DataFrame


def assemble(
    judged: RunEvaluation, others: Sequence[RunEvaluation], baseline: Baseline | None,
    measures: Sequence[str], slices: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Return everything that follows from values per list; the gate is about `judged`.

    Raises:
        RefusedError: if baseline and table share no query.
    """
    values, names = judged.values, list(measures)
    before, after, ceiling = (side_of(values, side, names) for side in (BEFORE, AFTER, CEILING))
    compared, tested = judged.first_stage_order is not None, _tested(names)
    found = _comparison(before, after, tested) if compared else {}
    baseline, apart = _aligned(judged, baseline) if baseline else (None, {})
    shared = _shared(values, baseline.values, judged.keys) if baseline else values
    return {
        "name": judged.name,
        "measures": names,
        **judged.counts(),
        "judged": mean_judged(values, AFTER) or 0.0,
        "first_stage_order": judged.first_stage_order,
        "first_stage": means(before) if compared else None,
        "reranked": means(after),
        "delta": found.get("delta"),
        "ceiling": means(ceiling),
        "intervals": {
            "level": LEVEL,
            "first_stage": _intervals(before) if compared else None,
            "reranked": _intervals(after),
            "delta": found.get("intervals"),
        },
        "tests": found.get("tests"),
        "baseline": (
            {**_against(baseline, judged, shared, names), "apart": apart} if baseline else None
        ),
        "systems": _systems(judged, others, baseline, shared, names),
        "per_query": _extremes(judged, tested[0]) if compared and tested else None,
        "slices": [_slice(values, column, names) for column in slices],
    }


def side_of(values: pd.DataFrame, side: str, names: Sequence[str]) -> pd.DataFrame:
    """Return the columns `side M` of those measures M that have one, named M."""
    columns = {side + name: name for name in names if side + name in values.columns}
    return values[[*columns]].rename(columns=columns)


def means(values: pd.DataFrame) -> dict[str, float]:
    """Return the mean of every column; sums are exact, so no digit depends on the rows' order."""
    return {name: math.fsum(values[name]) / len(values) for name in values.columns}


def mean_judged(values: pd.DataFrame, side: str) -> float | None:
    """Return the mean `JUDGED` of a side over lists with candidates; None where there is none."""
    answered = values[values["answered"]]
    known = len(answered) and side + JUDGED in values.columns
    return float(answered[side + JUDGED].mean()) if known else None


def refuse_apart(what: str, here: Sequence[str], there: Sequence[str]) -> None:
    """Raise a `RefusedError` for two sides that have no id in common, with three ids of each."""
    ids = [", ".join(map(repr, side[:3])) for side in (here, there)]
    raise RefusedError(
        f"{what} have no id in common: {ids[0]} here, {ids[1]} there; check that both write ids "
        "in the same way"
    )


def _tested(names: Sequence[str]) -> list[str]:
    """Measures whose difference is tested: Judged counts judgements, and is no quality."""
    return [name for name in names if not name.startswith("Judged")]


def _intervals(values: pd.DataFrame) -> dict[str, list[float]]:
    return {name: list(interval(values[name].to_numpy(float))) for name in values.columns}


def _comparison(
    before: pd.DataFrame, after: pd.DataFrame, tested: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """`delta` of every measure that both have, `intervals` and `tests` of those to be tested."""
    both = [name for name in after.columns if name in before]
    old, new = means(before[both]), means(after[both])
    found = {name: vars(compare_paired(before[name].to_numpy(float), after[name].to_numpy(float)))
             for name in both if name in tested}  # fmt: skip
    p_holm = holm({name: test["p"] for name, test in found.items()})
    kept = ("p", "effect_size", "helped", "hurt", "tied", "method")
    return {
        "delta": {name: new[name] - old[name] for name in both},
        "intervals": {name: [test["low"], test["high"]] for name, test in found.items()},
        "tests": {name: {**{key: test[key] for key in kept}, "p_holm": p_holm[name]}
                  for name, test in found.items()},
    }  # fmt: skip


def _aligned(judged: RunEvaluation, baseline: Baseline) -> tuple[Baseline, dict[str, list[str]]]:
    """Let lists of two days, say, meet: where each side has one value of a column of the group.

    Returns the baseline with the judged table's values, and both values of such columns.
    """
    theirs, apart = baseline.values.copy(), {}
    answered = theirs["answered"].astype(bool)
    for key in (key for key in judged.keys if key != "query_id" and key in theirs):
        here = judged.values[judged.values["answered"]][key].unique()
        there = theirs[answered][key].unique()
        if len(here) == len(there) == 1 and here[0] != there[0]:
            apart[key] = [str(here[0]), str(there[0])]
            theirs.loc[answered, key] = here[0]
    return Baseline(baseline.name, theirs), apart


def _shared(values: pd.DataFrame, baseline: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Lists that both sides rank, or neither does, with `baseline M` beside `reranked M`."""
    if missing := set(keys) - set(baseline.columns):
        raise RefusedError(f"evaluation.baseline has no column {', '.join(sorted(missing))}")
    named = {c: c.replace(AFTER, _BASELINE, 1) for c in baseline.columns if c.startswith(AFTER)}
    named["answered"] = "answered_before"
    both = values.merge(baseline[[*keys, *named]].rename(columns=named), on=list(keys))
    if not (both["answered"] & both["answered_before"]).any():
        ids = [side[side["answered"]]["query_id"].tolist() for side in (values, baseline)]
        if {*ids[0]} & {*ids[1]}:
            raise RefusedError(
                "evaluation.baseline and the ranked table share queries, but no list of "
                f"({', '.join(keys)}); compare tables of the same ones, or of one value each"
            )
        refuse_apart("evaluation.baseline and the ranked table", *ids)
    both = both[both["answered"] == both["answered_before"]]
    return both.sort_values(list(keys), ignore_index=True)


def _against(
    baseline: Baseline, judged: RunEvaluation, shared: pd.DataFrame, names: Sequence[str]
) -> dict[str, Any]:
    before = side_of(shared, _BASELINE, names)
    after = side_of(shared, AFTER, list(before.columns))
    ranked = int(shared["answered"].sum())
    return {
        "name": baseline.name,
        "queries": len(shared),
        "queries_judged": int((shared["n_judged"] > 0).sum()),
        "only_here": int(judged.values["answered"].sum()) - ranked,
        "only_baseline": int(baseline.values["answered"].sum()) - ranked,
        "judged": mean_judged(shared, AFTER) or 0.0,
        "judged_before": mean_judged(shared, _BASELINE),
        "values": means(before),
        "reranked": means(after),
        **_comparison(before, after, _tested(names)),
    }


def _systems(
    judged: RunEvaluation, others: Sequence[RunEvaluation], baseline: Baseline | None,
    shared: pd.DataFrame, names: Sequence[str],
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of the table models x measures; each against the baseline, else the first stage."""
    keys, runs, tested = list(judged.keys), [judged, *others], _tested(names)
    sides = [(FIRST_STAGE if run is judged else f"{FIRST_STAGE} of {run.name}", run.values, BEFORE)
             for run in runs if run.first_stage_order is not None]  # fmt: skip
    if baseline and baseline.name not in [run.name for run in runs]:
        sides.append((baseline.name, baseline.values, AFTER))
    sides += [(run.name, run.values, AFTER) for run in runs]
    rows: dict[str, pd.DataFrame] = {}
    for name, values, side in sides:
        found = side_of(shared[keys].merge(values, on=keys, how="left"), side, names).fillna(0.0)
        # Tables of one input have one first stage.
        if side == AFTER or not any(found.equals(known) for known in rows.values()):
            rows[name] = found
    reference, systems = baseline.name if baseline else next(iter(rows)), []
    for name, values in rows.items():
        versus = None
        if name != reference:
            against = _comparison(rows[reference], values, tested)
            versus = {m: {"delta": against["delta"][m], "p": test["p"], "p_holm": test["p_holm"]}
                      for m, test in against["tests"].items()}  # fmt: skip
        row = {"name": name, "queries": len(shared), "values": means(values), "versus": versus}
        systems.append(row)
    return systems


def _extremes(judged: RunEvaluation, measure: str) -> dict[str, Any]:
    """The differences of one measure, and the lists at both ends; ties by their keys."""
    values, keys = judged.values, list(judged.keys)
    frame = values[keys].assign(before=values[BEFORE + measure], after=values[AFTER + measure])
    frame["delta"] = frame["after"] - frame["before"]
    helped = frame.sort_values(["delta", *keys], ascending=[False] + [True] * len(keys))
    hurt = frame.sort_values(["delta", *keys])
    drawn = np.linspace(0, len(frame) - 1, min(len(frame), _POINTS)).round().astype(int)
    return {
        "measure": measure,
        "differences": helped["delta"].iloc[drawn].tolist(),
        "most_helped": helped[helped["delta"] > 0].head(_EXTREMES).to_dict("records"),
        "most_hurt": hurt[hurt["delta"] < 0].head(_EXTREMES).to_dict("records"),
    }


def _slice(values: pd.DataFrame, column: str, names: Sequence[str]) -> dict[str, Any]:
    """Both orders within each value of a column. Holm's correction runs over the values."""
    rows: list[dict[str, Any]] = []
    compared = BEFORE + names[0] in values.columns
    for value, part in values.groupby(_grouped(values[column]), observed=True):
        before, after = side_of(part, BEFORE, names), side_of(part, AFTER, names)
        found = _comparison(before, after, names) if compared else {}
        rows.append({
            "value": str(value), "queries": len(part), "reranked": means(after),
            "first_stage": means(before) if compared else None,
            "delta": found.get("delta"), "intervals": found.get("intervals"),
            "p_holm": {n: test["p"] for n, test in found["tests"].items()} if compared else None,
        })  # fmt: skip
    for name in names if compared else ():
        corrected = holm({row["value"]: row["p_holm"][name] for row in rows})
        for row in rows:
            row["p_holm"][name] = corrected[row["value"]]
    return {"column": column, "rows": rows}


def _grouped(column: pd.Series) -> pd.Series:
    """Categories in their order: texts, few numbers, or quarters of many; `none` comes last."""
    if not pd.api.types.is_numeric_dtype(column):
        names = column.astype(object).fillna("none").astype(str)
        order = sorted({*names}, key=lambda name: (name == "none", name))
        return names.astype(pd.CategoricalDtype(order))
    edges = np.unique(column.dropna())
    labels = [*map(_label, edges)]
    if len(edges) > _GROUPS:
        quarters = np.quantile(column.dropna(), [0.25, 0.5, 0.75], method="inverted_cdf")
        edges = np.append(np.unique(quarters), np.inf)
        ends = [*map(_label, edges[:-1])]
        middle = [f"over {low} to {high}" for low, high in pairwise(ends)]
        labels = [f"up to {ends[0]}", *middle, f"over {ends[-1]}"]
    groups = pd.cut(column, [-np.inf, *edges], labels=labels, ordered=False)
    return groups.cat.add_categories("none").fillna("none").cat.remove_unused_categories()


def _label(edge: float) -> str:
    return f"{edge:.15g}" if float(edge).is_integer() else f"{edge:g}"
