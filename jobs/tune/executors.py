"""Trials where the pairs will be scored: in a Spark task, on an executor's device."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace

from pyspark.sql import SparkSession

from jobs.config import Config
from jobs.scoring.onnx_export import export
from jobs.scoring.stage import make_spec, ship_model
from jobs.tune.sample import Sample
from jobs.tune.settings import Engine, Setting
from udfs.checkpoint import Checkpoint
from udfs.scores import OK
from udfs.spec import Backend, ScorerSpec
from udfs.tasks import probe_devices, run_trial
from udfs.trial import Trial


class Executors:
    """Runs trials, one at a time."""

    def __init__(
        self, spark: SparkSession, config: Config, checkpoint: Checkpoint, given: Iterable[Engine]
    ) -> None:
        """Export what has to be exported, and ship it."""
        self._spark = spark
        self._drafts: dict[Backend, ScorerSpec] = {}
        for backend, precision in sorted(given, key=lambda engine: engine[1] != "int8"):
            if backend in self._drafts:
                continue
            # An int8 copy holds the float32 graph as well.
            copy = export(checkpoint, precision) if backend == "onnxruntime" else checkpoint
            spec = make_spec(config, copy)
            spec = replace(spec, backend=backend, precision="fp32", runtime=copy.runtime)
            self._drafts[backend] = ship_model(spark, copy, spec, config.model.ship)

    def start(self, setting: Setting, sample: Sample) -> None:
        """Have torch imported by the server that trials are forked from."""
        self._run(setting, sample.first(1))

    def measure(self, setting: Setting, sample: Sample) -> Trial:
        """One trial; a line on stderr says what came of it."""
        trial = self._run(setting, sample)
        speed = f"{len(sample) / trial.seconds:8.1f} pairs/s" if trial.outcome == OK else ""
        keys = ("max_length", "max_tokens", "max_pairs")
        words = "  ".join(f"{key} {getattr(setting, key):>6}" for key in keys)
        sys.stderr.write(f"{setting.engine:<17} {words}  {trial.outcome:<6}{speed}\n")
        return trial

    def _run(self, setting: Setting, sample: Sample) -> Trial:
        task = run_trial(setting.spec(self._drafts), sample.queries, sample.docs)
        found: Trial = self._spark.sparkContext.parallelize([0], 1).mapPartitions(task).first()
        return found


def device_of(spark: SparkSession, draft: ScorerSpec) -> str:
    """What an executor scores on, as `udfs.devices.describe` names it."""
    probe = probe_devices(draft, None, load=False)
    (probed,) = spark.sparkContext.parallelize([0], 1).mapPartitions(probe).collect()
    return probed.device
