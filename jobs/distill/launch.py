"""Train in this process, in several of this machine, or in tasks of a Spark cluster."""

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


def prepare(config: Config) -> TorchDistributor | None:
    """Refuse processes that cannot share the work; return Spark's, if tasks of it are to train.

    Raises:
        RefusedError: a step's lists that cannot be divided, too few GPUs, or a session that cannot
            be had.
    """
    options, count = config.distill, config.distill.processes
    if options.batch % count:
        raise RefusedError(
            f"distill.batch={options.batch} lists cannot be shared out evenly to "
            f"distill.processes={count}; change one"
        )
    if not options.cluster:
        if config.model.device != "cpu" and 0 < (gpus := torch.cuda.device_count()) < count:
            raise RefusedError(
                f"distill.processes={count} is more than the {gpus} GPUs of this machine; lower "
                "it, or set distill.cluster"
            )
        return None
    _refuse_local_server(config, config.spark.master)
    spark = open_session(config.spark)
    _refuse_local_server(config, str(spark.sparkContext.master))  # as spark-submit has set it
    share = spark.conf.get(_GPUS_OF_A_TASK, None) or "0"
    if float(share) % 1:
        raise RefusedError(
            f"{_GPUS_OF_A_TASK}={share} shares a GPU; set it to 1 for distill.cluster"
        )
    return TorchDistributor(count, local_mode=False, use_gpu=float(share) > 0)


def _refuse_local_server(config: Config, master: str) -> None:
    here = resolve_uri(config.mlflow.tracking_uri).startswith(("sqlite:", "file:", "/", "."))
    if config.mlflow.enabled and here and not is_local(master):
        raise RefusedError(
            "mlflow.tracking_uri is on this machine, and distill.cluster trains on others; name a "
            "server, or set mlflow.enabled=false"
        )


def launch(work: Training, config: Config, tasks: TorchDistributor | None, run_id: str) -> Curve:
    """Train in the processes asked for; the first one saves the model, and logs to the run."""
    count = config.distill.processes
    # transformers would share the batches of a single process among all GPUs, and enlarge them.
    if count == 1 and tasks is None and torch.cuda.device_count() < 2:
        return training.run(work)
    if run_id:
        work = replace(work, server=resolve_uri(config.mlflow.tracking_uri), run_id=run_id)
    if tasks:
        found: Any = tasks.run(training.run, work)
        return list(found)
    how = LaunchConfig(
        1, 1, count, run_id="distill", rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        max_restarts=0,
    )  # fmt: skip
    curves: dict[int, Curve] = elastic_launch(how, training.run)(work)
    return curves[0]
