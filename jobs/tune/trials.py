"""Measure a setting where the pairs will be scored: in a Spark task, on an executor's device."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace

import pandas as pd
from pyspark.sql import SparkSession

from jobs.config import Config
from jobs.scoring.onnx_export import export
from jobs.scoring.stage import make_spec, resolve_precision, ship_model, tasks_have_gpus
from jobs.tune.recommend import Setting
from udfs.checkpoint import Checkpoint
from udfs.scorers.base import OK
from udfs.spec import Backend, Precision, ScorerSpec
from udfs.trial import Trial
from udfs.udf import run_trial


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
    spark: SparkSession, specs: Mapping[Backend, ScorerSpec], setting: Setting, sample: pd.DataFrame
) -> Trial:
    """Run one trial in a process of its own, and print a line on stderr."""
    keys = {key: value for key, value in setting._asdict().items() if key != "of_batches"}
    spec = replace(specs[setting.backend], **keys)
    task = run_trial(spec, sample["query"].to_list(), sample["doc"].to_list())
    trial: Trial = spark.sparkContext.parallelize([0], 1).mapPartitions(task).first()
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
