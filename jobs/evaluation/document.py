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

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pandas as pd

from jobs.evaluation.measures import AFTER, BEFORE, CEILING, JUDGED
from jobs.evaluation.run import RunEvaluation, means
from jobs.evaluation.significance import LEVEL, Difference, compare_paired, holm, interval
from jobs.runtime.errors import RefusedError

FIRST_STAGE: Final = "first stage"
_POINTS: Final = 1000  # of the plot per query
_EXTREMES: Final = 20  # most helped and most hurt queries
_GROUPS: Final = 12  # distinct numbers up to which a numeric slice is not cut into quarters
_EXAMPLES: Final = 3  # ids that an error names


@dataclass(frozen=True)
class Baseline:
    """What a table is compared with.

    Attributes:
        name: of the table or the experiment.
        values: its judged lists: `keys`, answered, and a column `reranked M` per measure M.
    """

    name: str
    values: pd.DataFrame


def assemble(
    judged: RunEvaluation,
    others: Sequence[RunEvaluation],
    baseline: Baseline | None,
    measures: Sequence[str],
    slices: Sequence[str] = (),
) -> dict[str, Any]:
    """Return everything that follows from values per list.

    Args:
        judged: the table that the gate is about.
        others: further tables over the same qrels.
        baseline: what `judged` is compared with beside its own first stage.
        measures: to be shown.
        slices: columns of `judged.values`.

    Raises:
        RefusedError: if baseline and table share no query.
    """
    values, names = judged.values, list(measures)
    tested = _tested(names)
    first_stage, reranked = judged.means(BEFORE, names), judged.means(AFTER, names) or {}
    found = _compare(values, BEFORE, AFTER, tested) if first_stage else {}
    answered = values[values["answered"]]
    shared = _shared(values, baseline.values, judged.keys) if baseline else values
    return {
        "name": judged.name,
        "measures": names,
        **judged.counts(),
        "judged": _mean(answered, AFTER + JUDGED),
        "first_stage_order": judged.first_stage_order,
        "first_stage": first_stage,
        "reranked": reranked,
        "delta": first_stage and {n: reranked[n] - first_stage[n] for n in names},
        "ceiling": judged.means(CEILING, names),
        "intervals": {
            "level": LEVEL,
            "first_stage": _intervals(values, BEFORE, names) if first_stage else None,
            "reranked": _intervals(values, AFTER, names),
            "delta": _ends(found) if first_stage else None,
        },
        "tests": _tests(found) if first_stage else None,
        "baseline": _against(baseline, judged, shared, names) if baseline else None,
        "systems": _systems(judged, others, baseline, shared, names),
        "per_query": _extremes(judged, tested[0]) if first_stage and tested else None,
        "slices": [_slice(values, column, names) for column in slices],
    }


def refuse_apart(what: str, here: Sequence[str], there: Sequence[str]) -> None:
    """Refuse two sides that have no id in common.

    Raises:
        RefusedError: with three ids of each side.
    """
    ids = [", ".join(map(repr, side[:_EXAMPLES])) for side in (here, there)]
    raise RefusedError(
        f"{what} have no id in common: {ids[0]} here, {ids[1]} there; check that both write ids "
        "in the same way"
    )


def _tested(names: Sequence[str]) -> list[str]:
    """Measures whose difference is tested: Judged counts judgements, and is no quality."""
    return [name for name in names if not name.startswith("Judged")]


def _mean(values: pd.DataFrame, column: str) -> float:
    return float(_floats(values[column]).mean()) if len(values) else 0.0


def _floats(column: pd.Series) -> Any:
    return column.to_numpy(dtype=np.float64)


def _intervals(values: pd.DataFrame, side: str, names: Sequence[str]) -> dict[str, list[float]]:
    return {name: list(interval(_floats(values[side + name]))) for name in names}


def _ends(found: Mapping[str, Difference]) -> dict[str, list[float]]:
    return {name: [each.low, each.high] for name, each in found.items()}


def _tests(found: Mapping[str, Difference]) -> dict[str, dict[str, Any]]:
    corrected = holm({name: difference.p for name, difference in found.items()})
    return {name: {**found[name].test(), "p_holm": corrected[name]} for name in found}


def _compare(
    values: pd.DataFrame, left: str, right: str, names: Sequence[str]
) -> dict[str, Difference]:
    """Columns `right M` minus `left M` of every measure that has both."""
    return {
        name: compare_paired(_floats(values[left + name]), _floats(values[right + name]))
        for name in names
        if {left + name, right + name} <= set(values.columns)
    }


