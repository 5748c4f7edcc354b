"""Rerank a table of (query, candidate) pairs with a cross-encoder.

python -m jobs.rerank --config conf/local.yaml --input.path IN --output.path OUT
spark-submit --py-files dist/spark-rerank-0.1.0.zip jobs/rerank.py --config conf/gpu.yaml ...
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from jobs.config import Config
from jobs.evaluation.drift import stage_drift
from jobs.evaluation.labels import make_grades, refuse_labels, unfitted
from jobs.evaluation.ranked import Table
from jobs.evaluation.report import render
from jobs.evaluation.result import evaluate, refuse_unrelated
from jobs.input.validation import validate
from jobs.output.catalog import refuse_table, write_table
from jobs.output.folder import OutputFolder
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
from jobs.ranking import all_candidates, ranked_schema, with_scores, write_ranked
from jobs.runtime.command import Command
from jobs.runtime.errors import DONE, GATE_NOT_PASSED, TOO_MANY_REJECTS
from jobs.runtime.redaction import masked
from jobs.scoring import stage
from jobs.scoring.fill import distinct_keys, fill_store, scoring_stats
from jobs.scoring.remote import remote_spec
from jobs.scoring.token_lengths import sample_lengths
from jobs.store.scores import ScoreStore
from udfs.spec import ScorerSpec

COMMAND = Command(
    name="python -m jobs.rerank",
    about="Rerank a table of (query, candidate) pairs with a cross-encoder.",
    require=("model.name|remote.model", "input.path|input.table|input.run", "output.path"),
    sections="input model remote batching scoring ranking label evaluation report store output "
    "mlflow spark dry_run",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is one of `jobs.runtime.errors`."""
    return COMMAND.run(argv, run)


def run(config: Config) -> int:
    """Refuse all that can be refused, then rerank, or say what it would cost."""
    watch = Stopwatch()
    ready = check_rerank(config, watch)
    return dry_run(config, ready) if config.dry_run else rerank(config, ready, watch)


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
    store = ScoreStore(spark, config.store.path or f"{out.path}/{SCORES}", spec.fingerprint())
    with watch.part("checking"):
        done = validate(pairs, out)
        qrels = judgements_of(plan, ready.qrels, done.valid if "label" in pairs.has else None)
        refuse_labels(config.label, pairs, judged=qrels is not None)
        refuse_unrelated(done.valid, ready.qrels, ready.baseline)
    model = model_record(config, ready.checkpoint)
    store.open({"model": model["name"], "revision": model["revision"], **spec.scoring()})
    if config.output.table:
        schema = ranked_schema(config.ranking, done, unfitted(config.label))
        refuse_table(spark, config.output, schema)
    with watch.part("scoring"), counting_kept(store):
        filled = fill_store(
            spark, config.batching, config.scoring, pairs, done, spec, store
        )  # fmt: skip
    # Beside each other, as short jobs in a row leave most cores idle.
    with watch.part("ranking"), ThreadPoolExecutor(1) as beside:
        measuring, scores = beside.submit(scoring_stats, spark, filled), store.read()
        grades = make_grades(config.label, pairs, with_scores(done, scores), qrels)
        results = write_ranked(out, config.ranking, config.output, done, scores, grades)
        drift = stage_drift(out, done, results, filled.attempt, grades)
        stats = measuring.result()
    record = {
        **make_record("rerank", run_id=out.run_id, config=config, watch=watch,
                      spark_version=spark.version),
        "fingerprint": spec.fingerprint(),
        "model": {**model, "precision": None if spec.remote else spec.precision},
        **scoring_record(done.counts, stats, results, watch),
        **({"labels": grades.record(results.ranked)} if grades else {}),
        **({"drift": drift} if drift else {}),
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


def spec_of(config: Config, ready: Rerank) -> ScorerSpec:
    """Return the scorer, its precision resolved."""
    if config.model.backend == "remote":
        return remote_spec(config.remote)
    gpu = stage.tasks_have_gpus(ready.spark, config.scoring)
    precision = stage.resolve_precision(config.model, gpu=gpu)
    return stage.make_spec(config.model, config.batching, ready.checkpoint, precision)


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
    if record["counts"]["input"] and not record["counts"]["ranked"]:
        problems.append("no row was ranked")
    held_back = refused or (bool(problems) and published)
    return code, problems, held_back and config.output.publish == "if_passed"


@contextmanager
def counting_kept(store: ScoreStore) -> Iterator[None]:
    """Note on an error how many scores are kept, counted without Spark, which may be gone."""
    try:
        yield
    except Exception as error:
        kept = "the scores of finished tasks"
        with suppress(OSError, ValueError):
            files = Path(store.folder.removeprefix("file:")).glob("attempt=*/*.parquet")
            kept = f"{sum(pq.read_metadata(file).num_rows for file in files):,} scored pairs"
        error.add_note(f"{kept} are kept in {store.folder}")
        raise


def dry_run(config: Config, ready: Rerank) -> int:
    """Check the input's rows, and say what a run would cost."""
    spark, pairs, checkpoint = ready.spark, ready.pairs, ready.checkpoint
    done = validate(pairs)
    if config.output.table:
        schema = ranked_schema(config.ranking, done, unfitted(config.label))
        refuse_table(spark, config.output, schema)
    spec = spec_of(config, ready)
    path = config.store.path or f"{config.output.path}/{SCORES}"
    store = ScoreStore(spark, path, spec.fingerprint())
    keys = distinct_keys(done.rows)
    _, missing = store.missing(keys, done.counts["distinct"], dry_run=True)
    counts = {**done.counts, "from_store": done.counts["distinct"] - missing}
    max_length, lengths = config.model.max_length, None
    sample = None if spec.remote else sample_lengths(pairs, checkpoint.path, spec)
    if sample is not None:
        cut = sample.cut_at(max_length)
        lengths = {
            "sampled": len(sample.whole), "mean": cut.mean, "cut": cut.share,
            "percentiles": {p: sample.percentile(p) for p in (50, 95, 99)},
        }  # fmt: skip
    sys.stdout.write(dry_run_summary(counts, lengths, max_length, spec.fingerprint()) + "\n")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
