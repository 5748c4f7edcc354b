"""What can be refused without a look at the rows, before any work starts, and in one list.

What needs no Spark comes first, but does not end the look-around: a user who mends a model's name
wants to know about the missing column, too. Only a session that cannot start hides what is behind.
"""

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import types as T

from jobs.config import Config, OutputConfig
from jobs.evaluation.document import Baseline
from jobs.evaluation.gate import Plan, make_plan
from jobs.evaluation.labels import refuse_labels
from jobs.evaluation.qrels import from_labels, read_qrels
from jobs.evaluation.ranked import Table, named, read_ranked
from jobs.evaluation.result import find_baseline
from jobs.fuse.fusion import fusion_of
from jobs.input.layouts import PASS_THROUGH, InputTable, read_input
from jobs.output.locations import named_source, refuse_locations, table_folders
from jobs.output.record import Stopwatch
from jobs.output.tracking.client import fetch_baseline, fetch_model, refuse_tracking
from jobs.ranking import COLUMNS, output_names
from jobs.runtime.errors import ErrorCollector, RefusedError
from jobs.runtime.redaction import masked
from jobs.runtime.session import open_session
from jobs.scoring.models import rendering, resolve_model
from jobs.scoring.onnx_export import for_backend, refuse_missing_packages
from jobs.scoring.prompts import INSTRUCTION
from jobs.scoring.remote import remote_model
from jobs.scoring.stage import refuse_scoring, refuse_unscorable
from udfs.checkpoint import Checkpoint

_NESTED = (T.ArrayType, T.MapType, T.StructType, T.BinaryType)
_MOMENTS = (T.TimestampType, T.TimestampNTZType)


@dataclass(frozen=True)
class Tune:
    """What a run of `jobs.tune` starts from, checked."""

    spark: SparkSession
    checkpoint: Checkpoint
    pairs: InputTable  # nothing of it but its columns was looked at
    qrels: DataFrame | None  # those of `evaluation.qrels`; None: labels of the input, if any


@dataclass(frozen=True)
class Rerank(Tune):
    """What a run of `jobs.rerank` starts from, checked; the model is the backend's copy."""

    plan: Plan
    baseline: Baseline | Table | None  # None if there is nothing to compare with (yet)


@dataclass(frozen=True)
class Evaluate:
    """What a run of `jobs.evaluate` starts from, checked."""

    spark: SparkSession
    plan: Plan
    tables: list[Table]  # the judged one first, with its texts if any are to be shown
    qrels: DataFrame | None  # None where no rule needs any
    baseline: Baseline | Table | None  # None if there is nothing to compare with (yet)


def check_rerank(config: Config, watch: Stopwatch) -> Rerank:
    """Look at everything `jobs.rerank` needs, and refuse all that cannot work."""
    errors, given = ErrorCollector(), config.input
    plan = errors.run(make_plan, config.evaluation, config.report)
    checkpoint = _model(errors, config)
    if config.passages.size and checkpoint is not None and checkpoint.template:
        errors.add(
            f"passages.size={config.passages.size} is for classifiers; {config.model.name} is a "
            "causal language model: leave passages out, or choose another model"
        )
    errors.run(refuse_missing_packages, config.model.backend)
    can_score = partial(refuse_unscorable, config.model, config.batching, checkpoint)
    spark = start(errors, config, watch, can_score)
    with watch.part("preflight"):
        errors.run(refuse_scoring, spark, config.scoring)
        source = masked(named_source(given.model_dump()))
        pairs, qrels = read_inputs(errors, spark, config, checkpoint, config.store.path, source)
        if pairs is not None:
            errors.run(_refuse_columns, pairs, config.output)
            judged = bool(config.evaluation.qrels) or "label" in pairs.has
            errors.run(refuse_labels, config.label, config.ranking, pairs, judged=judged)
            errors.run(_refuse_slices, pairs.rows.columns, config.evaluation.slices)
            if config.ranking.fusion != "none":
                names = output_names(pairs.rows.columns, config.ranking)
                errors.run(fusion_of, pairs, names, config.ranking)
            if plan is not None:
                errors.run(refuse_unmeasured, plan, pairs.has)
        baseline = _baseline(errors, spark, config, plan, {})
    errors.raise_if_any()
    # Or it was refused.
    assert plan is not None and checkpoint is not None and pairs is not None
    for note in (*pairs.notes, *_activation(checkpoint)):
        sys.stderr.write(f"note: {note}\n")
    return Rerank(spark, for_backend(config.model, checkpoint), pairs, qrels, plan, baseline)


