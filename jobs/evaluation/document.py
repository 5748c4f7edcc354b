"""Studies of tables -> one document: what `metrics.json` holds, and what gate and report read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pandas as pd

from jobs.evaluation.significance import Difference, compare_paired, holm, interval
from jobs.evaluation.study import AFTER, BEFORE, Study
from jobs.runtime.errors import RefusedError

FIRST_STAGE: Final = "first stage"
LEVEL: Final = 0.95  # of every interval
_POINTS: Final = 1000  # of the plot per query
_EXTREMES: Final = 20  # most helped and most hurt queries
_GROUPS: Final = 12  # distinct numbers up to which a numeric slice is not cut into quarters


@dataclass(frozen=True)
class Baseline:
    """What a table is compared with: `query_id` and a column per measure."""

    name: str
    values: pd.DataFrame


def baseline_of(found: Study) -> Baseline:
    """Another table as a baseline."""
    return Baseline(found.name, _side(found.values, AFTER))


def assemble(
    judged: Study, others: Sequence[Study], baseline: Baseline | None, slices: Sequence[str]
) -> dict[str, Any]:
    """Everything that follows from values per query.

    Args:
        judged: the table that the gate is about.
        others: further tables over the same qrels.
        baseline: what `judged` is compared with beside its own first stage.
        slices: columns of `judged.values`.

    Raises:
        RefusedError: if baseline and table share no query.
    """
    names = list(judged.reranked)
    tested = [name for name in names if not name.startswith("Judged")]
    after, before = _side(judged.values, AFTER), _side(judged.values, BEFORE)
    has_first = judged.first_stage is not None
    found = {n: compare_paired(_floats(before[n]), _floats(after[n]), level=LEVEL) for n in tested
             } if has_first else {}  # fmt: skip
    first_stage = judged.first_stage
    return {
        "name": judged.name,
        "measures": names,
        **judged.counts,
        "first_stage_order": judged.order,
        "first_stage": first_stage,
        "reranked": judged.reranked,
        "delta": first_stage and {n: judged.reranked[n] - first_stage[n] for n in names},
        "ceiling": judged.ceiling,
        "intervals": {
            "level": LEVEL,
            "first_stage": _intervals(before, names) if has_first else None,
            "reranked": _intervals(after, names),
            "delta": {n: [found[n].low, found[n].high] for n in tested} if has_first else None,
        },
        "tests": _tests(found) if has_first else None,
        "baseline": _against(baseline, after, tested) if baseline else None,
        "systems": _systems(judged, others, baseline, tested),
        "per_query": _extremes(judged.values, tested[0]) if has_first and tested else None,
        "slices": [_slice(judged.values, column, names, has_first) for column in slices],
    }


def _side(values: pd.DataFrame, side: str) -> pd.DataFrame:
    """query_id and the measures of one side under their plain names."""
    kept = {c: c.removeprefix(side) for c in values.columns if c.startswith(side)}
    return values[["query_id", *kept]].rename(columns=kept)


def _floats(column: pd.Series) -> Any:
    return column.to_numpy(dtype=np.float64)


def _intervals(values: pd.DataFrame, names: Sequence[str]) -> dict[str, list[float]]:
    return {name: list(interval(_floats(values[name]), level=LEVEL)) for name in names}


def _tests(found: Mapping[str, Difference]) -> dict[str, dict[str, Any]]:
    corrected = holm({name: difference.p for name, difference in found.items()})
    return {n: {**found[n].test(), "p_holm": corrected[n]} for n in found}


def _paired(left: pd.DataFrame, right: pd.DataFrame, names: Sequence[str]) -> dict[str, Difference]:
    """right minus left over the queries that both have, by query id."""
    both = left.merge(right, on="query_id", suffixes=(" l", " r")).sort_values("query_id")
    if both.empty:
        return {}
    return {
        n: compare_paired(_floats(both[f"{n} l"]), _floats(both[f"{n} r"]), level=LEVEL)
        for n in names
        if f"{n} l" in both.columns
    }


def _against(baseline: Baseline, after: pd.DataFrame, tested: Sequence[str]) -> dict[str, Any]:
    found = _paired(baseline.values, after, tested)
    if not found:
        raise RefusedError(
            f"evaluation.baseline {baseline.name} shares no query and measure with the ranked "
            "table; name a run over the same queries"
        )
    shared = baseline.values[baseline.values["query_id"].isin(after["query_id"])]
    return {
        "name": baseline.name,
        "queries": len(shared),
        "values": {n: float(_floats(shared[n]).mean()) for n in found},
        "delta": {n: found[n].delta for n in found},
        "intervals": {n: [found[n].low, found[n].high] for n in found},
        "tests": _tests(found),
    }


def _systems(
    judged: Study, others: Sequence[Study], baseline: Baseline | None, tested: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of the table models x measures; each against the baseline, else the first stage."""
    rows: list[tuple[str, dict[str, float], pd.DataFrame]] = []
    for each in (judged, *others):
        known = [row[1] for row in rows]
        if each.first_stage is not None and each.first_stage not in known:
            label = FIRST_STAGE if each is judged else f"{FIRST_STAGE} of {each.name}"
            rows.append((label, each.first_stage, _side(each.values, BEFORE)))
    if baseline and baseline.name not in [s.name for s in (judged, *others)]:
        means = {n: float(_floats(baseline.values[n]).mean()) for n in baseline.values.columns[1:]}
        rows.append((baseline.name, means, baseline.values))
    rows += [(s.name, s.reranked, _side(s.values, AFTER)) for s in (judged, *others)]
    reference = baseline.name if baseline else rows[0][0]
    standard = next(values for name, _, values in rows if name == reference)
    return [
        {
            "name": name,
            "values": means,
            "versus": None if name == reference else _versus(standard, values, tested),
        }
        for name, means, values in rows
    ]


