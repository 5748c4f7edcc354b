"""What is to run the model: refused where it cannot, prepared where it needs to be."""

from __future__ import annotations

import json

from jobs.config import ModelConfig
from jobs.runtime.errors import RefusedError
from jobs.scoring.onnx_export import export, refuse_missing_packages
from udfs import int16
from udfs.checkpoint import Checkpoint


def for_backend(config: ModelConfig, checkpoint: Checkpoint) -> Checkpoint:
    """What the backend runs: the checkpoint itself, or its copy for ONNX Runtime.

    Raises:
        RefusedError: if the model cannot be exported faithfully.
    """
    if config.backend != "onnxruntime":
        return checkpoint
    return export(checkpoint, "int8" if config.precision == "int8" else "fp32")


def refuse_backend(config: ModelConfig, checkpoint: Checkpoint | None, *, here: bool) -> None:
    """Say what to install for the backend, or why it cannot compute the model.

    Args:
        config: the backend and the precision.
        checkpoint: the model; None if there is none to look at.
        here: whether this machine scores, and not executors that may have other CPUs.

    Raises:
        RefusedError: naming the missing packages and the pip extra, or another precision.
    """
    if config.backend == "onnxruntime":
        refuse_missing_packages()
    if config.backend == "torch" and config.precision == "int16":
        refuse_int16(config, checkpoint, here=here)


def refuse_int16(config: ModelConfig, checkpoint: Checkpoint | None, *, here: bool) -> None:
    """Say why a model cannot be computed in 16-bit integers, here or anywhere.

    Raises:
        RefusedError: naming the missing package and the pip extra, or another precision.
    """
    reason = config.against_int16() or (int16.lacking() if here else None)
    if checkpoint is not None and not reason:
        model = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
        reason = int16.unsupported(model)
    if reason:
        raise RefusedError(reason)
