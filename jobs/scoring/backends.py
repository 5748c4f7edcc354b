"""What is to run the model: refused where it cannot, prepared where it needs to be."""

from __future__ import annotations

from jobs.config import ModelConfig
from jobs.scoring.onnx_export import export, refuse_missing_packages
from udfs.checkpoint import Checkpoint


def for_backend(config: ModelConfig, checkpoint: Checkpoint) -> Checkpoint:
    """What the backend runs: the checkpoint itself, or its copy for ONNX Runtime.

    Raises:
        RefusedError: if the model cannot be exported faithfully.
    """
    if config.backend != "onnxruntime":
        return checkpoint
    return export(checkpoint, "int8" if config.precision == "int8" else "fp32")


def refuse_backend(config: ModelConfig) -> None:
    """Say what to install for the backend.

    Raises:
        RefusedError: naming the missing packages and the pip extra.
    """
    if config.backend == "onnxruntime":
        refuse_missing_packages()
