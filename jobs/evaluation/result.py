"""Tables, qrels and a plan -> the evaluation: document, gate and table per query."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Final

import pandas as pd
from pyspark.sql import DataFrame, SparkSession

from jobs.evaluation.describe import describe
from jobs.evaluation.document import Baseline, assemble, mean_judged, refuse_apart
from jobs.evaluation.examples import examples
from jobs.evaluation.gate import REGISTERED, Plan, judge
from jobs.evaluation.measures import AFTER, BEFORE, JUDGED
from jobs.evaluation.ranked import Table, is_fused, read_ranked, refuse_other_lists, setting_of
from jobs.evaluation.run import RunEvaluation, evaluate_run
from jobs.output.folder import OutputFolder
from jobs.output.names import PER_QUERY
from jobs.runtime.errors import RefusedError
from jobs.runtime.redaction import masked

_TIED: Final = 0.5  # share of tied candidates beyond which a warning says so
_JUDGED_FALL: Final = 0.01  # fall of Judged@10 beyond which a warning says so
_OF_LOGITS: Final = ("reliability", "ece")
_QRELS: Final = "query_id string, doc_id string, relevance int"


def find_baseline(
    spark: SparkSession, plan: Plan, others: Mapping[str, Table],
    fetch: Callable[[str], Path | None], group: Sequence[str] = (),
) -> Baseline | Table | None:  # fmt: skip
    """Return what the plan wants to compare with, found before anything costly starts.

    Args:
        spark: the session.
        plan: names the baseline.
        others: tables that are compared anyway, by name.
        fetch: returns the table per query of the latest passing run of an experiment, if any.
        group: columns that make a list.

    Returns:
        Values per query of a logged run, or a ranked table; None if there is nothing (yet).

    Raises:
        RefusedError: if it cannot be found or used.
    """
    name = plan.config.baseline
    if not name:
        return None
    if name in others:
        return others[name]
    if not name.startswith(REGISTERED):
        return read_ranked(spark, masked(name), name, group=group)
    folder = fetch(name.removeprefix(REGISTERED))
    if folder is None:
        return None
    values = pd.read_parquet(folder)
    columns = set(values.columns)
    usable = {"query_id", "judged", "answered"} <= columns
    if not usable or columns.isdisjoint(AFTER + measure for measure in plan.measures):
        raise RefusedError(
            f"evaluation.baseline {name}: its latest passing run has none of the measures "
            f"{', '.join(plan.measures)}; name an experiment that measured one of them"
        )
    return Baseline(name, values[values["judged"]].reset_index(drop=True))


def refuse_unrelated(
    rows: DataFrame, qrels: DataFrame | None, baseline: Baseline | Table | None = None
) -> None:
    """Refuse rows (query_id, doc_id) that have no id in common with what they are held against.

    Raises:
        RefusedError: with three ids of each side.
    """
    if qrels is not None and _apart(rows, qrels, ["query_id", "doc_id"]) and not rows.isEmpty():
        if _apart(rows, qrels, ["query_id"]):
            _refuse("the queries and the qrels", rows, qrels, "query_id")
        shared = rows.join(qrels.select("query_id"), on="query_id", how="left_semi")
        _refuse("the documents and the qrels", shared, qrels, "doc_id")
    if baseline is None:
        return
    if isinstance(baseline, Table):
        other = baseline.candidates
    else:
        ids = baseline.values[["query_id"]].astype(str)
        other = rows.sparkSession.createDataFrame(ids, "query_id string")
    if _apart(rows, other, ["query_id"]) and not rows.isEmpty() and not other.isEmpty():
        _refuse("the queries and evaluation.baseline", rows, other, "query_id")


def _apart(here: DataFrame, there: DataFrame, on: list[str]) -> bool:
    return here.join(there.select(*on), on=on, how="left_semi").isEmpty()


def _refuse(what: str, here: DataFrame, there: DataFrame, name: str) -> None:
    sides = [side.select(name).distinct().orderBy(name).limit(3) for side in (here, there)]
    refuse_apart(what, *([row[0] for row in side.collect()] for side in sides))


def evaluate(
    plan: Plan, judged: Table, others: Sequence[Table], baseline: Baseline | Table | None,
    qrels: DataFrame | None, out: OutputFolder, *, tie_break: str,
) -> dict[str, Any]:  # fmt: skip
    """Return the document of `jobs.evaluation.document`, and stage the table `per_query`.

    Args:
        plan: measures, rules, slices.
        judged: the table that the rules are about.
        others: further tables.
        baseline: see `find_baseline`.
        qrels: query_id, doc_id, relevance; None: only what needs no judgement is computed.
        out: where tables are staged.
        tie_break: order of equal scores.

    Raises:
        RefusedError: tables that cannot be measured, or share no id with qrels or baseline.
    """
    numbers, spark = count(), judged.candidates.sparkSession
    known = qrels if qrels is not None else spark.createDataFrame([], _QRELS)
    known = out.stage("qrels", known.select("query_id", "doc_id", "relevance"), "parquet")

    def measure(table: Table) -> RunEvaluation:
        refuse_other_lists(table, judged)
        number, slices = next(numbers), plan.config.slices if table is judged else ()
        return evaluate_run(
            table, known, plan.measures,
            lambda part, rows: out.stage(f"evaluation-{number}-{part}", rows, "parquet"),
            tie_break=tie_break, slices=slices,
        )  # fmt: skip

    run = measure(judged)
    document: dict[str, Any] = {"name": judged.name}
    if qrels is not None:
        if not run.values["n_judged"].any():
            refuse_unrelated(judged.candidates, qrels)
        document = _compared(plan, run, others, baseline, measure)
        _add_prices(document["systems"], (judged, *others))
    # With passages, a pair that is longer is not cut.
    cut = not setting_of(judged.record, "passages", "size")
    document |= describe(run, setting_of(judged.record, "model", "max_length") if cut else None)
    if is_fused(judged.record):  # whose sigmoid is no probability
        document["scores"] = {k: v for k, v in document["scores"].items() if k not in _OF_LOGITS}
    document |= {"operations": _operations(judged.record), "examples": []}
    if judged.texts is not None and plan.examples and qrels is not None:
        document["examples"] = examples(run.rows, judged.texts, document, plan.examples)
    document["warnings"] = _warnings(document, run, plan)
    document["gate"] = judge(plan.rules, document, plan.config) if plan.rules else None
    out.stage(PER_QUERY, run.per_query, "parquet")
    return document


def _compared(
    plan: Plan, run: RunEvaluation, others: Sequence[Table], baseline: Baseline | Table | None,
    measure: Callable[[Table], RunEvaluation],
) -> dict[str, Any]:  # fmt: skip
    """The document of a table that has judgements, as far as values per list go."""
    if run.values.empty:
        raise RefusedError("the qrels hold no query; give at least one judged document")
    further = {table.name: measure(table) for table in others}
    if isinstance(baseline, Table):
        other = further.get(baseline.name) or measure(baseline)
        baseline = Baseline(other.name, other.values)
    document = assemble(run, [*further.values()], baseline, plan.measures, plan.config.slices)
    if plan.config.baseline and baseline is None:
        document["notes"] = [
            f"{plan.config.baseline} has no passing run yet: there is nothing to compare with, "
            "and rules against the baseline hold"
        ]
    return document


def _add_prices(systems: Sequence[dict[str, Any]], tables: Sequence[Table]) -> None:
    """Add what a system's run took: mean time per pair [ms] and cost; None where unknown."""
    records = {table.name: table.record or {} for table in tables}
    for row in systems:
        record = records.get(row["name"], {})
        times, remote = (record.get(name) or {} for name in ("device_ms", "remote"))
        row |= {"ms_per_pair": times.get("mean"), "cost": remote.get("cost")}


