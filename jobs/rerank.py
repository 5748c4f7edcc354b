"""Rerank a table of (query, candidate) pairs with a cross-encoder.

python -m jobs.rerank --config conf/local.yaml --input.path IN --output.path OUT
spark-submit --py-files dist/spark-rerank-0.1.0.zip jobs/rerank.py --config conf/gpu.yaml ...
"""

import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import date as Day
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

from jobs.config import Config
from jobs.evaluation.drift import stage_drift
from jobs.evaluation.labels import Grades, make_grades, refuse_labels
from jobs.evaluation.ranked import Table
from jobs.evaluation.report import render
from jobs.evaluation.result import evaluate, refuse_unrelated
from jobs.input.arrivals import for_new_days
from jobs.input.layouts import pair_texts
from jobs.input.validation import ValidatedInput, validate
from jobs.output.catalog import refuse_table, write_table
from jobs.output.folder import OutputFolder
from jobs.output.locations import refuse_locations
from jobs.output.names import DRIFT, PARTITIONS, PER_QUERY, RANKED, REJECTS, SCORES
from jobs.output.publish import publish, result_files, track_run
from jobs.output.record import (
    Stopwatch,
    evaluation_record,
    make_record,
    model_record,
    scoring_record,
)
from jobs.output.summary import closing_summary, dry_run_summary
from jobs.preflight import Rerank, check_rerank, judgements_of
from jobs.ranking import Results, all_candidates, rank_candidates, with_scores, write_ranked
from jobs.runtime.command import Command
from jobs.runtime.errors import DONE, GATE_NOT_PASSED, NOT_TRACKED, TOO_MANY_REJECTS
from jobs.runtime.redaction import masked
from jobs.runtime.session import open_session
from jobs.scoring import stage
from jobs.scoring.fill import count_passages, distinct_keys, fill_store, scoring_stats
from jobs.scoring.models import embedded_model
from jobs.scoring.remote import estimate_units, remote_spec
from jobs.scoring.token_lengths import sample_lengths
from jobs.store.scores import PASSAGES, SCHEMA, ScoreStore
from udfs.spec import ScorerSpec

COMMAND = Command(
    name="python -m jobs.rerank",
    about="Rerank a table of (query, candidate) pairs with a cross-encoder.",
    require=("model.name|remote.model", "input.path|input.table|input.run", "output.path"),
    sections="input model remote passages batching scoring ranking label evaluation report store "
    "output mlflow spark dry_run",
)


def run(config: Config) -> int:
    """Refuse all that can be refused, then rerank, or say what it would cost."""
    if config.input.checkpoint:
        return rerank_new_days(config)
    watch = Stopwatch()
    ready = check_rerank(config, watch)
    return dry_run(config, ready) if config.dry_run else rerank(config, ready, watch)


def rerank_new_days(config: Config) -> int:
    """Rerank the days that have new rows; days in a row are a run. They are taken if it publishes.

    Returns the code of a run that ended otherwise, or else the highest.
    """
    spark, codes = open_session(config.spark), [DONE]
    refuse_locations(spark, config.output, [config.input.checkpoint], config.store.path)

    def process(first: Day, last: Day) -> None:
        watch, days = Stopwatch(), {"since": first, "until": last, "allow_empty": True}
        night = config.model_copy(update={"input": config.input.model_copy(update=days)})
        codes.append(rerank(night, check_rerank(night, watch), watch))
        if codes[-1] not in (DONE, NOT_TRACKED):
            raise _NotTakenError

    with suppress(_NotTakenError):
        for_new_days(spark, config.input, process)
    if len(codes) == 1:
        sys.stdout.write(
            f"no new rows since the last run with {masked(str(config.input.checkpoint))}\n"
        )
    return codes[-1] if codes[-1] != DONE else max(codes)


class _NotTakenError(Exception):
    """A run has not published its days; the next one begins with them."""