def check_tune(config: Config, watch: Stopwatch) -> Tune:
    """Look at everything `jobs.tune` needs, and refuse all that cannot work."""
    errors = ErrorCollector()
    if config.model.backend == "remote":
        errors.add("model.backend=remote leaves nothing to tune here; name a model to run")
    if config.passages.size:
        errors.add("jobs.tune measures documents that are cut; leave passages.size out")
    checkpoint = _model(errors, config)
    if any(name.startswith("onnxruntime:") for name in config.tune.precisions):
        errors.run(refuse_missing_packages, "onnxruntime")
    model = config.model.model_copy(update={"backend": "torch"})  # which is always tried
    can_score = partial(refuse_unscorable, model, config.batching, checkpoint)
    spark = start(errors, config, watch, can_score)
    with watch.part("preflight"):
        errors.run(refuse_scoring, spark, config.scoring)
        pairs, qrels = read_inputs(errors, spark, config, checkpoint)
    errors.raise_if_any()
    assert checkpoint is not None and pairs is not None  # or it was refused
    return Tune(spark, checkpoint, pairs, qrels)


def check_evaluate(config: Config, watch: Stopwatch) -> Evaluate:
    """Look at everything `jobs.evaluate` needs, and refuse all that cannot work."""
    errors, given, evaluation = ErrorCollector(), config.input, config.evaluation
    plan = errors.run(make_plan, evaluation, config.report)
    paths = errors.run(named, config.ranked.path) or {}
    first = next(iter(paths), "")
    if paths and evaluation.baseline == first:
        errors.add(f"evaluation.baseline={first} is the table that is judged; name another one")
    if config.report.examples and not (given.path or given.table or given.run):
        errors.add(
            "report.examples shows texts, which a ranked table does not hold; set input.path "
            "to the table it was made from, or leave report.examples out"
        )
    spark = start(errors, config, watch)
    with watch.part("reading"):
        errors.run(refuse_locations, spark, config.output, list(paths.values()), source="")
        tables: dict[str, Table] = {}
        for name, path in paths.items():
            slices = evaluation.slices if name == first else ()
            table = errors.run(read_ranked, spark, name, path, slices, given.group)
            tables |= {name: table} if table else {}
        if evaluation.qrels:
            qrels = errors.run(read_qrels, spark, evaluation.qrels)
        else:
            qrels = errors.run(_labels, plan, tables.get(first), bool(errors))
        pairs = None
        if config.report.examples and not errors:
            pairs = errors.run(read_input, spark, given, rendering(config.model, None))
        others = {name: table for name, table in tables.items() if name != first}
        baseline = _baseline(errors, spark, config, plan, others)
    errors.raise_if_any()
    assert plan is not None  # or it was refused
    if pairs is not None:
        tables[first] = replace(tables[first], texts=pairs.rows)
    return Evaluate(spark, plan, [*tables.values()], qrels, baseline)


def judgements_of(
    plan: Plan, qrels: DataFrame | None, labelled: DataFrame | None
) -> DataFrame | None:
    """Return the qrels that were read, else the labels of these rows; None where there are none.

    Labels that cannot be used are refused, and that there are none where a rule needs some.
    """
    if qrels is not None:
        return qrels
    found = None if labelled is None else from_labels(labelled)
    refuse_unmeasured(plan, () if found is None else ("label",))
    return found


def refuse_unmeasured(plan: Plan, has: Collection[str]) -> None:
    """Refuse rules and comparisons if there are neither qrels nor labels to answer them by."""
    if plan.needs_judgements and not plan.config.qrels and "label" not in has:
        raise RefusedError(
            f"{' and '.join(plan.needs_judgements)} cannot be answered without judgements; set "
            "evaluation.qrels, or input.label to a column of grades"
        )


def _model(errors: ErrorCollector, config: Config) -> Checkpoint | None:
    if config.model.backend == "remote":
        return errors.run(remote_model, config.remote)
    fetch = partial(fetch_model, config.mlflow.tracking_uri)
    by_row = {"query_instruction": INSTRUCTION} if config.input.instruction else {}
    return errors.run(resolve_model, config.model.model_copy(update=by_row), fetch)