def _operations(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Speed, shares and counts of a rerank run; None where nothing is known of it."""
    if not record or "rates" not in record:
        return None
    return {
        "counts": record.get("counts", {}),
        "ms_per_pair": record.get("device_ms"),
        "memory": record.get("memory"),
        "remote": record.get("remote"),
        "passages": record.get("passages"),
        **{name: rate for name, rate in record["rates"].items() if name != "top1_change_rate"},
        **{name: record.get(name, {}) for name in ("reject_reasons", "timings", "model")},
    }


def _warnings(document: Mapping[str, Any], run: RunEvaluation, plan: Plan) -> list[str]:
    """What a reader must know before believing a number, in plain sentences."""
    found = [run.partial] if run.partial else []
    scores, baseline = document["scores"], document.get("baseline")
    if scores["constant"]:
        found.append("All scores are equal: the order is that of the document ids.")
    elif (scores["tied_rate"] or 0.0) > _TIED:
        found.append(
            f"{scores['tied_rate']:.0%} of the candidates have the score of another candidate of "
            "their list: ties are in order of the document ids."
        )
    if "queries_judged" not in document:
        return found
    judged, limit = document["queries_judged"], plan.config.min_queries
    if judged < limit:
        found.append(f"Only {judged} of {document['queries']} judged queries have a judged "
                     f"candidate; evaluation.min_queries is {limit}.")  # fmt: skip
    if document["judged"] < plan.config.min_judged:
        found.append(
            f"Only {document['judged']:.2%} of the first ten documents have a judgement: ids may "
            "hardly meet, or the qrels belong to other documents."
        )
    falls = [("first stage", mean_judged(run.values, BEFORE), document["judged"])]
    if baseline:
        found += [f"The baseline's lists are of {key} {there}, those here of {here}."
                  for key, (here, there) in baseline["apart"].items()]  # fmt: skip
        falls.append(("baseline", baseline["judged_before"], baseline["judged"]))
    for name, before, after in falls:
        if before is not None and after < before - _JUDGED_FALL:
            found.append(
                f"{JUDGED} fell from {before:.3f} ({name}) to {after:.3f}: documents without a "
                "judgement count as not relevant, so part of a loss may be theirs."
            )
    if baseline and (baseline["only_here"] or baseline["only_baseline"]):
        found.append(
            f"The comparison with {baseline['name']} is over the {baseline['queries']} queries "
            f"that both rank or neither; {baseline['only_here']} are only here, "
            f"{baseline['only_baseline']} only in the baseline."
        )
    return found
