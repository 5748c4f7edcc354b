"""Rerank a table of (query, candidate) pairs with a cross-encoder.

python -m jobs.rerank --config conf/local.yaml --input.path IN --output.path OUT
spark-submit --py-files dist/spark-rerank.zip jobs/rerank.py --config conf/gpu.yaml ...
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from jobs import steps
from jobs.cli import load_config
from jobs.config import Config
from jobs.errors import DONE, NOT_TRACKED, REFUSED, TOO_MANY_REJECTS, RefusedError
from jobs.lengths import profile_lengths
from jobs.measures import Measure, parse_measures
from jobs.models import cache, resolve_model
from jobs.output import OutputFolder, refuse_columns, refuse_overlap
from jobs.record import Stopwatch, make_record
from jobs.scoring import make_spec, missing_keys, resolve_precision, ship_model
from jobs.session import open_session
from jobs.store import ScoreStore
from jobs.summary import closing_summary, dry_run_summary
from jobs.tables import read_pairs
from jobs.tracking import TrackingError, fetch_model, replay_command, track
from udfs.checkpoint import Checkpoint

COMMAND = "python -m jobs.rerank"
REQUIRED = ("model.name", "input.path|input.table|input.run", "output.path")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is one of `jobs.errors`."""
    watch = Stopwatch()
    try:
        config = load_config(
            sys.argv[1:] if argv is None else argv,
            require=REQUIRED,
            command=COMMAND,
            description=(__doc__ or "").splitlines()[0],
        )
        measures = _measures(config)
        checkpoint = resolve_model(config.model, partial(fetch_model, config.mlflow.tracking_uri))
        with watch.part("session"):
            spark = open_session(config)
        if config.dry_run:
            return dry_run(spark, config, checkpoint)
        return rerank(spark, config, checkpoint, measures, watch)
    except RefusedError as error:
        sys.stderr.write("refused, nothing was written:\n")
        sys.stderr.writelines(f"  - {finding}\n" for finding in error.findings)
        return REFUSED


def rerank(
    spark: SparkSession,
    config: Config,
    checkpoint: Checkpoint,
    measures: tuple[Measure, ...],
    watch: Stopwatch,
) -> int:
    """Read, check, score, rank, publish, record, track; each step reads what the last one wrote."""
    given = config.input
    refuse_overlap(
        spark, (given.path, given.corpus, given.queries, given.run), str(config.output.path)
    )
    pairs = read_pairs(spark, config.input, config.model)
    refuse_columns(pairs.rows.schema, config.output.format)
    out = OutputFolder(spark, str(config.output.path), config.output.format)
    out.recover()
    try:
        # Workers import torch, which takes seconds, while the input is being checked.
        with ThreadPoolExecutor(1) as beside:
            probing = beside.submit(resolve_precision, spark, config)
            with watch.part("checking"):
                done = steps.check(out, pairs)
                qrels = steps.judged(spark, config, "label" in pairs.has, done)
        with watch.part("probing"):
            precision = probing.result()
            spec = make_spec(config, checkpoint, precision, pairs.doc_template)
            store = ScoreStore(spark, config.store.path or out.place("scores"), spec.fingerprint())
        with watch.part("scoring"):
            shipped = ship_model(spark, checkpoint, spec, config.model.ship)
            stored = steps.fill_store(spark, config, pairs, done, shipped, store)
        with watch.part("ranking"):
            results = steps.rank(
                out, config.ranking, config.output.partitions, "label" in pairs.has, done, store
            )
        with watch.part("measuring"):
            metrics = None
            if qrels is not None:
                metrics = steps.measure(config.ranking, measures, qrels, done, store)
        out.publish(["ranked", "rejects"])
    finally:
        out.clear()
    record = make_record(
        run_id=out.run_id, config=config, checkpoint=checkpoint, spec=spec, done=done,
        stored=stored, results=results, metrics=metrics, watch=watch, spark_version=spark.version,
    )  # fmt: skip
    places = {name: out.place(name) for name in ("ranked", "rejects")}
    if metrics is None:
        out.remove("metrics.json")
    else:
        places["metrics"] = out.write_json("metrics.json", metrics)
    places["run"] = out.write_json("run.json", record)
    sys.stdout.write(closing_summary(record, places) + "\n")
    tracked = _track(config, out, record)
    rate = record["rates"]["reject_rate"]
    if rate > config.input.max_reject_rate:
        sys.stderr.write(
            f"{rate:.2%} of the rows were rejected, input.max_reject_rate allows "
            f"{config.input.max_reject_rate:.2%}; see {places['rejects']}, or raise the limit\n"
        )
        return TOO_MANY_REJECTS
    return tracked


def dry_run(spark: SparkSession, config: Config, checkpoint: Checkpoint) -> int:
    """Read and check the input, and say what a run would cost."""
    pairs = read_pairs(spark, config.input, config.model)
    done = steps.count_only(pairs)
    spec = make_spec(config, checkpoint, resolve_precision(spark, config), pairs.doc_template)
    path = config.store.path or f"{config.output.path}/scores"
    missing = missing_keys(done.rows, ScoreStore(spark, path, spec.fingerprint())).count()
    counts = {**done.counts, "from_store": done.counts["distinct"] - missing}
    lengths = profile_lengths(pairs, checkpoint.path, spec)
    sys.stdout.write(
        dry_run_summary(counts, lengths, config.model.max_length, spec.fingerprint()) + "\n"
    )
    return DONE


def _measures(config: Config) -> tuple[Measure, ...]:
    """The measures to compute; rules and baselines belong to another command."""
    if config.evaluation.gate or config.evaluation.baseline:
        raise RefusedError(
            "evaluation.gate and evaluation.baseline are not checked by this command in this "
            "version; remove them"
        )
    try:
        return parse_measures(config.evaluation.metrics)
    except ValueError as error:
        raise RefusedError(
            [f"evaluation.metrics: {line}" for line in str(error).splitlines()]
        ) from None


def _track(config: Config, out: OutputFolder, record: Mapping[str, Any]) -> int:
    """Log the run, after everything is written. A server that is down costs time, not data."""
    if not config.mlflow.enabled:
        return DONE
    run_json, is_local = _local_record(out)
    try:
        run_id = track(run_json, config.mlflow.tracking_uri, config.mlflow.timeout)
    except TrackingError as error:
        sys.stderr.write(
            f"the data is complete, but MLflow could not be reached: {error}\n"
            f"log this run later with: {replay_command(str(run_json))}\n"
        )
        return NOT_TRACKED
    if not is_local:
        out.write_json("run.json", {**record, "mlflow_run_id": run_id})
    sys.stdout.write(f"{'mlflow':<10} run {run_id}\n")
    return DONE


def _local_record(out: OutputFolder) -> tuple[Path, bool]:
    """run.json as a file of this machine: the written one, or a copy of a remote one."""
    place = out.place("run.json")
    if place.startswith("file:"):
        return Path(place.removeprefix("file://").removeprefix("file:")), True
    folder = cache() / "runs" / out.run_id
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("run.json", "metrics.json"):
        if name == "run.json" or out.has(name):
            (folder / name).write_text(out.read_text(name), encoding="utf-8")
    return folder / "run.json", False


if __name__ == "__main__":
    sys.exit(main())
