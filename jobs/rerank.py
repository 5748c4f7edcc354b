"""Rerank a table of (query, candidate) pairs with a cross-encoder.

python -m jobs.rerank --config conf/local.yaml --input.path IN --output.path OUT
spark-submit --py-files dist/spark-rerank-0.1.0.zip jobs/rerank.py --config conf/gpu.yaml ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from jobs.config import Config
from jobs.evaluation.first_stage import without_partial_first_stage
from jobs.evaluation.report import render
from jobs.evaluation.result import PER_QUERY, Table, evaluate
from jobs.input.validation import validate
from jobs.output import publish as finish
from jobs.output.folder import OutputFolder
from jobs.output.record import Stopwatch, about_scores, make_record, with_evaluation
from jobs.output.summary import closing_summary, dry_run_summary
from jobs.output.tracking.client import Client
from jobs.preflight import Rerank, check_rerank, judgements_of
from jobs.ranking.results import all_candidates, write_ranked
from jobs.runtime.command import Command
from jobs.runtime.errors import DONE, TOO_MANY_REJECTS
from jobs.runtime.redaction import masked
from jobs.scoring.fill import fill_store, scoring_stats
from jobs.scoring.resources import scoring_profile
from jobs.scoring.stage import distinct_keys, make_spec, probing, ship_model, wanted_precision
from jobs.scoring.token_lengths import sample_lengths
from jobs.store import ScoreStore, is_new

COMMAND = Command(
    name="python -m jobs.rerank",
    about="Rerank a table of (query, candidate) pairs with a cross-encoder.",
    require=("model.name", "input.path|input.table|input.run", "output.path"),
    sections="input model batching scoring ranking evaluation report store output mlflow spark "
    "dry_run",
)
_RERANKED = "reranked"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is one of `jobs.runtime.errors`."""
    return COMMAND.run(argv, run)


def run(config: Config) -> int:
    """Refuse all that can be refused, then rerank, or say what it would cost."""
    watch = Stopwatch()
    ready = check_rerank(config, watch)
    return dry_run(config, ready) if config.dry_run else rerank(config, ready, watch)


def rerank(config: Config, ready: Rerank, watch: Stopwatch) -> int:
    """Make the results, tell about them, track them."""
    out = OutputFolder(ready.spark, str(config.output.path), config.output.format)
    with finish.mlflow_client(config) as client:
        record, document, places = produce(config, ready, watch, out, client)
        sys.stdout.write(closing_summary(record, document, places) + "\n")
        tracked = finish.track_run(client, config, out, record)
    rate = record["rates"]["reject_rate"]
    if rate > config.input.max_reject_rate:
        sys.stderr.write(
            f"{rate:.2%} of the rows were rejected, input.max_reject_rate allows "
            f"{config.input.max_reject_rate:.2%}; see {masked(places['rejects'])}, "
            "or raise the limit\n"
        )
        return TOO_MANY_REJECTS
    return finish.exit_code(document, tracked)


def produce(
    config: Config, ready: Rerank, watch: Stopwatch, out: OutputFolder, client: Client
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, str]]:
    """Check, score, rank, measure, publish; each step reads what the last one wrote.

    Returns:
        The record, the evaluation (None where there was nothing to measure by), and where
        everything is.
    """
    spark, plan, pairs, checkpoint = ready.spark, ready.plan, ready.pairs, ready.checkpoint
    scores_at = config.store.path or out.place("scores")
    draft = ship_model(spark, checkpoint, make_spec(config, checkpoint), config.model.ship)
    with out:
        profile = scoring_profile(config.scoring)
        # Workers are to have the model ahead where there is something to score for sure, unless
        # they are executors of their own, which are not to wait for it idly.
        ahead = profile is None and config.model.backend != "stub" and is_new(spark, scores_at)
        wanted = wanted_precision(config.model)
        with probing(spark, draft, wanted, profile, load=ahead, after=ready.workers) as probed:
            with watch.part("checking"):
                done = validate(pairs, out)
                labelled = done.valid if "label" in pairs.has else None
                qrels = judgements_of(config.evaluation, ready.qrels, labelled)
            with watch.part("probing"):
                start = probed.result()
        spec = replace(draft, precision=start.precision, doc_template=pairs.doc_template)
        store = ScoreStore(spark, scores_at, spec.fingerprint())
        store.open(about_scores(config, spec))
        with watch.part("scoring"):
            filled = fill_store(
                spark, pairs, done, spec, store,
                partitions=config.batching.partitions, profile=profile,
            )  # fmt: skip
        if config.mlflow.enabled:
            client.start()
        # Beside each other, as short jobs in a row leave most cores idle.
        with watch.part("ranking"), ThreadPoolExecutor(1) as beside:
            measuring = beside.submit(scoring_stats, spark, filled)
            results = write_ranked(
                out, config.ranking, config.output.partitions, "label" in pairs.has, done, store
            )
            stored = measuring.result()
        record = make_record(
            run_id=out.run_id, config=config, checkpoint=checkpoint, spec=spec, done=done,
            stored=stored, results=results, watch=watch, start_up=start.seconds,
            spark_version=spark.version,
        )  # fmt: skip
        document = None
        if qrels is not None:
            with watch.part("measuring"):
                candidates = without_partial_first_stage(
                    all_candidates(config.ranking, done, store, results)
                )
                judged = Table(_RERANKED, candidates, record, pairs.rows if plan.examples else None)
                document = evaluate(
                    plan, judged, {}, ready.baseline, qrels, out, tie_break=config.ranking.tie_break
                )
        record = with_evaluation({**record, "timings": watch.timings()}, document)
        tables = ["ranked", "rejects", *([PER_QUERY] if document else [])]
        report = render(document, record) if document else None
        return record, document, finish.publish(out, tables, record, document, report)


def dry_run(config: Config, ready: Rerank) -> int:
    """Check the input's rows, and say what a run would cost."""
    spark, pairs, checkpoint = ready.spark, ready.pairs, ready.checkpoint
    done = validate(pairs)
    draft = make_spec(config, checkpoint)
    profile = scoring_profile(config.scoring)
    wanted, workers = wanted_precision(config.model), ready.workers
    with probing(spark, draft, wanted, profile, load=False, after=workers) as probed:
        spec = replace(draft, precision=probed.result().precision, doc_template=pairs.doc_template)
    path = config.store.path or f"{config.output.path}/scores"
    store = ScoreStore(spark, path, spec.fingerprint())
    _, missing = store.missing(distinct_keys(done.rows), done.counts["distinct"], dry_run=True)
    counts = {**done.counts, "from_store": done.counts["distinct"] - missing}
    lengths = sample_lengths(pairs, checkpoint.path, spec)
    sys.stdout.write(
        dry_run_summary(counts, lengths, config.model.max_length, spec.fingerprint()) + "\n"
    )
    return DONE


if __name__ == "__main__":
    sys.exit(main())
