"""What a backend needs, and what it runs."""

from __future__ import annotations

from jobs.config import ModelConfig
from jobs.runtime.errors import RefusedError
from jobs.scoring.onnx_export import export, missing_packages
from udfs.checkpoint import Checkpoint
from udfs.forward.onnx import REMEDY


def for_backend(config: ModelConfig, checkpoint: Checkpoint) -> Checkpoint:
    """Return what the backend runs: the checkpoint itself, or its copy for ONNX Runtime.

    Raises:
        RefusedError: if the model cannot be exported faithfully.
    """
    if config.backend != "onnxruntime":
        return checkpoint
    return export(checkpoint, "int8" if config.precision == "int8" else "fp32")


def refuse_missing_packages(backend: str) -> None:
    """Check that this machine has what a backend needs; torch is a dependency of the project.

    Raises:
        RefusedError: naming the missing packages and the pip extra.
    """
    if backend == "onnxruntime" and (missing := missing_packages()):
        raise RefusedError(
            f"model.backend=onnxruntime needs {' and '.join(missing)}, not installed here; {REMEDY}"
        )