def _versus(
    standard: pd.DataFrame, values: pd.DataFrame, tested: Sequence[str]
) -> dict[str, dict[str, float]]:
    found = _paired(standard, values, tested)
    corrected = holm({name: difference.p for name, difference in found.items()})
    return {n: {"delta": d.delta, "p": d.p, "p_holm": corrected[n]} for n, d in found.items()}


def _extremes(values: pd.DataFrame, measure: str) -> dict[str, Any]:
    """The differences of one measure, and the queries at both ends; ties by query id."""
    frame = pd.DataFrame(
        {
            "query_id": values["query_id"],
            "before": values[BEFORE + measure].astype(float),
            "after": values[AFTER + measure].astype(float),
        }
    )
    frame["delta"] = frame["after"] - frame["before"]
    ordered = frame.sort_values(["delta", "query_id"], ascending=[False, True])
    differences = ordered["delta"].to_numpy()
    if len(differences) > _POINTS:
        differences = differences[np.linspace(0, len(differences) - 1, _POINTS).round().astype(int)]
    hurt = frame.sort_values(["delta", "query_id"])
    return {
        "measure": measure,
        "differences": differences.tolist(),
        "most_helped": ordered[ordered["delta"] > 0].head(_EXTREMES).to_dict("records"),
        "most_hurt": hurt[hurt["delta"] < 0].head(_EXTREMES).to_dict("records"),
    }


def _slice(
    values: pd.DataFrame, column: str, names: Sequence[str], has_first: bool
) -> dict[str, Any]:
    """Both orders within each value of a column. Holm's correction runs over the values."""
    groups = _grouped(values[column])
    rows = []
    for value in sorted(groups.unique(), key=_natural):
        part = values[groups == value]
        after, before = _side(part, AFTER), _side(part, BEFORE)
        row: dict[str, Any] = {
            "value": str(value),
            "queries": len(part),
            "reranked": {n: float(_floats(after[n]).mean()) for n in names},
            "first_stage": None, "delta": None, "intervals": None, "p_holm": None,
        }  # fmt: skip
        if has_first:
            found = {n: compare_paired(_floats(before[n]), _floats(after[n])) for n in names}
            row["first_stage"] = {n: float(_floats(before[n]).mean()) for n in names}
            row["delta"] = {n: found[n].delta for n in names}
            row["intervals"] = {n: [found[n].low, found[n].high] for n in names}
            row["p_holm"] = {n: found[n].p for n in names}
        rows.append(row)
    for name in names if has_first else ():
        corrected = holm({row["value"]: row["p_holm"][name] for row in rows})
        for row in rows:
            row["p_holm"][name] = corrected[row["value"]]
    return {"column": column, "rows": rows}


def _grouped(column: pd.Series) -> pd.Series:
    """Text as it is; numbers with many values in quarters of the queries."""
    if not pd.api.types.is_numeric_dtype(column):
        return column.astype(object).fillna("none").astype(str)
    if column.nunique() <= _GROUPS:
        return column.map(lambda value: "none" if pd.isna(value) else f"{value:g}")
    edges = np.unique(np.quantile(column.dropna(), [0.25, 0.5, 0.75], method="inverted_cdf"))
    ends = [f"{edge:g}" for edge in edges]
    labels = [f"up to {ends[0]}"]
    labels += [f"over {low} to {high}" for low, high in pairwise(ends)]
    labels += [f"over {ends[-1]}"]
    places = np.searchsorted(edges, column.to_numpy(dtype=float), side="left")
    named = pd.Series([labels[place] for place in places], index=column.index)
    return named.where(column.notna(), "none")


def _natural(value: str) -> tuple[float, str]:
    """Numbers in their order; `up to` before `over`, `none` last."""
    digits = [word for word in value.split() if word.replace(".", "", 1).lstrip("-").isdigit()]
    if value == "none":
        return float("inf"), value
    first = float(digits[0]) if digits else 0.0
    return (first - 1e-9 if value.startswith("up to") else first), value