def _shared(values: pd.DataFrame, baseline: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Lists that both sides rank, or neither does: those count 0 in both. In order of their keys,
    with `baseline M` beside `reranked M`.
    """
    named = {c: c.replace(AFTER, "baseline ", 1) for c in baseline.columns if c.startswith(AFTER)}
    if missing := set(keys) - set(baseline.columns):
        raise RefusedError(f"evaluation.baseline has no column {', '.join(sorted(missing))}")
    named["answered"] = "answered_before"
    both = values.merge(baseline[[*keys, *named]].rename(columns=named), on=list(keys))
    if not (both["answered"] & both["answered_before"]).any():
        sides = (values, baseline)
        refuse_apart(
            "evaluation.baseline and the ranked table",
            *(side[side["answered"]]["query_id"].tolist() for side in sides),
        )
    both = both[both["answered"] == both["answered_before"]]
    return both.sort_values(list(keys), ignore_index=True)


def _against(
    baseline: Baseline, judged: RunEvaluation, shared: pd.DataFrame, names: Sequence[str]
) -> dict[str, Any]:
    before = "baseline "
    known = [name for name in names if before + name in shared.columns]
    found = _compare(shared, before, AFTER, _tested(known))
    after, values = means(shared, AFTER, known) or {}, means(shared, before, known) or {}
    ranked = shared[shared["answered"]]
    return {
        "name": baseline.name,
        "queries": len(shared),
        "queries_judged": int((shared["n_judged"] > 0).sum()),
        "only_here": int(judged.values["answered"].sum()) - len(ranked),
        "only_baseline": int(baseline.values["answered"].sum()) - len(ranked),
        "judged": _mean(ranked, AFTER + JUDGED),
        "judged_before": _mean(ranked, before + JUDGED) if before + JUDGED in shared else None,
        "values": values,
        "reranked": after,
        "delta": {name: after[name] - values[name] for name in known},
        "intervals": _ends(found),
        "tests": _tests(found),
    }


def _systems(
    judged: RunEvaluation, others: Sequence[RunEvaluation], baseline: Baseline | None,
    shared: pd.DataFrame, names: Sequence[str],
) -> list[dict[str, Any]]:  # fmt: skip
    """Rows of the table models x measures; each against the baseline, else the first stage.

    All over one set of queries: those of `shared`.
    """
    keys = list(judged.keys)
    rows: list[tuple[str, pd.DataFrame]] = []

    def side_of(values: pd.DataFrame, side: str) -> pd.DataFrame:
        columns = {c: c.removeprefix(side) for c in values.columns if c.startswith(side)}
        here = shared[keys].merge(values[[*keys, *columns]], on=keys, how="left")
        return here.rename(columns=columns).fillna(dict.fromkeys(columns.values(), 0.0))

    for each in (judged, *others):
        if each.first_stage_order is not None:
            before = side_of(each.values, BEFORE)
            label = FIRST_STAGE if each is judged else f"{FIRST_STAGE} of {each.name}"
            if not any(before.equals(known) for _, known in rows):
                rows.append((label, before))
    if baseline and baseline.name not in [each.name for each in (judged, *others)]:
        rows.append((baseline.name, side_of(baseline.values, AFTER)))
    rows += [(each.name, side_of(each.values, AFTER)) for each in (judged, *others)]
    reference = baseline.name if baseline else rows[0][0]
    standard = next(values for name, values in rows if name == reference)
    return [
        {
            "name": name,
            "queries": len(shared),
            "values": means(values, "", names),
            "versus": None if name == reference else _versus(standard, values, names),
        }
        for name, values in rows
    ]


def _versus(
    standard: pd.DataFrame, values: pd.DataFrame, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    both = pd.concat([standard.add_prefix("left "), values.add_prefix("right ")], axis=1)
    tests = _compare(both, "left ", "right ", _tested(names))
    corrected = holm({name: difference.p for name, difference in tests.items()})
    return {n: {"delta": d.delta, "p": d.p, "p_holm": corrected[n]} for n, d in tests.items()}


def _extremes(judged: RunEvaluation, measure: str) -> dict[str, Any]:
    """The differences of one measure, and the lists at both ends; ties by their keys."""
    values, keys = judged.values, list(judged.keys)
    frame = values[keys].assign(
        before=_floats(values[BEFORE + measure]), after=_floats(values[AFTER + measure])
    )
    frame["delta"] = frame["after"] - frame["before"]
    ordered = frame.sort_values(["delta", *keys], ascending=[False] + [True] * len(keys))
    differences = ordered["delta"].to_numpy()
    if len(differences) > _POINTS:
        differences = differences[np.linspace(0, len(differences) - 1, _POINTS).round().astype(int)]
    hurt = frame.sort_values(["delta", *keys])
    return {
        "measure": measure,
        "differences": differences.tolist(),
        "most_helped": ordered[ordered["delta"] > 0].head(_EXTREMES).to_dict("records"),
        "most_hurt": hurt[hurt["delta"] < 0].head(_EXTREMES).to_dict("records"),
    }


def _slice(values: pd.DataFrame, column: str, names: Sequence[str]) -> dict[str, Any]:
    """Both orders within each value of a column. Holm's correction runs over the values."""
    groups = _grouped(values[column])
    rows = []
    for value in groups.cat.categories:
        part = values[groups == value]
        found = _compare(part, BEFORE, AFTER, names)  # nothing without a first stage
        row: dict[str, Any] = {
            "value": str(value),
            "queries": len(part),
            "reranked": means(part, AFTER, names),
        }
        row |= {
            "first_stage": means(part, BEFORE, names) if found else None,
            "delta": {n: found[n].delta for n in names} if found else None,
            "intervals": _ends(found) if found else None,
            "p_holm": {n: found[n].p for n in names} if found else None,
        }
        rows.append(row)
    for name in names if rows and rows[0]["p_holm"] else ():
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
    labels = [f"{edge:g}" for edge in edges]
    if len(edges) > _GROUPS:
        quarters = np.quantile(column.dropna(), [0.25, 0.5, 0.75], method="inverted_cdf")
        edges = np.append(np.unique(quarters), np.inf)
        ends = [f"{edge:g}" for edge in edges[:-1]]
        middle = [f"over {low} to {high}" for low, high in pairwise(ends)]
        labels = [f"up to {ends[0]}", *middle, f"over {ends[-1]}"]
    groups = pd.cut(column, [-np.inf, *edges], labels=labels, ordered=False)
    return groups.cat.add_categories("none").fillna("none").cat.remove_unused_categories()
