"""Everything that can be refused, looked at before any work starts, and reported in one list.

What needs no Spark comes first, but does not end the look-around: a user who mends a model's name
wants to know about the missing column, too. Only a session that cannot start hides what is behind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ParamSpec

from pyspark.sql import DataFrame, SparkSession

from jobs.config import Config, EvaluationConfig
from jobs.evaluation.document import Baseline
from jobs.evaluation.plan import Plan, make_plan
from jobs.evaluation.qrels import from_labels, read_qrels
from jobs.evaluation.ranked import Table, named, read_ranked
from jobs.evaluation.result import find_baseline
from jobs.input.layouts import InputTable, read_input
from jobs.output.folder import refuse_columns
from jobs.output.locations import refuse_locations, table_folders
from jobs.output.record import Stopwatch
from jobs.output.tracking.client import fetch_baseline, refuse_tracking
from jobs.output.tracking.runs import fetch_model
from jobs.ranking.order import COLUMNS, refuse_slices
from jobs.runtime.errors import ErrorCollector, RefusedError
from jobs.runtime.redaction import masked
from jobs.runtime.session import open_session
from jobs.scoring.backends import for_backend, refuse_missing_packages
from jobs.scoring.models import resolve_model
from jobs.scoring.resources import refuse_scoring
from jobs.scoring.stage import refuse_unscorable
from udfs.checkpoint import Checkpoint

_P = ParamSpec("_P")


@dataclass(frozen=True)
class Rerank:
    """What a run of `jobs.rerank` starts from, checked.

    Attributes:
        spark: the session.
        plan: what an evaluation has to answer.
        checkpoint: the model's folder, or its copy for another backend.
        pairs: the input; nothing of it but its columns was looked at.
        qrels: those of `evaluation.qrels`; None: labels of the input, if any.
        baseline: what to compare with, None if there is nothing (yet).
    """

    spark: SparkSession
    plan: Plan
    checkpoint: Checkpoint
    pairs: InputTable
    qrels: DataFrame | None
    baseline: Baseline | Table | None


def check_rerank(config: Config, watch: Stopwatch) -> Rerank:
    """Look at everything `jobs.rerank` needs.

    Raises:
        RefusedError: with all that cannot work.
    """
    errors, given, qrels_at = ErrorCollector(), config.input, config.evaluation.qrels
    plan = errors.run(make_plan, config.evaluation, config.report)
    fetch = partial(fetch_model, config.mlflow.tracking_uri)
    checkpoint = errors.run(resolve_model, config.model, fetch)
    errors.run(refuse_missing_packages, config.model.backend)
    scoring = (config.model, config.batching, checkpoint)
    with (
        watch.part("session"),
        _checking(errors, refuse_tracking, config.mlflow),
        _checking(errors, refuse_unscorable, *scoring),
    ):
        spark = errors.run(open_session, config.spark)
    if spark is None:
        raise errors.error()
    with watch.part("preflight"):
        errors.run(refuse_scoring, spark, config.scoring)
        sources = [given.path, given.corpus, given.queries, given.run]
        sources += table_folders(spark, given.table)
        source = given.path or given.run or given.table
        store = config.store.path
        errors.run(refuse_locations, spark, config.output, sources, store, masked(source or ""))
        pairs = errors.run(read_input, spark, given, config.model)
        if pairs is not None:
            errors.run(refuse_columns, pairs.rows.schema, config.output.format)
            errors.run(_refuse_partitions, pairs.passed, config.output.partition_by)
            errors.run(refuse_slices, pairs.rows.columns, config.evaluation.slices)
            if plan is not None:
                errors.run(refuse_unmeasured, plan, pairs.has)
        qrels = errors.run(read_qrels, spark, qrels_at) if qrels_at else None
        baseline = None
        if plan is not None:
            baseline = errors.run(
                find_baseline, spark, plan, {}, partial(fetch_baseline, config.mlflow), given.group
            )
    errors.raise_if_any()
    # Or it was refused.
    assert plan is not None and checkpoint is not None and pairs is not None
    for note in pairs.notes:
        sys.stderr.write(f"note: {note}\n")
    return Rerank(spark, plan, for_backend(config.model, checkpoint), pairs, qrels, baseline)


@dataclass(frozen=True)
class Tune:
    """What a run of `jobs.tune` starts from, checked.

    Attributes:
        spark: the session.
        checkpoint: the model's folder.
        pairs: the input; nothing of it but its columns was looked at.
        qrels: those of `evaluation.qrels`; None: labels of the input, if any.
    """

    spark: SparkSession
    checkpoint: Checkpoint
    pairs: InputTable
    qrels: DataFrame | None


def check_tune(config: Config, watch: Stopwatch) -> Tune:
    """Look at everything `jobs.tune` needs.

    Raises:
        RefusedError: with all that cannot work.
    """
    errors, given, qrels_at = ErrorCollector(), config.input, config.evaluation.qrels
    fetch = partial(fetch_model, config.mlflow.tracking_uri)
    checkpoint = errors.run(resolve_model, config.model, fetch)
    if any(name.startswith("onnxruntime:") for name in config.tune.precisions):
        errors.run(refuse_missing_packages, "onnxruntime")
    model = config.model.model_copy(update={"backend": "torch"})  # which is always tried
    with (
        watch.part("session"),
        _checking(errors, refuse_tracking, config.mlflow),
        _checking(errors, refuse_unscorable, model, config.batching, checkpoint),
    ):
        spark = errors.run(open_session, config.spark)
    if spark is None:
        raise errors.error()
    with watch.part("preflight"):
        sources = [given.path, given.corpus, given.queries, given.run]
        sources += table_folders(spark, given.table)
        errors.run(refuse_locations, spark, config.output, sources)
        pairs = errors.run(read_input, spark, given, config.model)
        qrels = errors.run(read_qrels, spark, qrels_at) if qrels_at else None
    errors.raise_if_any()
    assert checkpoint is not None and pairs is not None  # or it was refused
    return Tune(spark, checkpoint, pairs, qrels)


@dataclass(frozen=True)
class Evaluate:
    """What a run of `jobs.evaluate` starts from, checked.

    Attributes:
        spark: the session.
        plan: what to answer.
        paths: ranked tables by name, the judged one first.
        tables: the same, read.
        qrels: what to measure by; None where no rule needs any.
        texts: the pairs with their texts, None if none are to be shown.
        baseline: what to compare with, None if there is nothing (yet).
    """

    spark: SparkSession
    plan: Plan
    paths: dict[str, str]
    tables: dict[str, Table]
    qrels: DataFrame | None
    texts: DataFrame | None
    baseline: Baseline | Table | None


def check_evaluate(config: Config, watch: Stopwatch) -> Evaluate:
    """Look at everything `jobs.evaluate` needs.

    Raises:
        RefusedError: with all that cannot work.
    """
    errors, given = ErrorCollector(), config.input
    plan = errors.run(make_plan, config.evaluation, config.report)
    paths = errors.run(named, config.ranked.path) or {}
    first = next(iter(paths), "")
    if paths and config.evaluation.baseline == first:
        errors.add(f"evaluation.baseline={first} is the table that is judged; name another one")
    if config.report.examples and not (given.path or given.table or given.run):
        errors.add(
            "report.examples shows texts, which a ranked table does not hold; set input.path "
            "to the table it was made from, or leave report.examples out"
        )
    with watch.part("session"), _checking(errors, refuse_tracking, config.mlflow):
        spark = errors.run(open_session, config.spark)
    if spark is None:
        raise errors.error()
    with watch.part("reading"):
        errors.run(refuse_locations, spark, config.output, list(paths.values()))
        slices = {first: config.evaluation.slices}
        read = {
            n: errors.run(read_ranked, spark, n, p, slices.get(n, ()), given.group)
            for n, p in paths.items()
        }
        tables = {name: table for name, table in read.items() if table is not None}
        qrels = _judgements(errors, spark, config.evaluation, plan, tables.get(first))
        pairs = None
        if config.report.examples and not errors:
            pairs = errors.run(read_input, spark, given, config.model)
        baseline = None
        if plan is not None:
            others = {name: table for name, table in tables.items() if name != first}
            fetch = partial(fetch_baseline, config.mlflow)
            baseline = errors.run(find_baseline, spark, plan, others, fetch, given.group)
    errors.raise_if_any()
    assert plan is not None  # or it was refused
    texts = None if pairs is None else pairs.rows
    return Evaluate(spark, plan, paths, tables, qrels, texts, baseline)


def _judgements(
    errors: ErrorCollector, spark: SparkSession, config: EvaluationConfig, plan: Plan | None,
    table: Table | None,
) -> DataFrame | None:  # fmt: skip
    """The qrels; those of a file even where table or plan cannot be read."""
    if config.qrels:
        return errors.run(read_qrels, spark, config.qrels)
    if table is None or plan is None:
        return None
    qrels = errors.run(from_labels, table.candidates)
    if qrels is None and not errors and (plan.needs_judgements or not plan.rules):
        errors.add(
            "there is nothing to measure by: set evaluation.qrels, or give a ranked table with "
            "grades in a column label"
        )
    return qrels


def judgements_of(
    plan: Plan, qrels: DataFrame | None, labelled: DataFrame | None
) -> DataFrame | None:
    """The qrels that were read, else the labels of these rows; None where there are none.

    Raises:
        RefusedError: labels that cannot be used, or none at all where a gate needs some.
    """
    if qrels is not None:
        return qrels
    found = None if labelled is None else from_labels(labelled)
    refuse_unmeasured(plan, () if found is None else ("label",))
    return found


def refuse_unmeasured(plan: Plan, has: Collection[str]) -> None:
    """A rule, or a comparison, that nothing can answer must not pass in silence.

    Raises:
        RefusedError: if there are neither qrels nor labels.
    """
    if plan.needs_judgements and not plan.config.qrels and "label" not in has:
        raise RefusedError(
            f"{' and '.join(plan.needs_judgements)} cannot be answered without judgements; set "
            "evaluation.qrels, or input.label to a column of grades"
        )


def _refuse_partitions(passed: Collection[str], partition_by: Sequence[str]) -> None:
    """Refuse partitions by what is no column that passes through.

    Raises:
        RefusedError: naming missing and present columns.
    """
    taken = (*COLUMNS, "label", "reason", "detail")
    present = [name for name in passed if name not in taken]
    if missing := [name for name in partition_by if name not in present]:
        raise RefusedError(
            f"output.partition_by: the input has no column {', '.join(missing)} that passes "
            f"through under its name; it has {', '.join(present) or 'none'}"
        )


@contextmanager
def _checking(
    errors: ErrorCollector, check: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs
) -> Iterator[None]:
    """Run a check beside the body of the `with`, which starts Spark."""
    with ThreadPoolExecutor(1) as beside:
        result = beside.submit(check, *args, **kwargs)
        yield
    errors.run(result.result)
