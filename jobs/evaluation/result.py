"""Tables, qrels and a plan -> the evaluation: document, gate and table per query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.sql import DataFrame, SparkSession

from jobs.evaluation import study as studies
from jobs.evaluation.calibration import calibration
from jobs.evaluation.document import Baseline, assemble, baseline_of
from jobs.evaluation.examples import choose, examples
from jobs.evaluation.gate import judge
from jobs.evaluation.metrics import TieBreak
from jobs.evaluation.operations import max_length, operations
from jobs.evaluation.plan import REGISTERED, Plan
from jobs.evaluation.qrels import from_labels
from jobs.evaluation.ranked import read_ranked
from jobs.output.folder import OutputFolder
from jobs.runtime.errors import RefusedError
from jobs.runtime.redaction import masked

PER_QUERY = "per_query"

#: Fetches the table per query of the latest passing run of an experiment; None if there is none.
FetchBaseline = Callable[[str], Path | None]


@dataclass(frozen=True)
class Table:
    """Candidates under a name.

    Attributes:
        name: of the table.
        candidates: its rows.
        record: `run.json` of the run that scored them, None if unknown.
        texts: query_id, doc_id, query, doc; None if no example is to be shown.
    """

    name: str
    candidates: DataFrame
    record: Mapping[str, Any] | None = None
    texts: DataFrame | None = None


def labels_of(table: DataFrame) -> DataFrame | None:
    """The qrels in a table's column label; None if there is none, or it is empty.

    Raises:
        RefusedError: if they cannot be used.
    """
    if "label" not in table.columns:
        return None
    return from_labels(table.select("query_id", "doc_id", "label"))


def find_baseline(
    spark: SparkSession, plan: Plan, others: Mapping[str, DataFrame], fetch: FetchBaseline
) -> Baseline | DataFrame | None:
    """What the plan wants to compare with, found before anything costly starts.

    Args:
        spark: the session.
        plan: names the baseline.
        others: tables that are compared anyway, by name.
        fetch: asked only for a baseline of `mlflow:`.

    Returns:
        Values per query of a logged run, or a ranked table; None if there is nothing to compare
        with, or nothing yet.

    Raises:
        RefusedError: if it cannot be found or used.
    """
    if not plan.baseline:
        return None
    if plan.baseline in others:
        return others[plan.baseline]
    if not plan.baseline.startswith(REGISTERED):
        return read_ranked(spark, plan.baseline, ())
    folder = fetch(plan.baseline.removeprefix(REGISTERED))
    return None if folder is None else _logged(plan, folder)


def evaluate(
    plan: Plan,
    judged: Table,
    others: Mapping[str, DataFrame],
    baseline: Baseline | DataFrame | None,
    qrels: DataFrame,
    out: OutputFolder,
    *,
    tie_break: TieBreak,
) -> dict[str, Any]:
    """Measure, compare and hold against the rules; stages the table `per_query`.

    Args:
        plan: measures, rules, slices.
        judged: the table that the rules are about.
        others: further tables by name.
        baseline: see `find_baseline`.
        qrels: query_id, doc_id, relevance.
        out: where tables are staged.
        tie_break: order of equal scores.

    Returns:
        The document, see `jobs.evaluation.document`, with `gate` (None without rules).

    Raises:
        RefusedError: tables that cannot be measured, or a baseline over other queries.
    """
    places = count()

    def measured(
        name: str, table: DataFrame, slices: Sequence[str] = ()
    ) -> tuple[studies.Study, DataFrame]:
        folder = f"study-{next(places)}"

        def stage(part: str, rows: DataFrame) -> DataFrame:
            return out.stage(f"{folder}-{part}", rows, "parquet")

        return studies.study(
            name, table, qrels, plan.measures, stage, tie_break=tie_break, slices=slices
        )

    first, rows = measured(judged.name, judged.candidates, plan.slices)
    further = {name: measured(name, table)[0] for name, table in others.items()}
    if isinstance(baseline, DataFrame):
        name = str(plan.baseline)
        known = further.get(name) or measured(masked(name), baseline)[0]
        baseline = baseline_of(known)
    found = assemble(first, list(further.values()), baseline, plan.slices)
    if plan.baseline and baseline is None:
        found["notes"] = [
            f"{plan.baseline} has no passing run yet: there is nothing to compare with, and rules "
            "against the baseline hold"
        ]
    pairs = studies.count_pairs(rows)
    found["moved"] = studies.moved(first, pairs)
    found["scores"] = calibration(rows)
    found["lengths"] = studies.lengths(pairs, max_length(judged.record))
    found["operations"] = operations(judged.record)
    found["examples"] = []
    if judged.texts is not None:
        found["examples"] = examples(rows, judged.texts, choose(found, plan.examples))
    found["gate"] = judge(plan.rules, found, plan.alpha) if plan.rules else None
    out.stage(PER_QUERY, first.per_query, "parquet")
    return found


def _logged(plan: Plan, folder: Path) -> Baseline:
    """The table per query of a logged run."""
    table = pd.read_parquet(folder)
    columns = {f"{studies.AFTER}{m}": str(m) for m in plan.measures}
    kept = {have: want for have, want in columns.items() if have in table.columns}
    if not {"query_id", "judged"} <= set(table.columns) or not kept:
        raise RefusedError(
            f"evaluation.baseline {plan.baseline}: its latest passing run has none of the measures "
            f"{', '.join(columns.values())}; name an experiment that measured one of them"
        )
    values = table[table["judged"]][["query_id", *kept]].rename(columns=kept)
    values = values.reset_index(drop=True)
    return Baseline(str(plan.baseline), values)
