"""Find settings for a table and a model: lengths, speed, memory, and agreement with float32.

python -m jobs.tune --config conf/local.yaml --input.path IN --output.path OUT
spark-submit --py-files dist/spark-rerank-0.1.0.zip jobs/tune/__main__.py --config conf/gpu.yaml ...
"""

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd
from pyspark.resource import ResourceProfile
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from jobs.config import Config
from jobs.evaluation.qrels import from_labels
from jobs.evaluation.report import render_tuning
from jobs.output.folder import OutputFolder
from jobs.output.names import RECOMMENDED, TUNING, TUNING_PAGE
from jobs.output.publish import publish, track_run
from jobs.output.record import Stopwatch, make_record, model_record
from jobs.preflight import check_tune
from jobs.runtime.command import Command
from jobs.runtime.errors import RefusedError
from jobs.runtime.session import task_slots
from jobs.scoring.onnx_export import export, missing_packages
from jobs.scoring.stage import (
    make_spec,
    resolve_precision,
    scoring_profile,
    ship_model,
    tasks_have_gpus,
)
from jobs.scoring.token_lengths import sample_lengths
from jobs.tune.document import closing_summary, make_document, recommended_yaml
from jobs.tune.sample import draw_sample, first_queries
from jobs.tune.settings import Setting, engines, lengths_to_try, make_grid
from jobs.tune.sweep import sweep
from udfs.checkpoint import Checkpoint
from udfs.scorers.base import OK
from udfs.spec import Backend, Precision, ScorerSpec
from udfs.trial import Trial
from udfs.udf import run_trial

COMMAND = Command(
    name="python -m jobs.tune",
    about="Find settings for a table and a model: lengths, speed, memory, agreement with float32.",
    require=("model.name", "input.path|input.table|input.run", "output.path"),
    sections="tune input model batching scoring evaluation output mlflow spark",
)


@COMMAND
def main(config: Config) -> int:
    """Refuse all that can be refused, then sample, measure, recommend, write, track."""
    watch = Stopwatch()
    ready = check_tune(config, watch)
    spark, checkpoint, pairs, qrels = ready.spark, ready.checkpoint, ready.pairs, ready.qrels
    out, device = OutputFolder(spark, config.output), device_of(spark, config)
    on_gpu = device == "cuda"
    with watch.part("sampling"):
        if qrels is None and "label" in pairs.has:
            qrels = from_labels(pairs.rows)
        distinct = pairs.rows.select(F.count_distinct("pair_key")).collect()[0][0]
        draft = make_spec(config.model, config.batching, checkpoint, "fp32")
        lengths = sample_lengths(pairs, checkpoint.path, draft)
        if lengths is None:
            raise RefusedError("no row of the input can be scored; see jobs.rerank --dry-run")
        sample = draw_sample(pairs, qrels, config.tune, on_gpu=on_gpu)
    has_onnx = checkpoint.plain and not missing_packages()
    tried = engines(config.tune, device, has_onnx=has_onnx)
    max_lengths = lengths_to_try(config.tune, lengths, checkpoint.positions)
    grid = make_grid(config.tune, config.batching, tried, max_lengths, on_gpu=on_gpu)
    with watch.part("preparing"):
        profile = scoring_profile(spark, config.scoring) if on_gpu else None
        trial = partial(measure, spark, profile, ship_models(spark, config, checkpoint, tried))
        trial(grid[0], first_queries(sample, 1))  # later ones do not wait for torch's import
    with watch.part("measuring"):
        rows, reference_at, measured_on = sweep(config.tune, grid, sample, trial)
    record = {
        **make_record("tune", out, config, watch),
        "model": model_record(config, checkpoint) | {"positions": checkpoint.positions},
        "device": device,
        "task_slots": task_slots(spark),
        "counts": {"distinct": distinct, "sampled": len(sample), "measured_on": len(measured_on)},
        "queries": measured_on["query_id"].nunique(),
        "labelled": bool((measured_on["grade"] > 0).any()),
    }  # fmt: skip
    document = make_document(record, config, lengths, rows, reference_at)
    files: dict[str, Any] = {TUNING_PAGE: render_tuning(document), TUNING: document}
    if document["recommended"]:
        files = {RECOMMENDED: recommended_yaml(document), **files}
    with out:
        publish(out, [], files, gone={RECOMMENDED})
    places = {name: out.place(name) for name in files}
    sys.stdout.write(closing_summary(document, places) + "\n")
    return track_run(config.mlflow, out, document, TUNING)


def ship_models(
    spark: SparkSession,
    config: Config,
    checkpoint: Checkpoint,
    engines: Iterable[tuple[Backend, Precision]],
) -> dict[Backend, ScorerSpec]:
    """Export what has to be exported, ship it, and return what tasks need to know by backend."""
    specs: dict[Backend, ScorerSpec] = {}
    # int8 first: its copy of the model holds the float32 graph as well.
    for backend, precision in sorted(engines, key=lambda engine: engine[1] != "int8"):
        if backend not in specs:
            copy = export(checkpoint, precision) if backend == "onnxruntime" else checkpoint
            spec = make_spec(config.model, config.batching, copy, "fp32")
            spec = replace(spec, backend=backend, runtime=copy.runtime)
            specs[backend] = ship_model(spark, copy, spec, config.model.ship)
    return specs


def measure(
    spark: SparkSession, profile: ResourceProfile | None, specs: Mapping[Backend, ScorerSpec],
    setting: Setting, sample: pd.DataFrame,
) -> Trial:  # fmt: skip
    """Run one trial in a process of its own, where scoring would, and print a line on stderr."""
    keys = {key: value for key, value in setting._asdict().items() if key != "of_batches"}
    spec = replace(specs[setting.backend], **keys)
    task = run_trial(spec, sample["query"].to_list(), sample["doc"].to_list())
    trials = spark.sparkContext.parallelize([0], 1).mapPartitions(task)
    trial: Trial = (trials.withResources(profile) if profile else trials).first()
    speed = f"{len(sample) / trial.seconds:8.1f} pairs/s" if trial.outcome == OK else ""
    sizes = ("max_length", "max_tokens", "max_pairs")
    values = "  ".join(f"{key} {keys[key]:>6}" for key in sizes)
    sys.stderr.write(f"{setting.engine:<17} {values}  {trial.outcome:<6}{speed}\n")
    return trial


def device_of(spark: SparkSession, config: Config) -> str:
    """Return what executors score on: `cuda`, `cpu-bf16` or `cpu`."""
    model = config.model.model_copy(update={"precision": "auto", "backend": "torch"})
    precision = resolve_precision(model, gpu=tasks_have_gpus(spark, config.scoring))
    return {"fp16": "cuda", "bf16": "cpu-bf16"}.get(precision, "cpu")


if __name__ == "__main__":
    sys.exit(main())