def _activation(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield what to know of a model whose own scores are no probabilities."""
    if checkpoint.activation not in ("", "Sigmoid"):
        yield (
            f"sentence-transformers gives this model's scores through {checkpoint.activation}; "
            "column score has the logit, and probability the logit's sigmoid"
        )


def start(
    errors: ErrorCollector, config: Config, watch: Stopwatch, *checks: Callable[[], None]
) -> SparkSession:
    """Start Spark, and check beside it what needs none; without a session nothing else can be."""
    with watch.part("session"), ThreadPoolExecutor() as beside:
        results = [beside.submit(refuse_tracking, config.mlflow)]
        results += [beside.submit(check) for check in checks]
        spark = errors.run(open_session, config.spark)
    for result in results:
        errors.run(result.result)
    if spark is None:
        raise RefusedError(errors.messages)
    return spark


def read_inputs(
    errors: ErrorCollector, spark: SparkSession, config: Config, checkpoint: Checkpoint | None,
    *places: str | None,
) -> tuple[InputTable | None, DataFrame | None]:  # fmt: skip
    """Return the input and the qrels of `evaluation.qrels`. `places`: of the store, the source."""
    given, qrels_at = config.input, config.evaluation.qrels
    sources = [given.path, given.corpus, given.queries, given.run]
    sources += table_folders(spark, given.table)
    errors.run(refuse_locations, spark, config.output, sources, *places)
    pairs = errors.run(read_input, spark, given, rendering(config.model, checkpoint))
    return pairs, errors.run(read_qrels, spark, qrels_at) if qrels_at else None


def _baseline(
    errors: ErrorCollector, spark: SparkSession, config: Config, plan: Plan | None,
    others: dict[str, Table],
) -> Baseline | Table | None:  # fmt: skip
    if plan is None:
        return None
    fetch = partial(fetch_baseline, config.mlflow)
    return errors.run(find_baseline, spark, plan, others, fetch, config.input.group)


def _labels(plan: Plan | None, table: Table | None, refused: bool) -> DataFrame | None:
    """Return the labels of a ranked table; that it has none is said unless more is wrong."""
    if table is None or plan is None:
        return None
    qrels = from_labels(table.candidates)
    if qrels is None and not refused and (plan.needs_judgements or not plan.rules):
        raise RefusedError(
            "there is nothing to measure by: set evaluation.qrels, or give a ranked table with "
            "grades in a column label"
        )
    return qrels


def _refuse_columns(pairs: InputTable, config: OutputConfig) -> None:
    """Refuse columns that the output's format cannot hold, and partitions by what is none."""
    errors = ErrorCollector()
    fields = pairs.rows.schema.fields
    nested = [field.name for field in fields if isinstance(field.dataType, _NESTED)]
    if config.format == "csv" and nested:
        errors.add(
            f"output.format=csv cannot hold the columns {', '.join(nested)}; choose parquet, or "
            "leave them out of the input"
        )
    taken = (*COLUMNS, "label", "reason", "detail")
    present = [name for name in pairs.passed if name not in taken]
    if missing := [name for name in config.partition_by if name not in present]:
        errors.add(
            f"output.partition_by: the input has no column {', '.join(missing)} that passes "
            f"through under its name; it has {', '.join(present) or 'none'}"
        )
    for name in config.partition_by:
        kind = pairs.rows.schema[f"{PASS_THROUGH}{name}"].dataType if name in present else None
        if isinstance(kind, _NESTED):
            errors.add(f"output.partition_by={name} is {kind.simpleString()}; name a plain column")
        if isinstance(kind, _MOMENTS) and name == pairs.config.date:
            errors.add(
                f"output.partition_by={name} is {kind.simpleString()}, which would be a folder a "
                "moment; add a column of its day to the input, and name that here, in input.group "
                "and in input.date"
            )
    errors.raise_if_any()


def _refuse_slices(columns: Sequence[str], slices: Sequence[str]) -> None:
    """Find out before anything is scored that a slice is no column of the ranked table.

    Raises:
        RefusedError: naming missing and present columns.
    """
    present = [name.removeprefix(PASS_THROUGH) for name in columns if name.startswith(PASS_THROUGH)]
    missing = [name for name in slices if name not in (*present, *COLUMNS)]
    if missing:
        raise RefusedError(
            f"evaluation.slices: the ranked table will not have {', '.join(missing)}; columns "
            f"passed through are {', '.join(present) or 'none'}"
        )
