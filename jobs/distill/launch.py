"""Train in this process, in several of this machine, or in tasks of a Spark cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import torch
from pyspark.ml.torch.distributor import TorchDistributor
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from jobs.config import Config
from jobs.distill import training
from jobs.distill.training import Curve, Training
from jobs.output.tracking.client import resolve_uri
from jobs.runtime.errors import RefusedError
from jobs.runtime.session import is_local, open_session

_GPUS_OF_A_TASK: Final = "spark.task.resource.gpu.amount"


def refuse_processes(config: Config) -> None:
    """Refuse numbers of processes that a step's lists or this machine's GPUs do not suffice for."""
    options, tracking = config.distill, config.mlflow
    count, gpus = options.processes, torch.cuda.device_count()
    findings = []
    if options.batch % count:
        findings.append(
            f"distill.batch={options.batch} lists cannot be shared out evenly to "
            f"distill.processes={count}; change one"
        )
    if not options.cluster and 0 < gpus < count:
        findings.append(
            f"distill.processes={count} is more than the {gpus} GPUs of this machine; lower it, or "
            "set distill.cluster"
        )
    here = resolve_uri(tracking.tracking_uri).startswith(("sqlite:", "file:", "/", "."))
    if options.cluster and tracking.enabled and here and not is_local(config.spark.master):
        findings.append(
            "mlflow.tracking_uri is on this machine, and distill.cluster trains on others; name a "
            "server, or set mlflow.enabled=false"
        )
    if findings:
        raise RefusedError(findings)


def launch(work: Training, config: Config, run_id: str) -> Curve:
    """Train with `distill.processes`; the first of them saves the model, and logs to the run."""
    options = config.distill
    if options.processes == 1 and not options.cluster:
        return training.run(work)
    if run_id:
        work = replace(work, server=resolve_uri(config.mlflow.tracking_uri), run_id=run_id)
    if not options.cluster:
        how = LaunchConfig(1, 1, options.processes, run_id="distill", rdzv_backend="c10d",
                           rdzv_endpoint="localhost:0", max_restarts=0)  # fmt: skip
        curves: dict[int, Curve] = elastic_launch(how, training.run)(work)
        return curves[0]
    spark = open_session(config.spark)
    gpus = float(spark.conf.get(_GPUS_OF_A_TASK, "0") or 0)
    if gpus % 1:
        raise RefusedError(
            f"{_GPUS_OF_A_TASK}={gpus} shares a GPU; set it to 1 for distill.cluster"
        )
    tasks = TorchDistributor(options.processes, local_mode=False, use_gpu=gpus > 0)
    found: Any = tasks.run(training.run, work)
    return list(found)
