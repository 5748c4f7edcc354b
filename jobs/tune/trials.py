"""Measure a setting where the pairs will be scored: in a Spark task, on an executor's device."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict, replace

from pyspark.sql import SparkSession

from jobs.config import BatchingConfig, ModelConfig, ScoringConfig
from jobs.scoring.onnx_export import export
from jobs.scoring.stage import make_spec, resolve_precision, ship_model, tasks_have_gpus
from jobs.tune.sample import Sample
from jobs.tune.sweep import Engine, Setting
from udfs.checkpoint import Checkpoint
from udfs.scorers.base import OK
from udfs.spec import Backend, ScorerSpec
from udfs.trial import Trial
from udfs.udf import run_trial


class Trials:
    """Runs trials, one at a time."""

    def __init__(
        self,
        spark: SparkSession,
        model: ModelConfig,
        batching: BatchingConfig,
        checkpoint: Checkpoint,
        engines: Iterable[Engine],
    ) -> None:
        """Export what has to be exported, and ship it."""
        self._spark = spark
        self._specs: dict[Backend, ScorerSpec] = {}
        # int8 first: its copy of the model holds the float32 graph as well.
        for backend, precision in sorted(engines, key=lambda engine: engine[1] != "int8"):
            if backend not in self._specs:
                copy = export(checkpoint, precision) if backend == "onnxruntime" else checkpoint
                spec = make_spec(model, batching, copy, "fp32")
                spec = replace(spec, backend=backend, runtime=copy.runtime)
                self._specs[backend] = ship_model(spark, copy, spec, model.ship)

    def run(self, setting: Setting, sample: Sample) -> Trial:
        """Run one trial, in a process of its own."""
        spec = replace(self._specs[setting.backend], **asdict(setting))
        task = run_trial(spec, sample.queries, sample.docs)
        trial: Trial = self._spark.sparkContext.parallelize([0], 1).mapPartitions(task).first()
        return trial

    def measure(self, setting: Setting, sample: Sample) -> Trial:
        """Run one trial, and print a line on stderr."""
        trial = self.run(setting, sample)
        speed = f"{len(sample) / trial.seconds:8.1f} pairs/s" if trial.outcome == OK else ""
        keys = ("max_length", "max_tokens", "max_pairs")
        values = "  ".join(f"{key} {getattr(setting, key):>6}" for key in keys)
        sys.stderr.write(f"{setting.engine:<17} {values}  {trial.outcome:<6}{speed}\n")
        return trial


def device_of(spark: SparkSession, model: ModelConfig, scoring: ScoringConfig) -> str:
    """Return what executors score on: `cuda`, `cpu-bf16` or `cpu`."""
    model = model.model_copy(update={"precision": "auto", "backend": "torch"})
    precision = resolve_precision(model, gpu=tasks_have_gpus(spark, scoring))
    return {"fp16": "cuda", "bf16": "cpu-bf16"}.get(precision, "cpu")