def rerank(config: Config, ready: Rerank, watch: Stopwatch) -> int:
    """Produce the results, publish them or keep them beside, report and log them."""
    with OutputFolder(ready.spark, config.output) as out:
        record, document = produce(config, ready, watch, out)
        code, problems, held_back = outcome(config, record, document, out.has_results())
        tables = [RANKED, REJECTS, *(name for name in (DRIFT, PER_QUERY) if name in out.staged)]
        report = render(document, record) if document else None
        if config.output.table and not held_back:
            staged = out.staged
            write_table(
                ready.spark, staged[RANKED], staged.get(PARTITIONS), config.output, out.run_id
            )
        files = result_files(record, document, report)
        places = publish(out, tables, files, hold_back=held_back)
    sys.stdout.write(closing_summary(record, document, places) + "\n")
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    if held_back:
        sys.stderr.write(
            f"not published: {masked(out.path)} serves what it did before; the results of this run "
            f"are in {masked(out.place(''))} until another run is not published "
            "(output.publish=always publishes them all the same)\n"
        )
    if config.output.table and not held_back:
        sys.stdout.write(f"{'table':<10} {config.output.table}\n")
    tracked = track_run(config.mlflow, out, record)
    return code or tracked


def produce(
    config: Config, ready: Rerank, watch: Stopwatch, out: OutputFolder
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Check, score, rank and measure; each step reads what the last one wrote.

    Returns the record, and the evaluation, None where there was nothing to measure by.
    """
    spark, plan, pairs = ready.spark, ready.plan, ready.pairs
    spec = stage.ship_model(spark, ready.checkpoint, spec_of(config, ready), config.model.ship)
    place, passages = config.store.path or f"{out.path}/{SCORES}", spec.passages is not None
    store = ScoreStore(spark, place, spec.fingerprint(), passages=passages)
    with watch.part("checking"):
        done = validate(pairs, out)
        qrels = judgements_of(plan, ready.qrels, done.valid if "label" in pairs.has else None)
        refuse_labels(config.label, config.ranking, pairs, judged=qrels is not None)
        refuse_unrelated(done.valid, ready.qrels, ready.baseline)
    model = model_record(config, ready.checkpoint)
    store.open({"model": model["name"], "revision": model["revision"], **spec.scoring()})
    if config.output.table:
        refuse_table(spark, config.output, schema_of(config, done))
    with watch.part("scoring"), counting_kept(store):
        filled = fill_store(
            spark, config.batching, config.scoring, pairs, done, spec, store
        )  # fmt: skip
    # Beside each other, as short jobs in a row leave most cores idle.
    with watch.part("ranking"), ThreadPoolExecutor(1) as beside:
        measuring = beside.submit(scoring_stats, spark, filled)
        results, found = rank(config, out, done, store, qrels, filled.attempt)
        stats = measuring.result()
    record = {
        **make_record("rerank", out, config, watch),
        "fingerprint": spec.fingerprint(),
        "model": {**model, "precision": None if spec.remote else spec.precision},
        **scoring_record(config, done.counts, stats, results, watch),
        **found,
    }  # fmt: skip
    if qrels is None and not plan.rules:
        return {**record, "timings": watch.timings()}, None
    with watch.part("measuring"):
        every = all_candidates(config.ranking, done, results)
        texts = pairs.rows if plan.examples else None
        judged = Table("reranked", every, results.group, record, texts)
        document = evaluate(
            plan, judged, [], ready.baseline, qrels, out, tie_break=config.ranking.tie_break
        )
    return {**record, "timings": watch.timings(), **evaluation_record(document)}, document


def rank(
    config: Config, out: OutputFolder, done: ValidatedInput, store: ScoreStore,
    qrels: DataFrame | None, attempt: str | None,
) -> tuple[Results, dict[str, Any]]:  # fmt: skip
    """Stage the ranked table and `drift`; return it, and the sections of run.json about it."""
    scores, pairs = store.read(), done.table
    grades = make_grades(config.label, config.ranking, pairs, with_scores(done, scores), qrels)
    results = write_ranked(out, config.ranking, config.output, done, scores, grades)
    drift = stage_drift(out, done, results, attempt, grades)
    sections: dict[str, Any] = {"drift": drift} if drift else {}
    if grades:
        sections["labels"] = grades.record(results.ranked)
    if config.passages.size:
        sections["passages"] = count_passages(results.scored, pairs.list_columns)
    return results, sections


def schema_of(config: Config, done: ValidatedInput) -> StructType:
    """Return the columns of the ranked table, without starting a job."""
    fields = [*SCHEMA.fields, *(PASSAGES.fields if config.passages.size else [])]
    none = done.rows.sparkSession.createDataFrame([], StructType(fields))
    rows, grades = with_scores(done, none), Grades(config.label)
    rows = rank_candidates(rows, done, config.ranking)
    return (grades(rows) if config.label.thresholds else rows).schema


def spec_of(config: Config, ready: Rerank) -> ScorerSpec:
    """Return the scorer, its precision resolved."""
    if config.model.backend == "remote":
        return remote_spec(config.remote)
    gpu = stage.tasks_have_gpus(ready.spark, config.scoring)
    precision = stage.resolve_precision(config.model, gpu=gpu)
    passages = config.passages.spec()
    return stage.make_spec(config.model, config.batching, ready.checkpoint, precision, passages)


def outcome(
    config: Config, record: Mapping[str, Any], document: Mapping[str, Any] | None, published: bool
) -> tuple[int, list[str], bool]:
    """Return the exit code, what speaks against publishing, and whether that holds results back.

    Nobody is to read what a gate refused; other problems only must not replace `published` results.
    """
    code, problems = DONE, []
    rate, limit = record["rates"]["reject_rate"], config.input.max_reject_rate
    gate = (document or {}).get("gate")
    refused = bool(gate and not gate["passed"])
    if refused:
        code = GATE_NOT_PASSED
        problems.append("a rule of evaluation.gate did not hold")
    if rate > limit:
        code = TOO_MANY_REJECTS
        problems.append(
            f"{rate:.2%} of the rows were rejected, input.max_reject_rate allows {limit:.2%}; "
            "see the rejects, or raise the limit"
        )
    counts = record["counts"]
    all_cut = config.output.partition_by and counts["cut"]  # then the days are empty
    if counts["input"] and not counts["ranked"] and not all_cut:
        problems.append("no row was ranked")
    held_back = refused or (bool(problems) and published)
    return code, problems, held_back and config.output.publish == "if_passed"


@contextmanager
def counting_kept(store: ScoreStore) -> Iterator[None]:
    """Note on an error how many scores are kept, counted without Spark, which may be gone."""
    try:
        yield
    except Exception as error:
        kept, folder = "the scores of finished tasks", Path(store.folder.removeprefix("file:"))
        with suppress(OSError, ValueError):
            if folder.is_dir():  # of this machine
                files = folder.glob("attempt=*/*.parquet")
                kept = f"{sum(pq.read_metadata(file).num_rows for file in files):,} scored pairs"
        error.add_note(f"{kept} are kept in {store.folder}")
        raise


def dry_run(config: Config, ready: Rerank) -> int:
    """Check the input's rows, and say what a run would cost."""
    spark, pairs = ready.spark, ready.pairs
    done = validate(pairs)
    if config.output.table:
        refuse_table(spark, config.output, schema_of(config, done))
    spec = spec_of(config, ready)
    path = config.store.path or f"{config.output.path}/{SCORES}"
    store = ScoreStore(spark, path, spec.fingerprint())
    keys = distinct_keys(done.rows)
    left, missing = store.missing(keys, done.counts["distinct"], dry_run=True)
    counts = {**done.counts, "from_store": done.counts["distinct"] - missing}
    summary = dry_run_summary(
        counts, spec.fingerprint(), *_sizes(config, ready, spec, left),
        max_length=config.model.max_length,
    )  # fmt: skip
    sys.stdout.write(summary + "\n")
    return DONE


def _sizes(
    config: Config, ready: Rerank, spec: ScorerSpec, left: DataFrame
) -> tuple[dict[str, Any] | None, tuple[float, str] | None]:
    """Return the lengths of a sample, or what the pairs `left` will cost of a remote model."""
    folder = embedded_model() if spec.remote else ready.checkpoint.path
    sample = None if spec.passages else sample_lengths(ready.pairs, folder, spec)
    if sample is None:
        return None, None
    if spec.remote is not None:
        texts = pair_texts(ready.pairs).join(left, on="pair_key", how="left_semi")
        units, unit = estimate_units(spec.remote, texts.dropDuplicates(["pair_key"]), sample)
        price = config.remote.price_per_unit
        return None, (units, f"{unit}s{f', for about {units * price:,.2f}' if price else ''}")
    cut = sample.cut_at(config.model.max_length)
    return {
        "sampled": len(sample.whole), "mean": cut.mean, "cut": cut.share,
        "percentiles": {p: sample.percentile(p) for p in (50, 95, 99)},
    }, None  # fmt: skip


main = COMMAND(run)

if __name__ == "__main__":
    sys.exit(main())
